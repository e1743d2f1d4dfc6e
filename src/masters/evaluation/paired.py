"""Two models on the same questions: is one better, by how much, and in which categories?

The test is the same for right or wrong answers and for graded ones: under no difference, which of
the two models gave which of a question's two scores is a coin's toss. For right and wrong that is
McNemar's exact test, worked out; for graded scores the tosses are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from masters.evaluation.statistics import Interval

LEVEL = 0.05
"""A difference is called one when its p-value is at most this."""
RESAMPLES = 10_000
_NORMAL = NormalDist()
_AT_ONCE = 1 << 22
"""Drawn numbers held in memory at a time."""


def mcnemar(gained: int, lost: int) -> float:
    """The two-sided p-value of McNemar's exact test.

    Of the questions that one model gets right and the other wrong, each is as likely to be either
    model's: p = min(1, 2 P(X <= min(gained, lost))), X binomial with n = gained + lost and 1/2.

    It is the exact one at every n. The mid-p variant and the chi-square approximation have more
    power by a hair and, for some n, a size above the level (mid-p 5.2 % at 27); the size of this
    one is at most the level for every n.

    Args:
        gained: questions that the second model alone gets right; ``lost``: the first alone.

    Raises:
        ValueError: a count is negative.
    """
    if gained < 0 or lost < 0:
        raise ValueError(f"{gained} gained and {lost} lost; expected counts of at least 0")
    n, least = gained + lost, min(gained, lost)
    if gained == lost:
        return 1.0
    # The sum from its largest term down, each as a share of that one.
    term = total = 1.0
    for i in range(least, 0, -1):
        term *= i / (n - i + 1)
        total += term
        if term < 1e-18 * total:
            break
    log = math.lgamma(n + 1) - math.lgamma(least + 1) - math.lgamma(n - least + 1)
    return min(1.0, math.exp(log - (n - 1) * math.log(2) + math.log(total)))


def sign_flip(differences: Sequence[float], *, seed: int = 0, draws: int = RESAMPLES) -> float:
    """The two-sided p-value of the paired randomisation test on the sum of the differences.

    Each draw gives every difference a sign by a coin; p = (1 + draws at least as far from 0 as what
    was seen) / (1 + draws), so that it is never 0 and its size is at most the level.

    Args:
        differences: one a question.
        seed: of the coins.
        draws: how many times.
    """
    sizes, counts = _counted(np.abs(np.asarray(differences, dtype=np.float64)))
    counts, sizes = counts[sizes > 0], sizes[sizes > 0]
    if not len(sizes):
        return 1.0
    seen = abs(math.fsum(differences))
    random = np.random.default_rng(seed)
    as_far = 0
    for part in _parts(draws, len(sizes)):
        heads = random.binomial(counts, 0.5, size=(part, len(sizes)))
        as_far += int((np.abs((2 * heads - counts) @ sizes) >= seen * (1 - 1e-12)).sum())
    return (1 + as_far) / (1 + draws)


def paired_bootstrap(
    differences: Sequence[float], *, seed: int = 0, draws: int = RESAMPLES
) -> Interval:
    """The mean difference with its bootstrap interval, bias-corrected and accelerated (BCa).

    Questions are drawn with replacement, a question's two scores together. Efron (JASA 82, 1987):
    the bounds are quantiles of the drawn means at Phi(z0 + (z0 + z) / (1 - a (z0 + z))), where z0
    is the normal quantile of the share of drawn means below the mean, ties half, and a the skewness
    of the differences / (6 sqrt(n)).

    Args:
        differences: one a question.
        seed: of the draws.
        draws: how many samples of n questions.

    Returns:
        Bounds are NaN for a single question.

    Raises:
        ValueError: there is no question.
    """
    values = np.asarray(differences, dtype=np.float64)
    n = len(values)
    if n == 0:
        raise ValueError("no differences; expected at least one")
    mean = math.fsum(differences) / n
    if n == 1:
        return Interval(mean, math.nan, math.nan)
    distinct, counts = _counted(values)
    if len(distinct) == 1:
        return Interval(mean, mean, mean)
    random = np.random.default_rng(seed)
    means = np.concatenate(
        [
            random.multinomial(n, counts / n, size=part) @ distinct / n
            for part in _parts(draws, len(distinct))
        ]
    )
    tie = 1e-12 * float(np.abs(distinct).max())
    below = np.count_nonzero(means < mean - tie)
    ties = np.count_nonzero(np.abs(means - mean) <= tie)
    share = min(max((below + ties / 2) / draws, 0.5 / draws), 1 - 0.5 / draws)
    bias = _NORMAL.inv_cdf(share)
    centred = values - mean
    skewness = float((centred**3).sum() / (centred**2).sum() ** 1.5) / 6

    def level(z: float) -> float:
        moved = bias + z
        return _NORMAL.cdf(bias + moved / (1 - skewness * moved))

    z = _NORMAL.inv_cdf(1 - LEVEL / 2)
    low, high = np.quantile(means, [level(-z), level(z)])
    return Interval(mean, float(low), float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p-value as it counts among all of them: Holm's step-down correction, in their order.

    Sorted, the i-th smallest of m is multiplied by m - i + 1 and made no smaller than those before
    it: however many categories show no difference, the chance to call one in any is at most the
    level (Holm, Scandinavian Journal of Statistics 6, 1979).
    """
    found = [0.0] * len(p_values)
    least = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        found[index] = least
    return found


def _counted(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distinct values and how often each: drawing counts costs less than drawing questions."""
    distinct, counts = np.unique(values, return_counts=True)
    return distinct, counts


def _parts(draws: int, width: int) -> list[int]:
    """``draws`` in parts of which each fits in memory."""
    most = max(1, _AT_ONCE // width)
    return [most] * (draws // most) + ([draws % most] if draws % most else [])
