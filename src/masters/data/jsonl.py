"""Questions from a JSON Lines file: one object per line, images beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from masters.data.bad_rows import BadRowError
from masters.data.collector import Collector, Reading, collect
from masters.data.fields import build_question
from masters.data.images import Images
from masters.data.questions import Question
from masters.data.rows import RowQuestions
from masters.errors import DataError


def read_jsonl(path: Path, *, images: Images, reading: Reading) -> RowQuestions:
    """The questions of a file of ``{"id", "image", "question", "answer", "choices"?, "kind"?}``.

    Args:
        path: the file.
        images: where the images are that rows name.
        reading: which rows are taken.

    Raises:
        DataError: the file cannot be read, a row is bad, or none is usable.
    """

    def take(collector: Collector) -> None:
        for number, line in _lines(path):
            if collector.full:
                break
            if line.strip():
                _take(collector, number, line)

    return collect(
        take,
        kind="jsonl",
        where=path,
        files=[path, *images.files()],
        images=images,
        reading=reading,
        place=lambda number: f"{path}:{number}",
    )


def unreadable(path: Path, error: Exception, expected: str) -> DataError:
    """The error for a file that cannot be opened or decoded as ``expected``."""
    return DataError(
        f"{path}: cannot be read ({error}); expected a file of {expected}. Correct the path in "
        "the recipe, or the file."
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, from 1.

    Raises:
        DataError: the file cannot be read, or is not in UTF-8.
    """
    try:
        with open(path, encoding="utf-8") as file:
            yield from enumerate(file, start=1)
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error, "JSON Lines in UTF-8") from error


def _take(collector: Collector, number: int, line: str) -> None:
    try:
        row = json.loads(line)
        identity = row.get("id") if isinstance(row, dict) else None
    except (ValueError, RecursionError) as error:
        row, identity = error, None

    def build() -> Question:
        if not isinstance(row, dict):
            raise BadRowError(
                "not a JSON object",
                got=f"{line.strip()[:60]!r}" + (f" ({row})" if isinstance(row, Exception) else ""),
                expected='one object per line, like {"id": "1", "image": "1.png", "question": '
                '"what is it?", "answer": "a cat"}',
                remedy="Correct the line",
            )
        return build_question(row, identity=identity)

    collector.add(number, identity, build)
