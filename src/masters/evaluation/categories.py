"""Accuracy by category: by the questions' kind, or by any field that their rows have."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from masters.errors import StageError
from masters.evaluation.statistics import mean_score

if TYPE_CHECKING:
    from masters.data.questions import Question

Row = dict[str, Any]

KIND = "kind"
NONE = "(none)"
"""The category of questions whose row lacks the field."""
_LONGEST = 100
"""Characters of a field's value above which it is prose and no category."""


def category_fields(question: Question) -> str:
    """The question's further fields that can be categories, as a JSON object of texts.

    Texts, numbers and truth values are kept; lists, objects and long texts are not.
    """
    kept = {
        name: str(value)
        for name, value in question.meta.items()
        if isinstance(value, str | int | float) and 0 < len(str(value)) <= _LONGEST
    }
    return json.dumps(kept, sort_keys=True, ensure_ascii=False)


def categories(answers: Mapping[str, Row], by: str) -> dict[str, list[str]]:
    """Category -> ids of its questions, categories in alphabetical order.

    Args:
        answers: question id -> row of the answers table.
        by: ``kind``, or the name of a field.

    Raises:
        StageError: no question has the field; names those there are.
    """
    found: dict[str, list[str]] = {}
    known: dict[str, None] = {}
    for key, row in answers.items():
        if by == KIND:
            category = row["kind"]
        else:
            fields = json.loads(row["fields"])
            known.update(dict.fromkeys(fields))
            category = fields.get(by, NONE)
        found.setdefault(category, []).append(key)
    if set(found) == {NONE} and by not in known:
        have = ", ".join([KIND, *sorted(known)])
        raise StageError(
            f"--by {by}: no question has that field; expected one of {have}. A field beside those "
            "of docs/data.md is kept where it holds a short text or a number"
        )
    return dict(sorted(found.items()))


def tables_of(answers: Mapping[str, Row], fields: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Field -> category -> ids, kind first; a field with one category only makes no table.

    Raises:
        StageError: a field is not there.
    """
    found = {by: categories(answers, by) for by in dict.fromkeys((KIND, *fields))}
    return {by: groups for by, groups in found.items() if by != KIND or len(groups) > 1}


def score_row(answers: Iterable[Row]) -> Row | None:
    """Accuracy (mean score) with its interval; None where no answer has a verdict.

    Returns:
        ``value``, ``low``, ``high``, ``n`` (answers with a verdict), ``missing`` (without one).
    """
    scores = [row["score"] for row in answers]
    judged = [score for score in scores if score is not None]
    if not judged:
        return None
    value, low, high = mean_score(judged)
    missing = len(scores) - len(judged)
    return {"value": value, "low": low, "high": high, "n": len(judged), "missing": missing}


def score_tables(answers: Mapping[str, Row], fields: Sequence[str] = ()) -> list[Row]:
    """One row for all questions (``by`` and ``category`` ``all``), then one a category.

    Raises:
        StageError: a field is not there, or no answer has a verdict.
    """
    rows: list[Row] = []
    groups = {"all": {"all": list(answers)}, **tables_of(answers, fields)}
    for by, members in groups.items():
        for category, ids in members.items():
            found = score_row(answers[key] for key in ids)
            if found is not None:
                rows.append({"by": by, "category": category, **found})
    if not rows:
        raise StageError("none of the answers has a verdict; nothing can be said of this model")
    return rows
