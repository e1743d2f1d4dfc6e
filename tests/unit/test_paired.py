"""Tests of a difference: by hand, against twins that share no code, and by simulation."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction
from statistics import NormalDist, fmean

import numpy as np
import pytest

from masters.evaluation.paired import LEVEL, holm, mcnemar, paired_bootstrap, sign_flip
from masters.evaluation.statistics import mean_score, wilson

PHI = NormalDist()

# ----------------------------------------------------------------------------------- McNemar


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 5) == pytest.approx(2 / 2**5)
    # C(20, 0) + ... + C(20, 5) = 21,700
    assert mcnemar(5, 15) == pytest.approx(2 * 21_700 / 2**20)
    assert mcnemar(0, 0) == mcnemar(7, 7) == mcnemar(3, 4) == 1
    # Approval ratings, Agresti: `mcnemar.exact` of R's exact2x2 prints 3.716e-05.
    assert mcnemar(86, 150) == pytest.approx(3.716e-5, abs=5e-9)
    with pytest.raises(ValueError, match="-1 gained"):
        mcnemar(-1, 3)


def exact(gained: int, lost: int) -> float:
    n = gained + lost
    tail = sum(math.comb(n, i) for i in range(min(gained, lost) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**n)))


def test_mcnemar_against_whole_numbers() -> None:
    for gained, lost in itertools.product(range(25), range(25)):
        assert mcnemar(gained, lost) == pytest.approx(exact(gained, lost), rel=1e-12)
    for gained, lost in ((300, 350), (1000, 1100), (4, 2000), (2500, 2501)):
        assert mcnemar(gained, lost) == pytest.approx(exact(gained, lost), rel=1e-10)
    assert 0 < mcnemar(500_000, 502_100) < 1


def test_mcnemar_is_symmetric_and_falls_with_imbalance() -> None:
    row = [mcnemar(k, 40 - k) for k in range(21)]
    assert row == sorted(row)
    assert all(mcnemar(a, b) == mcnemar(b, a) for a, b in ((3, 9), (0, 100), (51, 60)))


def called(n: int, p_value: list[float]) -> float:
    """How often a difference is called where there is none, with n questions answered apart."""
    return sum(math.comb(n, k) for k in range(n + 1) if p_value[k] <= LEVEL) / 2**n


def test_the_size_of_mcnemar_is_at_most_five_per_cent_for_every_n() -> None:
    for n in range(1, 200):
        assert called(n, [mcnemar(k, n - k) for k in range(n + 1)]) <= LEVEL
    # What the docstring says of the mid-p variant, which is therefore not used.
    n = 27
    mid = [exact(k, n - k) - math.comb(n, k) / 2**n for k in range(n + 1)]
    assert called(n, mid) == pytest.approx(0.052, abs=5e-4)


def test_mcnemar_calls_no_difference_between_equal_models_and_finds_a_real_one() -> None:
    draw = np.random.default_rng(0)
    n, times = 400, 4000
    # Two models that agree on three quarters of the questions, both right on 60 %.
    kinds = draw.multinomial(n, [0.475, 0.125, 0.125, 0.275], size=times)
    size = fmean(mcnemar(int(k[1]), int(k[2])) <= LEVEL for k in kinds)
    assert 0.02 < size <= 0.05
    kinds = draw.multinomial(n, [0.475, 0.165, 0.085, 0.275], size=times)
    assert fmean(mcnemar(int(k[1]), int(k[2])) <= LEVEL for k in kinds) > 0.8


# --------------------------------------------------------------------------------- sign flip


def test_sign_flip_by_hand() -> None:
    # Sums of +-0.5 +-0.6: two of four are as far from 0 as 1.1. A sample of two proves nothing.
    assert sign_flip([0.5, 0.6]) == pytest.approx(0.5, abs=0.02)
    assert sign_flip([0.0, 0.0]) == 1.0
    assert sign_flip([0.3, -0.3]) == 1.0
    # All six on one side: 2 / 64. Four standard deviations of 10,000 draws are 0.007.
    assert sign_flip([0.7] * 6) == pytest.approx(2 / 2**6, abs=0.007)
    assert sign_flip([0.7] * 200, draws=999) == 1 / 1000, "never 0"


def test_sign_flip_against_every_sign() -> None:
    draw = random.Random(3)
    for size in (5, 9, 12):
        differences = [draw.uniform(-0.6, 1) for _ in range(size)]
        seen = abs(sum(differences))
        sums = [
            abs(sum(sign * d for sign, d in zip(signs, differences, strict=True)))
            for signs in itertools.product((-1, 1), repeat=size)
        ]
        whole = fmean(value >= seen - 1e-12 for value in sums)
        assert sign_flip(differences) == pytest.approx(whole, abs=4 * math.sqrt(0.25 / 10_000))


@pytest.mark.parametrize(("gained", "lost"), [(3, 9), (20, 35), (60, 61), (0, 7)])
def test_sign_flip_of_right_and_wrong_is_mcnemar(gained: int, lost: int) -> None:
    differences = [1.0] * gained + [-1.0] * lost + [0.0] * 50
    assert sign_flip(differences) == pytest.approx(mcnemar(gained, lost), abs=0.02)


def test_the_size_of_sign_flip_is_at_most_five_per_cent() -> None:
    draw = np.random.default_rng(4)
    grades = np.array([0, 0.3, 0.6, 0.9, 1.0])
    times = 4000
    first, second = draw.choice(grades, (2, times, 60), p=[0.3, 0.1, 0.1, 0.1, 0.4])
    # Coins of their own for each: shared ones would make the 4000 p-values err together.
    p_values = (sign_flip(row, seed=k, draws=999) for k, row in enumerate(first - second))
    size = fmean(p <= LEVEL for p in p_values)
    # Standard deviation of the share: 0.0034.
    assert 0.035 < size <= 0.05 + 2 * 0.0034


def test_seeds_give_the_same_numbers_again() -> None:
    draw = random.Random(0)
    differences = [draw.uniform(-1, 1) for _ in range(50)]
    for function in (sign_flip, paired_bootstrap):
        assert function(differences, seed=1) == function(differences, seed=1)
        assert function(differences, seed=1) != function(differences, seed=2)


# --------------------------------------------------------------------------------- bootstrap


def test_bootstrap_by_hand() -> None:
    # Means of two draws from {0, 1}: 0, 1/2, 1 with 1/4, 1/2, 1/4. No bias, no skewness.
    assert paired_bootstrap([0.0, 1.0]) == (0.5, 0.0, 1.0)
    assert paired_bootstrap([0.25] * 9) == (0.25, 0.25, 0.25)
    value, low, high = paired_bootstrap([0.5])
    assert value == 0.5 and math.isnan(low) and math.isnan(high)
    with pytest.raises(ValueError, match="no differences"):
        paired_bootstrap([])


def test_bootstrap_of_a_binomial_worked_out() -> None:
    # 10 of 40 questions gained: drawn means are Binomial(40, 1/4) / 40, whose quantiles are known.
    n, p = 40, 0.25
    shares = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    bias = PHI.inv_cdf(sum(shares[:10]) + shares[10] / 2)
    skewness = (1 - 2 * p) / math.sqrt(n * p * (1 - p)) / 6
    expected = []
    for z in (PHI.inv_cdf(0.025), PHI.inv_cdf(0.975)):
        at = PHI.cdf(bias + (bias + z) / (1 - skewness * (bias + z)))
        total = itertools.accumulate(shares)
        expected.append(next(k for k, share in enumerate(total) if share >= at) / n)
    found = paired_bootstrap([1.0] * 10 + [0.0] * 30, draws=100_000)
    assert found == pytest.approx((p, *expected))
    assert found.high - p > p - found.low, "the skewness shows"


def bootstrap_twin(differences: list[float], draws: int) -> tuple[float, float]:
    """BCa as Efron's paper has it, with the jackknife written out: no numpy, no counts."""
    draw, n, mean = random.Random(9), len(differences), fmean(differences)
    means = sorted(fmean(draw.choices(differences, k=n)) for _ in range(draws))
    bias = PHI.inv_cdf(sum(value < mean for value in means) / draws)
    left_out = [(sum(differences) - d) / (n - 1) for d in differences]
    centre = fmean(left_out)
    cubes = sum((centre - value) ** 3 for value in left_out)
    acceleration = cubes / (6 * sum((centre - value) ** 2 for value in left_out) ** 1.5)
    bounds = []
    for z in (-1.959963985, 1.959963985):
        at = PHI.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))
        bounds.append(means[min(draws - 1, int(at * draws))])
    return bounds[0], bounds[1]


def test_bootstrap_against_its_twin() -> None:
    draw = random.Random(5)
    differences = [draw.betavariate(0.4, 2.0) - 0.05 for _ in range(60)]
    _, low, high = paired_bootstrap(differences)
    assert (low, high) == pytest.approx(bootstrap_twin(differences, 10_000), abs=0.003)


def test_bootstrap_covers_the_mean_19_times_in_20() -> None:
    draw = np.random.default_rng(6)
    grades = np.array([-1.0, -0.4, 0.0, 0.3, 0.6, 1.0])
    shares = np.array([0.03, 0.05, 0.72, 0.08, 0.06, 0.06])
    true = float(grades @ shares)
    samples = draw.choice(grades, (1500, 150), p=shares)
    found = [paired_bootstrap(row, seed=k, draws=1000) for k, row in enumerate(samples)]
    inside = fmean(low <= true <= high for _, low, high in found)
    assert 0.93 <= inside <= 0.97
    assert all(-1 <= low <= value <= high <= 1 for value, low, high in found)


# ------------------------------------------------------------------------------- Holm, scores


def test_holm_by_hand() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, and never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_holm_is_what_its_step_down_rule_rejects() -> None:
    draw = random.Random(7)
    for _ in range(200):
        p = [draw.random() ** 3 for _ in range(draw.randint(1, 8))]
        rejected: set[int] = set()
        for step, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
            if p[index] > LEVEL / (len(p) - step):
                break
            rejected.add(index)
        assert {i for i, value in enumerate(holm(p)) if value <= LEVEL} == rejected
        assert all(p[i] <= value <= 1 for i, value in enumerate(holm(p)))


def test_holm_over_ten_categories_without_a_difference_calls_one_1_time_in_20() -> None:
    draw = random.Random(8)
    times = 4000
    plain = corrected = 0
    for _ in range(times):
        p = [draw.random() for _ in range(10)]
        plain += min(p) <= LEVEL
        corrected += min(holm(p)) <= LEVEL
    assert plain / times > 0.35
    assert corrected / times <= LEVEL + 2 * 0.0035


def test_mean_score_is_wilson_for_right_and_wrong_and_t_for_grades() -> None:
    assert mean_score([1, 0, 1.0, True]) == wilson(3, 4)
    # mean 0.5, s 0.5, n 3: half width 4.302653 x 0.5 / sqrt(3) = 1.24, more than there is room for
    assert mean_score([0.0, 0.5, 1.0]) == (0.5, 0.0, 1.0)
    # mean 0.6, s 0.1 sqrt(8 / 7), n 8: half width 2.364624 x 0.1069045 / sqrt(8)
    assert mean_score([0.5, 0.7] * 4) == pytest.approx((0.6, 0.6 - 0.0893743, 0.6 + 0.0893743))
    # no spread to go by: that of right and wrong answers with the same mean
    assert mean_score([0.3]) == wilson(0.3, 1)
    assert mean_score([0.3] * 9) == pytest.approx(wilson(2.7, 9))
    for scores in ([], [1.5], [-0.1, 1]):
        with pytest.raises(ValueError):
            mean_score(scores)


def test_mean_score_covers_a_graded_mean_19_times_in_20() -> None:
    draw = np.random.default_rng(10)
    samples = draw.choice([0, 0.3, 0.6, 1.0], (3000, 120), p=[0.4, 0.1, 0.2, 0.3])
    found = [mean_score(row.tolist()) for row in samples]
    assert 0.93 <= fmean(low <= 0.45 <= high for _, low, high in found) <= 0.97
