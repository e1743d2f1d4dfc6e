"""Questions from a JSON Lines file: one object per line, images beside it."""

from __future__ import annotations

import json
from pathlib import Path

from masters.data.bad_rows import BadRowError
from masters.data.images import Images
from masters.data.questions import Question
from masters.data.rows import Collector, OnBad, RowQuestions, build_question
from masters.errors import DataError


def read_jsonl(
    path: Path,
    *,
    images: Path | None = None,
    limit: int | None = None,
    on_bad: OnBad = "error",
    need_label: bool = True,
) -> RowQuestions:
    """The questions of a file of ``{"id", "image", "question", "answer", "choices"?, "kind"?}``.

    Args:
        path: the file.
        images: what image paths are relative to; the file's own folder when None.
        limit: take the first so many usable questions; rows after them are not read.
        on_bad: stop at a bad row, or count and skip it.
        need_label: whether a row without ``answer`` is bad.

    Raises:
        DataError: the file cannot be read, a row is bad, or none is usable.
    """
    found = Images(path.parent if images is None else images)
    collector = Collector(
        where=path, images=found, limit=limit, on_bad=on_bad, need_label=need_label
    )
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if collector.full:
                    break
                if line.strip():
                    _take(collector, found, f"{path}:{number}", line)
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error, "JSON Lines in UTF-8") from error
    return collector.finish()


def unreadable(path: Path, error: Exception, expected: str) -> DataError:
    """The error for a file that cannot be opened or decoded as ``expected``."""
    return DataError(
        f"{path}: cannot be read ({error}); expected a file of {expected}. Correct the path in "
        "the recipe, or the file."
    )


def _take(collector: Collector, images: Images, place: str, line: str) -> None:
    try:
        row = json.loads(line)
        identity = row.get("id") if isinstance(row, dict) else None
    except ValueError as error:
        row, identity = error, None

    def build() -> Question:
        if not isinstance(row, dict):
            raise BadRowError(
                "not a JSON object",
                got=f"{line.strip()[:60]!r}" + (f" ({row})" if isinstance(row, ValueError) else ""),
                expected='one object per line, like {"id": "1", "image": "1.png", "question": '
                '"what is it?", "answer": "a cat"}',
                remedy="Correct the line",
            )
        return build_question(row, identity=identity, images=images)

    collector.add(place, identity, build)
