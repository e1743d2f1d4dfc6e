"""Rows on their way into an index: checked one by one, once, and never held all at a time."""

from __future__ import annotations

import json
import logging
import os
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa

from masters.data.answers import gold_answers, most_given
from masters.data.bad_rows import BadRowError, message
from masters.data.cache import CacheEntry, stamps
from masters.data.images import Images
from masters.data.index import Index, IndexWriter, id_hash
from masters.data.questions import Question
from masters.data.rows import RowQuestions, row_of_question
from masters.errors import DataError

OnBad = Literal["error", "skip"]
CACHED_ROWS = 50_000
"""Data sets of so many questions are kept in the cache folder; smaller ones are read each time."""

_LOG = logging.getLogger(__name__)
_NAMED = 5
_SKIP_HINT = ", or set `on_bad: skip` to leave such rows out."


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How rows are taken, whatever file they are in.

    Args:
        limit: how many questions to take, from the first; rows after them are not read. None: all.
        on_bad: "error" stops at the first bad row, "skip" counts them by reason and names the first
            five of each. With "skip" every image is decoded when the data is opened, since which
            rows are left must be known before anything is planned.
        need_label: whether a question without label is bad.
    """

    limit: int | None = None
    on_bad: OnBad = "error"
    need_label: bool = True


def collect(
    take: Callable[[Collector], None],
    *,
    kind: str,
    where: Path,
    files: Sequence[Path],
    images: Images,
    reading: Reading,
    place: Callable[[int], str],
    settings: Mapping[str, Any] | None = None,
) -> RowQuestions:
    """The questions that ``take`` adds to a collector, or the index of an earlier time.

    Args:
        take: reads the source row by row.
        kind: of the source.
        where: the file or folder being read.
        files: everything rows (or images inside of containers) are read from.
        images: finds the images.
        place: where a row of that number is, e.g. ``train.jsonl:12``.
        settings: of the reader, where they decide what is read.

    Raises:
        DataError: a row is bad and ``on_bad`` is "error", or none is usable.
    """
    before = _stamps(files)
    key = {
        "kind": kind, "where": str(where.absolute()), "images": images.settings(),
        "reading": vars(reading), **(settings or {}),
    }  # fmt: skip
    entry = CacheEntry(key)
    index = entry.load(before, images)
    if index is not None:
        for note in index.about["notes"]:
            _LOG.warning("%s", note)
        return RowQuestions(where=where, index=index, images=images)
    collector = Collector(where=where, images=images, reading=reading, place=place, entry=entry)
    try:
        take(collector)
        if _stamps(files) != before:
            raise DataError(
                f"{where}: changed while it was read; expected it to stay as it is. Run again when "
                "it is written."
            )
        index = collector.finish(before)
    finally:
        collector.clear()
    return RowQuestions(where=where, index=index, images=images)


class Collector:
    """Takes rows one by one, checks them, and ends in an index.

    Args:
        where: the file or folder being read.
        images: finds the images.
        reading: which rows are taken.
        place: where a row of that number is.
        entry: where a large index is kept.
    """

    def __init__(
        self,
        *,
        where: Path,
        images: Images,
        reading: Reading,
        place: Callable[[int], str],
        entry: CacheEntry,
    ) -> None:
        self._where, self._images, self._reading, self._place = where, images, reading, place
        self._entry = entry
        self._writer = IndexWriter()
        self._file: BinaryIO | None = None
        self._numbers = array("q")
        # Hashes of 64 bits stand for the ids seen: two of a million differing ids share one with
        # a chance of 1 in 37 million, and would be reported, not mixed up.
        self._seen: set[int] = set()
        self._skipped: Counter[str] = Counter()
        self._notes: list[str] = []
        self._encode = json.JSONEncoder(sort_keys=True, default=str).encode

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self._reading.limit is not None and len(self._writer) >= self._reading.limit

    def add(self, number: int, identity: object, build: Callable[[], Question]) -> None:
        """Takes one question unless the limit is reached.

        Args:
            number: of the row, as ``place`` understands it.
            identity: the row's id, for the message when ``build`` fails.
            build: makes the question; may raise ``BadRowError``.

        Raises:
            DataError: the row is bad and ``on_bad`` is "error".
        """
        if self.full:
            return
        try:
            self._take(number, build())
        except BadRowError as bad:
            place = self._place(number)
            if self._reading.on_bad == "error":
                hint = bad.remedy + _SKIP_HINT
                raise DataError(message(place, identity, bad, hint)) from bad
            self._skipped[bad.reason] += 1
            if self._skipped[bad.reason] <= _NAMED:
                self._notes.append(f"left out ({bad.reason}): {message(place, identity, bad)}")
                _LOG.warning("%s", self._notes[-1])

    def leave_out(self, reason: str) -> None:
        """Counts a row that is no question for a vision-language model but no mistake either."""
        if not self.full:
            self._skipped[reason] += 1

    def finish(self, found: Sequence[Any]) -> Index:
        """The index of the questions taken.

        Args:
            found: the stamps of the files they were read from.

        Raises:
            DataError: there is none, or the index cannot be written.
        """
        if not len(self._writer):
            counts = ", ".join(f"{n} {reason}" for reason, n in self._skipped.items())
            raise DataError(
                f"{self._where}: no usable question (left out: {counts or 'nothing'}); expected "
                "at least one. Check that the path and the names of the fields are right."
            )
        about = {
            "stamps": found,
            "skipped": self._skipped,
            "notes": self._notes,
            "decoded": self._reading.on_bad == "skip",
        }
        if self._file is None:
            self._writer.finish(about)
            return Index(pa.py_buffer(self._writer.content()))
        try:
            self._writer.finish(about)
            return self._entry.publish(self._file)
        except OSError as error:
            raise self._no_room(error) from error

    def clear(self) -> None:
        """Removes the file of an index that was not finished."""
        if self._file is not None and not self._file.closed:
            self._file.close()
            os.unlink(self._file.name)

    def _take(self, number: int, question: Question) -> None:
        hashed = id_hash(question.id)
        if hashed in self._seen:
            raise self._duplicate(hashed)
        if question.label is None and self._reading.need_label:
            # Only here, so that rows read without need of a label stay what they were.
            question = replace(question, label=most_given(gold_answers(question)) or None)
        if question.label is None and self._reading.need_label:
            raise BadRowError(
                "no label",
                got="no answer",
                expected="the ground truth, because this recipe compares responses with it",
                remedy="Add the answer",
            )
        try:
            stored = [self._images.find(name) for name in question.images]
            if self._reading.on_bad == "skip":
                for name, _ in stored:
                    self._images.verify(self._images.reference(name))
        finally:
            self._writer.add_files(self._images.news())
        row = self._encode(row_of_question(question, stored)).encode()
        try:
            self._writer.add(question.id, hashed, row)
            if len(self._writer) == CACHED_ROWS:
                self._file = self._entry.begin()
                if self._file is not None:
                    self._writer.move_to(self._file)
        except OSError as error:
            raise self._no_room(error) from error
        self._seen.add(hashed)
        self._numbers.append(number)

    def _duplicate(self, hashed: int) -> BadRowError:
        said = ""
        if self._skipped["duplicate id"] < _NAMED:
            said = f" at {self._place(self._numbers[self._writer.hashes.index(hashed)])}"
        return BadRowError(
            "duplicate id",
            got=f"an id already used{said}",
            expected="every id once",
            remedy="Rename one of them",
        )

    def _no_room(self, error: OSError) -> DataError:
        return DataError(
            f"{self._entry.path}: cannot be written ({error.strerror or error}); expected room for "
            f"the index of {self._where}, about as large as its text. Make room, or set "
            "MASTERS_CACHE to a folder that has it."
        )


def _stamps(files: Sequence[Path]) -> Sequence[Any]:
    """The files' stamps; none where one is missing, which its reader then says."""
    try:
        return stamps(files)
    except OSError:
        return []
