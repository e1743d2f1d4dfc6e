"""Answers of several items, in order or in any order."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence

from masters.rewards.rules.amounts import amount
from masters.rewards.rules.verdicts import Verdict, right_or
from masters.rewards.wording import normalise

_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
_BULLET = re.compile(r"^\s*(?:[-*\u2022]|\(?\d{1,2}[.)])\s+")
_BETWEEN = re.compile(r"\s*(?:[;\n]|,\s*(?:and\b|&)?|\s(?:and|&)\s)\s*", re.IGNORECASE)


def several(response: str, golds: Sequence[str], *, ordered: bool) -> Verdict:
    """Whether the response's items are those of a gold answer, each as often as there.

    Items are compared like "normalised", numbers by value.

    Args:
        golds: one gold list, or several of which any will do.
        ordered: whether they have to stand in its order.
    """
    said = items(response)
    right = any(
        said == wanted if ordered else Counter(said) == Counter(wanted)
        for wanted in map(items, golds)
    )
    return right_or("mismatch", right)


def items(text: str) -> list[str]:
    """The items of a list, each in one spelling.

    Parted by commas, semicolons, new lines and "and"; JSON, brackets, bullets and numbered lines
    are read too. A comma between three digits and three parts thousands: "1,200" is one item.
    """
    text = text.strip()
    parts = [text]
    if text[:1] + text[-1:] in ("[]", "()", "{}"):
        parts = _elements(text)
    lines = [line for part in parts for line in part.splitlines() if line.strip()]
    if len(lines) > len(parts):
        lines = [_BULLET.sub("", line) for line in lines]
    found = []
    for line in lines:
        guarded = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), line)
        found += [_spelling(item) for item in _BETWEEN.split(guarded)]
    return [item for item in found if item]


def _elements(text: str) -> list[str]:
    """What stands between brackets: a JSON list's elements, else the text without them."""
    try:
        read = json.loads(text)
    except ValueError:
        return [text[1:-1]]
    if isinstance(read, list):
        return [element if isinstance(element, str) else json.dumps(element) for element in read]
    return [text[1:-1]]


def _spelling(item: str) -> str:
    number = amount(item) if item.strip() else None
    if number is None:
        return normalise(item) if item.strip(" .") else ""
    return f"{number[0]:.12g}{'%' if number[1] else ''}"
