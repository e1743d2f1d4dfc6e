"""How far two judges of the same things agree, beyond what chance alone would give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from masters.evaluation.statistics import Interval

_Z = NormalDist().inv_cdf(0.975)


def cohen_kappa(table: Sequence[Sequence[float]]) -> Interval:
    """Cohen's kappa with its large-sample 95 % interval.

    With p_ij the shares, p_o = sum p_ii and p_e = sum p_i. p_.i: kappa = (p_o - p_e) / (1 - p_e).
    Its variance is that of Fleiss, Cohen and Everitt (Psychological Bulletin 72, 1969, Eq. 13), the
    one for intervals, which does not suppose that kappa is 0:

        [ sum_i p_ii (1 - (p_i. + p_.i) (1 - kappa))^2
          + (1 - kappa)^2 sum_{i != j} p_ij (p_.i + p_j.)^2
          - (kappa - p_e (1 - kappa))^2 ] / (n (1 - p_e)^2)

    It rests on many items: where all of them are agreed on it is 0, however few they are.

    Args:
        table: square; entry [i][j] counts the items that the first judge calls i and the second j.

    Returns:
        All NaN where both judges used one category only: chance alone agrees then, and kappa is
        0 / 0. Bounds stay within -1 and 1.

    Raises:
        ValueError: the table is not square, has a negative entry, or is empty.
    """
    size = len(table)
    if not size or any(len(row) != size for row in table):
        raise ValueError(f"a table of {[len(row) for row in table]} entries; expected a square one")
    n = math.fsum(entry for row in table for entry in row)
    if n <= 0 or any(entry < 0 for row in table for entry in row):
        raise ValueError(f"a table of {n} items, or with a negative count; expected counts")
    share = [[entry / n for entry in row] for row in table]
    first = [math.fsum(row) for row in share]
    second = [math.fsum(row[j] for row in share) for j in range(size)]
    agreed = math.fsum(share[i][i] for i in range(size))
    chance = math.fsum(first[i] * second[i] for i in range(size))
    if 1 - chance < 1e-12:
        return Interval(math.nan, math.nan, math.nan)
    kappa = (agreed - chance) / (1 - chance)
    on = math.fsum(
        share[i][i] * (1 - (first[i] + second[i]) * (1 - kappa)) ** 2 for i in range(size)
    )
    off = math.fsum(
        share[i][j] * (second[i] + first[j]) ** 2
        for i in range(size)
        for j in range(size)
        if i != j
    )
    rest = (kappa - chance * (1 - kappa)) ** 2
    variance = max(0.0, on + (1 - kappa) ** 2 * off - rest) / (n * (1 - chance) ** 2)
    half = _Z * math.sqrt(variance)
    return Interval(kappa, max(-1.0, kappa - half), min(1.0, kappa + half))
