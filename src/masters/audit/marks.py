"""What a person marked: one line a mark, kept at once, so that an audit can go on later."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from masters.artifacts import atomic_write_text
from masters.audit.sample import AuditItem
from masters.data.answers import accepted_answers
from masters.errors import DataError

MARKS = ("right", "wrong", "unsure")


def read_marks(path: Path) -> dict[str, str]:
    """Item id -> mark; a later line counts, a last line that was cut does not.

    Raises:
        DataError: another line is no mark.
    """
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return _marks(whole, path)


def read_answers(path: Path) -> dict[str, str]:
    """The marks of a file that somebody filled in; lines whose mark is null are left out.

    Raises:
        DataError: it is not there, or a line is no item with a mark.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise DataError(
            f"{path}: cannot be read ({why}); expected a file of marks, such as the "
            "sample that --audit writes with every mark filled in"
        ) from None
    return _marks(text, path)


def keep_mark(path: Path, item: AuditItem, mark: str) -> None:
    """Adds a line that is on disk when this returns."""
    said = {**described(item), "mark": mark}
    path.parent.mkdir(parents=True, exist_ok=True)
    _close_last_line(path)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(said, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def write_sample(path: Path, items: Sequence[AuditItem], marks: Mapping[str, str]) -> None:
    """The items as lines to be filled in; it shows no verdict, so that the marks are one's own."""
    rows = [{**described(item), "mark": marks.get(item.id)} for item in items]
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    atomic_write_text(path, "".join(lines))


def described(item: AuditItem) -> dict[str, Any]:
    """What a person needs to see of an item, as JSON values."""
    question = item.question
    return {
        "item": item.id,
        "question_id": question.id,
        "images": list(question.images),
        "question": question.text,
        "choices": list(question.choices),
        "labels": list(accepted_answers(question)),
        "response": item.response,
    }


def _close_last_line(path: Path) -> None:
    """Drops a last line that a kill cut: the next one must not hang on to it."""
    if not path.exists():
        return
    text = path.read_bytes()
    if text and not text.endswith(b"\n"):
        os.truncate(path, text.rfind(b"\n") + 1)


def _marks(text: str, path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            item, mark = str(row["item"]), row["mark"]
        except (ValueError, KeyError, TypeError):
            item, mark = "", line[:60]
        if mark is None:
            continue
        if not item or mark not in MARKS:
            raise DataError(
                f"{path}:{number}: got {mark!r}; expected "
                '{"item": "<id of the sample>", "mark": "right" or "wrong" or "unsure"}'
            )
        found[item] = mark
    return found
