"""A number with its unit: "5 cm" is "5 centimetres" and "50 mm", and not "5 m"."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from masters.rewards.rules.amounts import amount, spelt_out
from masters.rewards.rules.units import CURRENCIES, LONGEST, unit
from masters.rewards.rules.verdicts import Verdict, right_or, wrong
from masters.rewards.wording import normalise

_LEAD = re.compile(
    r"(?:(?:the\s+)?(?:final\s+)?answer(?:\s+is|\s*:)|it\s+is|it['\u2019]s|that\s+is)\s*:?\s+", re.I
)
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A value in its dimension's own unit; ``dimension`` is "" for a bare number."""

    value: float
    dimension: str
    written: float


def quantity(response: str, golds: Sequence[str]) -> Verdict:
    """Whether a response is a gold quantity: the same number in the same unit, or in another one.

    A bare number is right where it is the one written before the gold answer's unit: the question
    mostly names the unit. Another unit is wrong. No tolerance but for rounding: 1e-6. A gold answer
    that is no quantity is compared like "normalised".
    """
    found = read_quantity(_LEAD.sub("", response.strip(), count=1))
    for gold in golds:
        wanted = read_quantity(gold)
        if wanted is None:
            if normalise(response) == normalise(gold):
                return right_or("mismatch", True)
        elif found is not None and _same(found, wanted):
            return right_or("mismatch", True)
    if found is None and any(read_quantity(gold) for gold in golds):
        return wrong("no quantity")
    return wrong("mismatch")


def read_quantity(text: str) -> Quantity | None:
    """The one number with or without unit that a text is; None where it is anything else."""
    plain = spelt_out(text).strip(' *\n\t"').rstrip(".")
    bare = amount(plain)
    if bare is not None and not bare[1] and not any(_currency(letter) for letter in plain):
        return Quantity(value=bare[0], dimension="", written=bare[0])
    for place in range(max(1, len(plain) - LONGEST), len(plain)):
        if plain[place - 1].isalpha() and plain[place].isalpha():
            continue
        named, before = unit(plain[place:]), plain[:place].strip()
        # "5 cm" is not "5 c" and "m": the longest spelling is tried first, and what stands before
        # it has to be a number.
        if named is not None and (value := amount(before)) is not None and not value[1]:
            return Quantity(value=value[0] * named[1], dimension=named[0], written=value[0])
    for place in range(min(4, len(plain)), 0, -1):
        named = unit(plain[:place])
        if named is None or named[0] not in CURRENCIES:
            continue
        if (value := amount(plain[place:])) is not None:
            return Quantity(value=value[0] * named[1], dimension=named[0], written=value[0])
    return None


def _currency(letter: str) -> bool:
    return unicodedata.category(letter) == "Sc"


def _same(found: Quantity, wanted: Quantity) -> bool:
    if found.dimension and found.dimension == wanted.dimension:
        return _equal(found.value, wanted.value)
    if found.dimension and wanted.dimension:
        return False
    # A share for a percentage: 0.45 is 45 %.
    for one, other in ((found, wanted), (wanted, found)):
        if one.dimension == "percent" and _equal(one.written / 100, other.written):
            return True
    return _equal(found.written, wanted.written)


def _equal(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_ROUNDING, abs_tol=1e-12)
