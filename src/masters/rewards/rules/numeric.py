"""One number in a response, within 5 % of the label's."""

from __future__ import annotations

import math

from masters.rewards.rules.verdicts import Verdict, right_or, wrong
from masters.rewards.wording import normalise, numbers

_TOLERANCE = 0.05

Number = tuple[float, bool]
"""A value as written, and whether it is a percentage."""


def numeric(response: str, label: str) -> Verdict:
    """Relaxed accuracy: within 5 % of the label; a label of 0 must be met exactly.

    "45 %" and "0.45" count as equal, and so do "45 %" and "45": data and models write both. A
    label that is no number falls back to the normalised rule.
    """
    expected = numbers(label)
    if len(expected) != 1:
        return right_or("mismatch", normalise(response) == normalise(label))
    found = list(dict.fromkeys(numbers(response)))
    if len(found) != 1:
        return wrong("several numbers" if found else "no number")
    return right_or("mismatch", near(found[0], expected[0]))


def near(found: Number, wanted: Number, tolerance: float = _TOLERANCE) -> bool:
    """Whether a number is the wanted one up to ``tolerance``, a share of the wanted one."""
    (value, percent), (target, target_percent) = found, wanted
    readings = [(value, target)]
    if percent and not target_percent:
        readings.append((value / 100, target))
    if target_percent and not percent:
        readings.append((value, target / 100))
    # The last term lets 1.05 be 5 % off 1, which in floats it is not.
    return any(
        math.isfinite(a) and math.isfinite(b) and abs(a - b) <= tolerance * abs(b) + 1e-12 * abs(b)
        for a, b in readings
    )
