"""95 % intervals: of a share, of a mean over seeds, and of a difference over the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple

_Z = NormalDist().inv_cdf(0.975)


class Interval(NamedTuple):
    """An estimate and its 95 % interval.

    ``low`` and ``high`` are NaN where a single value gives none.
    """

    value: float
    low: float
    high: float


def wilson(successes: float, n: int) -> Interval:
    """The share ``successes / n`` with its Wilson score interval.

    Wilson (1927): centre (p + z^2/2n) / (1 + z^2/n), half width
    z / (1 + z^2/n) * sqrt(p(1-p)/n + z^2/4n^2). It stays inside [0, 1] and keeps a width at p = 0
    and p = 1.

    Args:
        successes: from 0 to n; a sum of scores in 0..1 need not be whole.
        n: at least 1.

    Raises:
        ValueError: the counts are impossible.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}; expected n >= 1 and 0 <= successes <= n")
    share, weight = successes / n, _Z * _Z / n
    centre = (share + weight / 2) / (1 + weight)
    half = _Z * math.sqrt(share * (1 - share) / n + weight / (4 * n)) / (1 + weight)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(share, low, high)


def mean_score(scores: Sequence[float]) -> Interval:
    """The mean of the scores of n questions, each from 0 to 1, with its interval inside [0, 1].

    Where every score is 0 or 1 it is a share, with Wilson's interval; else Student's t. Scores
    that are all the same have no spread to go by: there too Wilson's, which is never too narrow,
    as no scores with mean m spread more than m (1 - m), the spread of right and wrong ones.

    Raises:
        ValueError: there is no score, or one is outside [0, 1].
    """
    if not scores or not all(0 <= score <= 1 for score in scores):
        raise ValueError("no scores, or some outside [0, 1]; expected at least one, all inside")
    if len(set(scores)) == 1 or all(score in (0, 1) for score in scores):
        return wilson(sum(scores), len(scores))
    value, low, high = t_interval(scores)
    return Interval(value, max(0.0, low), min(1.0, high))


def t_interval(values: Sequence[float]) -> Interval:
    """The mean of a few values (seeds) with Student's t interval; NaN bounds for one value.

    Args:
        values: at least one.

    Raises:
        ValueError: there is none.
    """
    if not values:
        raise ValueError("no values; expected at least one")
    mean = fmean(values)
    if len(values) == 1:
        return Interval(mean, math.nan, math.nan)
    half = t_quantile(len(values) - 1) * stdev(values, mean) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Interval:
    """The mean of ``a - b`` over the same questions with its interval.

    The spread is that of the differences, so questions that both get right or wrong add none: far
    narrower than two separate intervals when two models agree on most questions.

    Args:
        a: the score of each question (0, 1 or in between) under one model.
        b: the same questions in the same order under another.

    Raises:
        ValueError: the lengths differ, or there is no question.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} scores against {len(b)}; expected the same questions")
    return t_interval([float(x) - float(y) for x, y in zip(a, b, strict=True)])


def paired_share_difference(gained: float, lost: float, n: float) -> Interval:
    """The difference of two shares over the same n questions, with Tango's score interval.

    Of n questions the second run gets ``gained`` right that the first got wrong, and ``lost`` wrong
    that the first got right: the difference is d = (gained - lost) / n. Tango (Statistics in
    Medicine 17, 1998): the bounds are the D at which |gained - lost - n D| is z times its standard
    deviation sqrt(n (2 q + D (1 - D))), q the most likely share of ``lost`` given D. Unlike an
    interval from the spread of the differences it keeps a width where no answer differs: with
    none of n it is +- z^2 / (n + z^2).

    Args:
        gained: at least 0; ``lost`` likewise. Expected counts need not be whole.
        n: at least ``gained + lost``, above 0.

    Raises:
        ValueError: the counts are impossible.
    """
    if not (n > 0 and gained >= 0 and lost >= 0 and gained + lost <= n * (1 + 1e-12)):
        raise ValueError(
            f"{gained} gained and {lost} lost of {n}; expected counts of at least 0, together at "
            "most n, and n above 0"
        )
    value = (gained - lost) / n

    def bound(end: float) -> float:
        inside, outside = value, end
        for _ in range(60):
            middle = (inside + outside) / 2
            if abs(_paired_score(middle, gained, lost, n)) < _Z:
                inside = middle
            else:
                outside = middle
        return (inside + outside) / 2

    return Interval(value, bound(-1.0), bound(1.0))


def _paired_score(difference: float, gained: float, lost: float, n: float) -> float:
    """Tango's score statistic; infinite where the difference leaves no spread at all."""
    a = 2 * n
    b = (2 * n - gained + lost) * difference - gained - lost
    c = -lost * difference * (1 - difference)
    q = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = n * (2 * q + difference * (1 - difference))
    distance = gained - lost - n * difference
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with ``freedom`` >= 1 degrees of freedom.

    Bisection on the closed form for whole degrees (Abramowitz and Stegun 26.7.3 and 26.7.4); from
    200 degrees on, the expansion around the normal quantile (26.7.5), exact to 1e-9 there.
    """
    if freedom < 1:
        raise ValueError(f"{freedom} degrees of freedom; expected at least 1")
    if freedom >= 200:
        z = _Z
        g1 = (z**3 + z) / 4
        g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
        g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
        return z + g1 / freedom + g2 / freedom**2 + g3 / freedom**3
    low, high = _Z, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        if _central_share(middle, freedom) < 0.95:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _central_share(t: float, freedom: int) -> float:
    """P(-t < T < t) for Student's t with whole degrees of freedom."""
    angle = math.atan(t / math.sqrt(freedom))
    cos, sin = math.cos(angle), math.sin(angle)
    odd = freedom % 2 == 1
    term = cos if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cos * cos * ((k - 1) / k)
        total += term
    return 2 / math.pi * (angle + sin * total) if odd else sin * total
