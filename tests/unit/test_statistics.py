"""Intervals against published values and by simulation."""

from __future__ import annotations

import math
import random

import pytest

from masters.evaluation.statistics import (
    paired_difference,
    t_interval,
    t_quantile,
    t_test,
    wilson,
)


def test_wilson_hand_values() -> None:
    # Newcombe (1998), table I, method 3: 81/263, 15/148, 0/20, 1/29.
    assert wilson(81, 263) == pytest.approx((0.3080, 0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.1014, 0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0, 0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0345, 0.0061, 0.1718), abs=5e-5)
    assert wilson(20, 20) == pytest.approx((1, 1 - 0.1611, 1), abs=5e-5)


def test_wilson_stays_inside_and_around_the_share() -> None:
    for n in (1, 2, 7, 50):
        for successes in range(n + 1):
            value, low, high = wilson(successes, n)
            assert 0 <= low <= value <= high <= 1
            assert high - low > 0


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} successes of {n}"):
        wilson(successes, n)


@pytest.mark.parametrize(
    ("freedom", "value"),
    [
        (1, 12.70620474),
        (2, 4.30265273),
        (3, 3.18244631),
        (4, 2.77644511),
        (9, 2.26215716),
        (30, 2.04227246),
        (120, 1.97993041),
    ],
)
def test_t_quantile_against_tables(freedom: int, value: float) -> None:
    assert t_quantile(freedom) == pytest.approx(value, abs=1e-8)


def test_t_quantile_goes_on_smoothly_to_the_normal() -> None:
    steps = [t_quantile(n) - t_quantile(n + 1) for n in (198, 199, 200)]
    assert steps == sorted(steps, reverse=True)
    assert steps[1] == pytest.approx((steps[0] + steps[2]) / 2, rel=1e-3)
    assert t_quantile(10**9) == pytest.approx(1.959963985, abs=1e-8)
    with pytest.raises(ValueError, match="0 degrees"):
        t_quantile(0)


def test_t_interval_hand_values() -> None:
    # mean 2, s 1, n 3: 2 -+ 4.302653 / sqrt(3)
    assert t_interval([1, 2, 3]) == pytest.approx((2, 2 - 2.484138, 2 + 2.484138), abs=1e-6)
    assert t_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)
    value, low, high = t_interval([0.7])
    assert value == 0.7
    assert math.isnan(low)
    assert math.isnan(high)
    with pytest.raises(ValueError, match="no values"):
        t_interval([])


def test_t_interval_covers_the_mean_19_times_in_20() -> None:
    draw = random.Random(0)
    samples = ([draw.gauss(3, 2) for _ in range(4)] for _ in range(4000))
    inside = sum(low <= 3 <= high for _, low, high in map(t_interval, samples))
    # Standard deviation of the share: 0.0034.
    assert inside / 4000 == pytest.approx(0.95, abs=0.012)


def test_paired_difference_uses_the_pairing() -> None:
    # Differences 1, 0, 0, -0 ... : mean 1/4, s = 1/2, n = 4: half width 3.182446 / 4
    assert paired_difference([1, 1, 0, 1], [0, 1, 0, 1]) == pytest.approx(
        (0.25, 0.25 - 0.7956116, 0.25 + 0.7956116), abs=1e-6
    )
    a = [float(i % 2) for i in range(100)]
    nearly = [0.0, *a[1:-1], 0.0]
    swapped = a[1:] + a[:1]
    narrow, wide = paired_difference(a, nearly), paired_difference(a, swapped)
    assert narrow.high - narrow.low < 0.1 * (wide.high - wide.low)
    assert paired_difference([True, False], [False, False]).value == 0.5
    with pytest.raises(ValueError, match="2 scores against 1"):
        paired_difference([1, 0], [1])


def test_t_test_has_the_tables_levels_and_agrees_with_the_interval() -> None:
    # Three values with mean m and deviation 1: t = m sqrt(3); 4.302653 is the 5 % point, df 2.
    edge = 4.302653 / 3**0.5
    assert t_test([edge - 1, edge, edge + 1]) == pytest.approx(0.05, abs=1e-6)
    assert t_test([12.706205 - 1, 12.706205 + 1]) == pytest.approx(0.05, abs=1e-6)  # df 1, s sqrt 2
    for shift in (-2.0, -0.4, 0.1, 3.0, 9.0):
        values = [shift + x for x in (-1.0, 0.3, 0.7)]
        _, low, high = t_interval(values)
        assert (t_test(values) <= 0.05) == (low > 0 or high < 0)
    assert t_test([0.3]) == 1.0 == t_test([0.0, 0.0]) and t_test([0.2, 0.2]) == 0.0
