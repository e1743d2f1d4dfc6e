"""How far judge, rule and person agree on what they all looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from masters.audit.sample import AuditItem
from masters.evaluation.agreement import cohen_kappa

RIGHT = "right"
UNSURE = "unsure"

Counts = tuple[tuple[int, int], tuple[int, int]]
"""[first says right, wrong][second says right, wrong]."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Two views of the same responses.

    Args:
        first, second: who.
        counts: rows are the first's right and wrong, columns the second's.
    """

    first: str
    second: str
    counts: Counts

    @property
    def n(self) -> int:
        """How many responses both have a view of."""
        return sum(map(sum, self.counts))

    @property
    def agreed(self) -> float:
        """The share on which they say the same; NaN of none."""
        return (self.counts[0][0] + self.counts[1][1]) / self.n if self.n else math.nan

    @property
    def kappa(self) -> tuple[float, float, float]:
        """Cohen's kappa, low, high; NaN where both gave one and the same verdict throughout.

        The bounds alone are NaN where they would lie on kappa itself, all agreed on or one verdict
        throughout on one side: few responses would look as sure as many.
        """
        if not self.n:
            return math.nan, math.nan, math.nan
        value, low, high = cohen_kappa(self.counts)
        return (value, low, high) if high - low > 1e-6 else (value, math.nan, math.nan)

    def as_json(self) -> dict[str, Any]:
        """As JSON values; null where a number is not defined."""
        kappa, low, high = (None if math.isnan(x) else x for x in self.kappa)
        return {
            "first": self.first,
            "second": self.second,
            "counts": [list(row) for row in self.counts],
            "n": self.n,
            "agreed": None if math.isnan(self.agreed) else self.agreed,
            "kappa": kappa,
            "low": low,
            "high": high,
        }


def agreements(items: Sequence[AuditItem], marks: Mapping[str, str]) -> list[Agreement]:
    """Judge and person, rule and person, judge and rule; the last over the whole sample.

    Responses that the person was unsure about have no view of a person, those that the rule cannot
    judge none of a rule. Where a rule gave the reward itself (``rules_first``, or no judge), it is
    the judge's view too. Of a graded rule only full marks count as right.
    """
    judge = {item.id: item.reward == 1.0 for item in items}
    rule = {item.id: item.rule == 1.0 for item in items if item.rule is not None}
    person = {
        item.id: marks[item.id] == RIGHT for item in items if marks.get(item.id, UNSURE) != UNSURE
    }
    pairs = [("judge", judge, "person", person), ("rule", rule, "person", person)]
    pairs.append(("judge", judge, "rule", rule))
    if all(item.judge.startswith("rule:") for item in items):
        pairs = pairs[1:2]
    return [
        Agreement(first=first, second=second, counts=_counts(one, other))
        for first, one, second, other in pairs
    ]


def _counts(one: Mapping[str, bool], other: Mapping[str, bool]) -> Counts:
    both = [(one[key], other[key]) for key in one if key in other]
    return (
        (both.count((True, True)), both.count((True, False))),
        (both.count((False, True)), both.count((False, False))),
    )


def agreement_table(found: Sequence[Agreement]) -> Table:
    """A row for each pair: its table of counts, the share agreed on, kappa with its interval."""
    heads = ("", "n", "both right", "only first", "only second", "both wrong", "agree", "kappa")
    table = Table(*heads, "95 % interval", box=None, pad_edge=False)
    for one in found:
        (both, first), (second, neither) = one.counts
        kappa, low, high = one.kappa
        table.add_row(
            f"{one.first} and {one.second}",
            *map(str, (one.n, both, first, second, neither)),
            "-" if math.isnan(one.agreed) else f"{one.agreed:.1%}",
            "-" if math.isnan(kappa) else f"{kappa + 0:.2f}",
            "-" if math.isnan(low) else f"{low:.2f} to {high:.2f}",
        )
    return table
