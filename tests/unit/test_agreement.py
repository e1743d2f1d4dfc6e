"""Cohen's kappa and its interval: published tables, a twin in matrices, coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from masters.evaluation.agreement import cohen_kappa

# Diagnoses of 100 subjects: Fleiss, Statistical Methods for Rates and Proportions, table 13.1.
DIAGNOSES = ((75, 1, 4), (5, 4, 1), (0, 0, 10))
# Siskel and Ebert: Agresti, Categorical Data Analysis.
FILMS = ((24, 8, 13), (8, 13, 11), (10, 9, 64))
# Two pathologists on carcinoma: the same, section 10.5.
CARCINOMA = ((22, 2, 2, 0), (5, 7, 14, 0), (0, 2, 36, 0), (0, 1, 17, 10))
# Husbands and wives: `SexualFun` of the R package vcd, whose `Kappa` prints these.
COUPLES = ((7, 7, 2, 3), (2, 8, 3, 7), (1, 5, 4, 9), (2, 8, 9, 14))


@pytest.mark.parametrize(
    ("table", "kappa", "error", "digits"),
    [
        (DIAGNOSES, 0.676, 0.088, 3),
        (FILMS, 0.389, 0.060, 3),
        (CARCINOMA, 0.493, 0.057, 3),
        (COUPLES, 0.1293, 0.0686, 4),
    ],
)
def test_published_tables(
    table: tuple[tuple[int, ...], ...], kappa: float, error: float, digits: int
) -> None:
    value, low, high = cohen_kappa(table)
    assert round(value, digits) == kappa
    assert round((high - low) / 2 / 1.959964, digits) == error


def test_a_table_worked_out_by_hand() -> None:
    # p_o = 0.7, p_e = 0.5: kappa 0.4. Margins are all 1/2, so that the first sum is
    # 0.7 (1 - 0.6)^2 = 0.112, the second 0.6^2 x 0.3 = 0.108, the last (0.4 - 0.3)^2 = 0.01.
    value, low, high = cohen_kappa([[35, 15], [15, 35]])
    error = math.sqrt((0.112 + 0.108 - 0.01) / (100 * 0.25))
    assert (value, low, high) == pytest.approx(
        (0.4, 0.4 - 1.959964 * error, 0.4 + 1.959964 * error)
    )


def twin(counts: NDArray[np.float64]) -> tuple[float, float]:
    """Kappa and its standard error by the delta method: the gradient of kappa in p, in matrices."""
    n = counts.sum()
    p = counts / n
    size = len(p)

    def kappa(shares: NDArray[np.float64]) -> float:
        shares = shares / shares.sum()
        chance = shares.sum(1) @ shares.sum(0)
        return float((np.trace(shares) - chance) / (1 - chance))

    gradient = np.empty_like(p)
    for i in range(size):
        for j in range(size):
            step = np.zeros_like(p)
            step[i, j] = 1e-6
            gradient[i, j] = (kappa(p + step) - kappa(p - step)) / 2e-6
    mean = float((p * gradient).sum())
    return kappa(p), math.sqrt(float((p * gradient**2).sum() - mean**2) / n)


def test_against_the_delta_method_on_random_tables() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        size = int(random.integers(2, 6))
        table = random.integers(1, 40, (size, size)).astype(np.float64)
        table += np.diag(random.integers(0, 60, size))
        value, low, high = cohen_kappa(table.tolist())
        kappa, error = twin(table)
        assert value == pytest.approx(kappa, abs=1e-12)
        assert (high - low) / 2 == pytest.approx(1.959963985 * error, rel=1e-6)


def test_bounds_and_symmetry() -> None:
    assert cohen_kappa([[30, 0], [0, 12]]) == pytest.approx((1, 1, 1))
    value, low, high = cohen_kappa([[0, 10], [10, 0]])
    assert value == pytest.approx(-1) and low == -1 and high <= 1
    assert cohen_kappa([[30, 20], [15, 10]]).value == pytest.approx(0, abs=1e-12)
    turned = tuple(zip(*DIAGNOSES, strict=True))
    assert cohen_kappa(turned) == pytest.approx(cohen_kappa(DIAGNOSES))
    assert all(math.isnan(part) for part in cohen_kappa([[40, 0], [0, 0]]))


def test_no_table() -> None:
    for table in ([], [[1, 2]], [[0, 0], [0, 0]], [[1, -1], [0, 3]]):
        with pytest.raises(ValueError, match="expected"):
            cohen_kappa(table)


def test_the_interval_covers_a_known_kappa_19_times_in_20() -> None:
    random = np.random.default_rng(1)
    shares = np.array([[0.5, 0.06, 0.02], [0.05, 0.15, 0.04], [0.03, 0.02, 0.13]])
    chance = shares.sum(1) @ shares.sum(0)
    true = (np.trace(shares) - chance) / (1 - chance)
    samples = random.multinomial(300, shares.ravel(), size=2000).reshape(-1, 3, 3)
    found = [cohen_kappa(sample.tolist()) for sample in samples]
    inside = sum(low <= true <= high for _, low, high in found) / len(found)
    assert 0.93 <= inside <= 0.97
