"""From what was measured at each ratio to ``max_ratio`` and ``step``: the rule, stated and pure.

A ratio is *kept* when, with 95 % confidence, the masked teacher's accuracy lies at most
``tolerance`` below the unmasked one's on the same questions: the lower bound of the paired
difference is at least -tolerance. The recommended ``max_ratio`` is the last one kept when going up
from 0 and stopping at the first that is not. Because each ratio is looked at only after all below
it were kept (a fixed sequence), no correction for looking at several is due.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from masters.evaluation.statistics import Interval, paired_share_difference, wilson
from masters.ratios import WHOLE, mask_ratios, ratio_text

Verdict = Literal["kept", "lost", "open"]
FEWEST, MOST = 4, 9
"""Mask stages of a recommended schedule; the paper's best ones have 5 and 9."""
_GRIDS = (500, 100, 50, 1)
_ENOUGH = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The teacher at one ratio, or with one group of layers masked at it.

    Args:
        ratio: per 10,000.
        group: the layers that were masked; empty for all that the recipe masks.
        correct: for each question of the sample, whether the greedy answer was right.
        changed: the share of questions whose greedy answer is another one than unmasked.
        entropy: mean over questions of a response's mean token entropy, in nats.
        jsd: the same of the divergence to the unmasked teacher, in nats.
        zeros: the share of all weights that are zero.
        seconds: what measuring it took.
    """

    ratio: int
    group: str = ""
    correct: tuple[bool, ...]
    changed: float
    entropy: Interval
    jsd: Interval
    zeros: float
    seconds: float

    @property
    def n(self) -> int:
        """Questions."""
        return len(self.correct)

    @property
    def accuracy(self) -> Interval:
        """Share of right answers with its Wilson interval."""
        return wilson(sum(self.correct), self.n)

    def against(self, unmasked: Measured) -> Interval:
        """The paired difference of the accuracies, with Tango's interval."""
        return paired_share_difference(*self.moved(unmasked), self.n)

    def moved(self, unmasked: Measured) -> tuple[int, int]:
        """Questions right here and wrong unmasked, and the other way round."""
        pairs = list(zip(self.correct, unmasked.correct, strict=True))
        return sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What to write into the recipe, and why.

    Args:
        max_ratio: per 10,000; 0 where not even the smallest ratio is kept.
        step: per 10,000; None with ``max_ratio`` 0.
        reason: a sentence.
        questions_needed: about how many questions would settle the first ratio not kept, where
            more of them could.
    """

    max_ratio: int
    step: int | None
    reason: str
    questions_needed: int | None = None

    @property
    def stages(self) -> int:
        """M of Eq. 3: mask stages, the whole teacher's included."""
        return 1 if self.step is None else self.max_ratio // self.step + 1


def verdict(difference: Interval, tolerance: float) -> Verdict:
    """``kept`` and ``lost`` are certain at 95 %; ``open``: the interval holds -tolerance."""
    if difference.low >= -tolerance:
        return "kept"
    return "lost" if difference.high < -tolerance else "open"


def recommend(rows: Sequence[Measured], tolerance: float) -> Recommendation:
    """The rule of this module.

    Args:
        rows: the unmasked teacher first, then rising ratios, all over the same questions.
        tolerance: a share in (0, 1): how much accuracy may be lost.
    """
    unmasked, masked = rows[0], rows[1:]
    if unmasked.accuracy.value <= tolerance:
        return Recommendation(
            max_ratio=0,
            step=None,
            reason=f"The unmasked teacher itself is right on only {_percent(unmasked.accuracy[0])} "
            f"of the questions, no more than the tolerance: nothing can be lost. Look at its "
            f"answers, the prompt and the rule first",
        )
    best = 0
    for row in masked:
        found = verdict(row.against(unmasked), tolerance)
        if found != "kept":
            return _result(best, *_stopped(row, unmasked, found, tolerance))
        best = row.ratio
    return _result(best, "The largest ratio tested is kept; larger ones may be as well", None)


def _stopped(
    row: Measured, unmasked: Measured, found: Verdict, tolerance: float
) -> tuple[str, int | None]:
    """Why the first ratio not kept was not, and how many questions would settle it."""
    difference = row.against(unmasked)
    allowed = f"{100 * tolerance:g} points"
    reason = (
        f"At {ratio_text(row.ratio)} the accuracy changes by {_points(difference.value)} points "
        f"({_points(difference.low)} to {_points(difference.high)})"
    )
    if found == "lost":
        return f"{reason}, which is certainly a loss of more than {allowed}", None
    gained, lost = row.moved(unmasked)
    needed = questions_needed(gained, lost, row.n, tolerance)
    if needed is None:
        return f"{reason}; more questions would hardly bring it within {allowed}", None
    return (
        f"{reason}: {row.n:,} questions cannot rule out a loss of more than {allowed}; about "
        f"{needed:,} could, if the others go like these"
    ), needed


def questions_needed(gained: float, lost: float, n: float, tolerance: float) -> int | None:
    """The least number of questions at which such a ratio would be kept; None: at none.

    Supposes that the same shares of answers are gained and lost. From few questions that is a
    rough guess.
    """
    if (gained - lost) / n <= -tolerance:
        return None

    def kept(size: int) -> bool:
        scaled = paired_share_difference(gained * size / n, lost * size / n, size)
        return scaled.low >= -tolerance

    enough = 1
    while not kept(enough):
        enough *= 2
        if enough > _ENOUGH:
            return None
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        enough, too_few = (middle, too_few) if kept(middle) else (enough, middle)
    return enough


def choose_step(max_ratio: int) -> int:
    """The step (per 10,000) for a ``max_ratio`` above 0, which it divides.

    The schedule has 4 to 9 stages. Among the steps that give so many: multiples of 0.05 before
    multiples of 0.01, 0.005 and 0.0001; within these the smallest. So 0.2 and 0.4 get the paper's
    0.05. A ratio that no step divides into 4 to 9 stages gets the most stages up to 9.
    """
    if not 0 < max_ratio < WHOLE:
        raise ValueError(f"max_ratio is {max_ratio} / 10,000; expected one above 0 and below 1")
    steps = [max_ratio // parts for parts in range(MOST - 1, 0, -1) if max_ratio % parts == 0]
    legal = [step for step in steps if FEWEST <= max_ratio // step + 1 <= MOST]
    for grid in _GRIDS:
        fitting = [step for step in legal if step % grid == 0]
        if fitting:
            return min(fitting)
    return min(steps)


def _result(best: int, reason: str, needed: int | None) -> Recommendation:
    step = choose_step(best) if best else None
    if step is not None:
        mask_ratios(ratio_text(best), ratio_text(step))  # what is recommended loads
    return Recommendation(max_ratio=best, step=step, reason=reason, questions_needed=needed)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
