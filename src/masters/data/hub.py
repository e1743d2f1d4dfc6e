"""Questions from `datasets` folders: saved by ``save_to_disk``, or holding Parquet files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from masters.data.collector import Collector, Reading, collect
from masters.data.decode import ImageLimits
from masters.data.fields import build_question
from masters.data.parquet import ParquetTable
from masters.data.rows import RowQuestions
from masters.data.table_images import Part, Table, TableImages, holds_images, names_of
from masters.errors import DataError

_ROLES = ("image", "question", "answer", "id", "choices", "kind")
_REQUIRED = ("image", "question", "answer")
_BATCH = 4096


def read_folder(
    path: Path,
    *,
    split: str | None,
    columns: Mapping[str, str | None],
    limits: ImageLimits,
    reading: Reading,
) -> RowQuestions:
    """The questions of a folder that `datasets` wrote, or of Parquet files, with an image column.

    Args:
        path: a folder written by ``save_to_disk``, one with Parquet files, or one such file.
        split: which split, where the folder has several.
        columns: the names of the columns that hold ``image``, ``question``, ``answer``, ``id``,
            ``choices`` and ``kind``; one not mentioned is called like its role, one that is None
            is not read. Without an id column rows are called ``row-<n>``. A whole-number
            answer beside choices is an index into them. The image column may hold lists.
        limits: the largest image that is opened.
        reading: which rows are taken.

    Raises:
        DataError: the folder or a column is not there, a row is bad, or none is usable.
    """
    table = _load(path, split)
    names = _columns(path, table.schema.names, columns, reading.need_label)
    image = names.pop("image")
    _check_images(path, image, table.schema.field(image).type)
    images = TableImages(table, image, path if path.is_dir() else path.parent, limits)

    def take(collector: Collector) -> None:
        number = 0
        # Only the columns of words are read here: of images, no more than there is to know.
        for part in table.parts(list(dict.fromkeys(names.values())), image):
            rows = zip(part.texts.to_pylist(), images.offer(part), strict=True)
            for row, shown in rows:
                if collector.full:
                    return
                fields = {role: row[name] for role, name in names.items()} | {"image": shown}
                identity = fields.pop("id") if "id" in names else f"row-{number}"
                build = partial(build_question, fields, identity=identity, answer_may_index=True)
                collector.add(number, identity, build)
                number += 1

    return collect(
        take,
        kind="datasets",
        where=path,
        files=images.files(),
        images=images,
        reading=reading,
        place=lambda number: f"{path}: row {number}",
        settings={"columns": {**names, "image": image}, "split": split},
    )


class SavedTable:
    """A `datasets.Dataset`, which maps its files itself."""

    def __init__(self, dataset: Any, files: Sequence[Path]) -> None:
        self._dataset = dataset.with_format("arrow")
        self.schema: pa.Schema = dataset.data.schema
        self.files = list(files)

    def parts(self, texts: Sequence[str], image: str) -> Iterator[Part]:
        """All rows, in order."""
        chosen = self._dataset.select_columns(list(dict.fromkeys([*texts, image])))
        for first in range(0, len(chosen), _BATCH):
            table: pa.Table = chosen[first : first + _BATCH]
            names, sizes = names_of(table.column(image), first)
            yield Part(texts=table.select(list(texts)), names=names, sizes=sizes)

    def cell(self, row: int, column: str) -> object:
        """One cell, as Python values."""
        return self._dataset.select_columns([column])[row].column(column)[0].as_py()


def _load(path: Path, split: str | None) -> Table:
    if path.is_file() and path.suffix == ".parquet":
        return ParquetTable([path])
    if not path.is_dir():
        raise DataError(
            f"{path}: no such folder; expected one written by `datasets` (`save_to_disk`) or one "
            "with Parquet files. Correct the path in the recipe."
        )
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        return _load_saved(path, split)
    return ParquetTable(_parquet_files(path, split))


def _load_saved(path: Path, split: str | None) -> Table:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{path}: reading it needs the package `datasets`, which is not installed ({error}); "
            "expected it for folders of `save_to_disk`. Install it with `pip install datasets`."
        ) from error
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path}: `datasets` cannot load it ({said}); expected a whole folder of "
            "`save_to_disk`. Write the folder again."
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        if split is None and len(loaded) == 1:
            split = str(next(iter(loaded)))
        if split not in loaded:
            raise _no_split(path, split, sorted(map(str, loaded)))
        loaded = loaded[split]
    return SavedTable(loaded, sorted(file for file in path.rglob("*") if file.is_file()))


def _check_images(path: Path, column: str, kind: pa.DataType) -> None:
    if not holds_images(kind):
        raise DataError(
            f"{path}: column {column!r} is {kind}; expected images (encoded bytes or paths), or "
            "lists of them. Set `columns: {image: <name>}`, or cast the column to "
            "`datasets.Image()`."
        )


def _parquet_files(path: Path, split: str | None) -> list[Path]:
    """The Parquet files of a split: ``<split>/*.parquet`` or ``<split>-*-of-*.parquet``.

    Where no file's name or folder says which split it is, all belong to any.

    Raises:
        DataError: there is none.
    """
    files = sorted(path.rglob("*.parquet"))
    if not files:
        raise DataError(
            f"{path}: holds neither a saved data set nor Parquet files; expected one of them. "
            "Correct the path, or use `kind: jsonl` or `kind: llava` for other files."
        )
    splits = {file: _split_of(path, file) for file in files}
    chosen = [file for file in files if split is None or splits[file] == split]
    present = sorted(set(splits.values()))
    if present == [""]:
        return files
    if not chosen or (split is None and len(present) > 1):
        raise _no_split(path, split, present)
    return chosen


def _split_of(root: Path, file: Path) -> str:
    folder = file.parent.relative_to(root).name
    if folder not in ("", "data"):
        return folder
    numbered = re.fullmatch(r"(.+?)-\d+(?:-of-\d+.*)?", file.stem)
    name = numbered[1] if numbered else file.stem
    return name if numbered or name in ("train", "validation", "test") else ""


def _no_split(path: Path, split: str | None, present: list[str]) -> DataError:
    return DataError(
        f"{path}: split is {split!r}; expected one of {', '.join(present)}. Set `split`."
    )


def _columns(
    path: Path, present: list[str], named: Mapping[str, str | None], need_label: bool
) -> dict[str, str]:
    """Role -> column, for the roles that have one.

    Raises:
        DataError: an unknown role, or a column that is named or required and not there.
    """
    unknown = sorted(set(named) - set(_ROLES))
    if unknown:
        raise DataError(
            f"{path}: columns names {', '.join(unknown)}; expected only {', '.join(_ROLES)}. "
            "Correct `columns`."
        )
    found: dict[str, str] = {}
    for role in _ROLES:
        column = named.get(role, role)
        if column is None and role not in _REQUIRED:
            continue
        if column is not None and column in present:
            found[role] = column
        elif role in named or (role in _REQUIRED and (role != "answer" or need_label)):
            raise DataError(
                f"{path}: no column {column!r} for the {role}; expected one of "
                f"{', '.join(present)}. Set `columns: {{{role}: <name>}}`."
            )
    return found
