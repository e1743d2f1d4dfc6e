"""Questions from WebDataset shards: tar files whose members share a name up to its first dot."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NoReturn

from masters.data.bad_rows import BadRowError
from masters.data.collector import Collector, Reading, collect
from masters.data.fields import build_question
from masters.data.rows import RowQuestions
from masters.data.tar import Member, TarImages, members

_IMAGES = frozenset(("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm"))
_ROLES = ("question", "answer", "id", "choices", "kind")
_LONGEST_TEXT = 1 << 24


def read_webdataset(
    path: Path, *, images: TarImages, columns: Mapping[str, str | None], reading: Reading
) -> RowQuestions:
    """The questions of tar shards, one for each sample.

    A sample is a run of members whose names are the same up to the first dot of the last part: its
    images, in order; ``<key>.json`` with the fields; and texts such as ``<key>.txt`` or
    ``<key>.cls``, which are fields named ``txt`` and ``cls``.

    Args:
        path: what the recipe calls the shards.
        images: of the shards.
        columns: which field holds ``question``, ``answer``, ``id``, ``choices`` and ``kind``; one
            not mentioned is called like its role, one that is None is not read. Without an id a
            sample is called ``<shard>/<key>``.
        reading: which rows are taken.

    Raises:
        DataError: a shard cannot be read, a row is bad, or none is usable.
    """
    names = {role: columns.get(role, role) for role in _ROLES}
    starts: list[int] = []  # the number of each shard's first sample

    def take(collector: Collector) -> None:
        number = 0
        for shard in images.files():
            starts.append(number)
            with open(shard, "rb") as file:
                reader = _Shard(shard, file.fileno(), images, names)
                for key, sample in groupby(members(shard), key=lambda member: _key(member.name)):
                    if collector.full:
                        return
                    reader.take(collector, number, key, list(sample))
                    number += 1

    def place(number: int) -> str:
        at = bisect_right(starts, number) - 1
        return f"{images.files()[at]}: sample {number - starts[at] + 1}"

    return collect(
        take,
        kind="webdataset",
        where=path,
        files=images.files(),
        images=images,
        reading=reading,
        place=place,
        settings={"columns": names},
    )


class _Shard:
    """One open tar file and how its samples become rows."""

    def __init__(
        self, path: Path, file: int, images: TarImages, names: Mapping[str, str | None]
    ) -> None:
        self._path, self._file, self._images = path, file, images
        self._names = {role: name for role, name in names.items() if name is not None}

    def take(self, collector: Collector, number: int, key: str, sample: Sequence[Member]) -> None:
        identity: object = f"{self._path.stem}/{key}"
        try:
            fields = self._fields(sample)
        except BadRowError as bad:
            collector.add(number, identity, partial(_refuse, bad))
            return
        row = {role: fields[name] for role, name in self._names.items() if name in fields}
        identity = row.pop("id", identity)
        shown = [member for member in sample if _extension(member.name) in _IMAGES]
        row["images"] = [self._images.stored(self._path, member) for member in shown]
        collector.add(number, identity, partial(build_question, row, identity=identity))

    def _fields(self, sample: Sequence[Member]) -> dict[str, object]:
        """The fields of the sample's JSON object, and those texts that are asked for.

        Raises:
            BadRowError: a text cannot be read as such.
        """
        fields: dict[str, object] = {}
        wanted = set(self._names.values())
        for member in sample:
            name = member.name.rpartition("/")[2].partition(".")[2]
            if name == "json" or name in wanted:
                text = self._text(member)
                fields |= _object(member, text) if name == "json" else {name: text.strip()}
        return fields

    def _text(self, member: Member) -> str:
        try:
            if member.size > _LONGEST_TEXT:
                raise ValueError(f"{member.size:,} bytes")
            return os.pread(self._file, member.size, member.offset).decode()
        except ValueError as error:
            raise _no_text(member, error) from error


def _object(member: Member, text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no_text(member, error) from error
    if not isinstance(found, dict):
        raise _no_text(member, TypeError(f"one {type(found).__name__}"))
    return found


def _no_text(member: Member, error: Exception) -> BadRowError:
    return BadRowError(
        "broken text",
        got=f"member {member.name!r}, which cannot be read ({error})",
        expected="UTF-8 text, and a JSON object where the name ends in .json",
        remedy="Write the sample again",
    )


def _refuse(bad: BadRowError) -> NoReturn:
    raise bad


def _key(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower()
