"""Whether a claim held: paired differences over seeds, their interval, and one rule for all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from masters.evaluation.readings import Row
from masters.evaluation.statistics import Interval, t_interval

Held = Literal["yes", "no", "unclear"]
MARGIN = 1.0
"""Points: a difference wholly within them counts as none."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one suite's runs on one data set say of one claim.

    Args:
        claim: as in the suite's results; ``data`` is all its data sets.
        data: the one this is about.
        differences: seed -> points, of the seeds that every arm has; rising.
        lacking: seeds that are asked for and that not every arm has.
        interval: points; bounds are NaN for one seed. None where no seed is complete.
    """

    suite: str
    command: str
    claim: Row
    data: str
    differences: Mapping[int, float]
    lacking: tuple[int, ...]
    interval: Interval | None

    @property
    def held(self) -> Held:
        """See `verdict`; unclear without a number."""
        return "unclear" if self.interval is None else verdict(self.interval, self.claim["expects"])

    @property
    def seeds(self) -> int:
        """How many seeds the interval is of."""
        return len(self.differences)

    def as_json(self) -> dict[str, Any]:
        """The finding as summary.json has it; what is not known is null."""
        value, low, high = self.interval or (math.nan, math.nan, math.nan)
        return {
            "claim": f"{self.claim['id']}: {self.claim['says']}",
            "source": self.claim["source"],
            "data": self.data,
            "held": self.held,
            "difference": _known(value),
            "low": _known(low),
            "high": _known(high),
            "seeds": self.seeds,
            "command": self.command,
        }


def verdict(interval: Interval, expects: str) -> Held:
    """Whether a difference of which ``interval`` is known (points) bears the claim out.

    up (down: the same with the sign turned):
        yes      the interval lies above 0;
        no       it lies below 0, or wholly within one point of 0;
        unclear  otherwise.
    equal, which claims no difference beyond a point:
        yes      it lies wholly within one point of 0, whether or not 0 is in it;
        no       it leaves out 0, and reaches beyond one point;
        unclear  otherwise.

    The rules apply in this order, so a gain that is sure and smaller than a point is a gain, and
    bears out "equal" as well. A bound at 0 does not leave 0 out; one at a point is within. One
    seed has no interval: unclear.
    """
    _, low, high = interval
    if math.isnan(low) or math.isnan(high):
        return "unclear"
    if expects == "down":
        low, high = -high, -low
    within = low >= -MARGIN and high <= MARGIN
    if expects == "equal":
        if within:
            return "yes"
        return "no" if low > 0 or high < 0 else "unclear"
    if low > 0:
        return "yes"
    return "no" if high < 0 or within else "unclear"


def paired(
    accuracies: Mapping[str, Mapping[int, float]], first: Sequence[str], second: Sequence[str]
) -> dict[int, float]:
    """Points by seed, over the seeds that every arm has, rising.

    Args:
        accuracies: arm -> seed -> share.
        first, second: an arm each: second less first. Two each: the difference within ``second``
            (its second less its first) less the difference within ``first``.
    """
    shared = set.intersection(*(set(accuracies.get(arm, {})) for arm in (*first, *second)))

    def within(side: Sequence[str], seed: int) -> float:
        before = accuracies[side[0]][seed] if len(side) == 2 else 0.0
        return accuracies[side[-1]][seed] - before

    return {
        seed: round(100 * (within(second, seed) - within(first, seed)), 6)
        for seed in sorted(shared)
    }


def findings(results: Row) -> list[Finding]:
    """What a suite's results say of each of its claims on each of their data sets."""
    found = []
    for claim in results["claims"]:
        for data in claim["data"]:
            accuracies: dict[str, dict[int, float]] = {}
            for run in results["runs"]:
                if run["data"] == data:
                    accuracies.setdefault(run["arm"], {})[run["seed"]] = run["accuracy"]
            differences = paired(accuracies, claim["first"], claim["second"])
            found.append(
                Finding(
                    suite=results["suite"],
                    command=results["command"],
                    claim=claim,
                    data=data,
                    differences=differences,
                    lacking=tuple(s for s in results["seeds"] if s not in differences),
                    interval=t_interval(list(differences.values())) if differences else None,
                )
            )
    return found


def _known(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 3)
