"""The rule of `masters calibrate` on tables made by hand, and the interval beneath it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from masters.calibration.recommendation import (
    FEWEST,
    MOST,
    Measured,
    choose_step,
    questions_needed,
    recommend,
    verdict,
)
from masters.evaluation.statistics import Interval, paired_share_difference
from masters.ratios import mask_ratios, ratio_text

Z = 1.959963984540054


def row(ratio: int, correct: str) -> Measured:
    """One character a question, 1 for a right answer."""
    none = Interval(0.0, 0.0, 0.0)
    return Measured(
        ratio=ratio, correct=tuple(bit == "1" for bit in correct), changed=0.0,
        entropy=none, jsd=none, zeros=0.0, seconds=0.0,
    )  # fmt: skip


def table(n: int, right: int, *losses: tuple[int, int]) -> list[Measured]:
    """The whole teacher right on the first ``right`` of n; then (gained, lost) by ratio."""
    rows = [row(0, "1" * right + "0" * (n - right))]
    for place, (gained, lost) in enumerate(losses, start=1):
        bits = "0" * lost + "1" * (right - lost) + "1" * gained + "0" * (n - right - gained)
        rows.append(row(1000 * place, bits))
    return rows


# ------------------------------------------------------------------------- the paired interval


def constrained(difference: float, gained: int, lost: int, n: int) -> float:
    """The score statistic with the likeliest q found by search, not by formula."""
    low, high = max(0.0, -difference), (1 - difference) / 2
    grid = np.linspace(low, high, 200_003)[1:-1]
    same = n - gained - lost
    likelihood = same * np.log(1 - 2 * grid - difference)
    likelihood = likelihood + gained * np.log(grid + difference) + lost * np.log(grid)
    q = grid[likelihood.argmax()]
    spread = math.sqrt(n * (2 * q + difference - difference**2))
    return (gained - lost - n * difference) / spread


@pytest.mark.parametrize(("gained", "lost", "n"), [(3, 9, 60), (1, 0, 44), (11, 63, 2000)])
def test_the_bounds_lie_where_the_score_is_z(gained: int, lost: int, n: int) -> None:
    found = paired_share_difference(gained, lost, n)
    assert found.value == (gained - lost) / n
    assert found.low < found.value < found.high
    assert constrained(found.low, gained, lost, n) == pytest.approx(Z, abs=2e-3)
    assert constrained(found.high, gained, lost, n) == pytest.approx(-Z, abs=2e-3)


def test_it_keeps_a_width_where_no_answer_differs() -> None:
    for n in (1, 20, 1000):
        half = Z**2 / (n + Z**2)
        found = paired_share_difference(0, 0, n)
        assert found == pytest.approx((0, -half, half), abs=1e-9)


def test_it_is_symmetric_and_stays_inside() -> None:
    for gained, lost in ((0, 7), (4, 9), (10, 0), (0, 10)):
        there, back = paired_share_difference(gained, lost, 10 + 3), paired_share_difference(
            lost, gained, 10 + 3
        )  # fmt: skip
        assert there == pytest.approx((-back.value, -back.high, -back.low), abs=1e-12)
        assert -1 <= there.low <= there.high <= 1
    assert paired_share_difference(0, 5, 5).low == -1


def test_it_holds_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    held = []
    for gained, lost, n in ((0.01, 0.03, 300), (0.0, 0.01, 200), (0.1, 0.15, 100)):
        counts = random.multinomial(n, [gained, lost, 1 - gained - lost], size=1500)
        inside = 0
        for a, b, _ in counts:
            found = paired_share_difference(float(a), float(b), n)
            inside += found.low <= gained - lost <= found.high
        held.append(inside / len(counts))
    assert all(0.93 <= share <= 0.99 for share in held), held


@pytest.mark.parametrize("counts", [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_impossible_counts(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected counts"):
        paired_share_difference(*counts)


# ------------------------------------------------------------------------------------- the rule


def test_the_verdicts() -> None:
    assert verdict(Interval(-0.01, -0.02, 0.0), 0.02) == "kept"
    assert verdict(Interval(-0.01, -0.021, 0.0), 0.02) == "open"
    assert verdict(Interval(-0.04, -0.05, -0.021), 0.02) == "lost"


def test_the_last_ratio_kept_going_up() -> None:
    found = recommend(table(1000, 900, (0, 0), (1, 3), (0, 5), (2, 40), (0, 300)), 0.02)
    assert (found.max_ratio, found.step, found.stages) == (3000, 500, 7)
    assert "At 0.4" in found.reason and "-3.8 points" in found.reason
    assert found.questions_needed is None


def test_a_gap_is_not_stepped_over() -> None:
    found = recommend(table(1000, 900, (0, 0), (0, 60), (0, 0)), 0.02)
    assert found.max_ratio == 1000
    assert "At 0.2" in found.reason and "certainly" in found.reason


def test_all_kept_says_that_more_may_be() -> None:
    found = recommend(table(1000, 900, (0, 0), (3, 2)), 0.02)
    assert found.max_ratio == 2000
    assert "largest ratio tested" in found.reason


def test_not_even_the_smallest() -> None:
    found = recommend(table(1000, 900, (0, 200), (0, 300)), 0.02)
    assert (found.max_ratio, found.step, found.stages) == (0, None, 1)
    assert "At 0.1 the accuracy changes by -20.0 points" in found.reason


def test_few_questions_decide_nothing_even_where_no_answer_changes() -> None:
    found = recommend(table(20, 18, (0, 0), (0, 0)), 0.02)
    assert found.max_ratio == 0
    assert found.questions_needed is not None
    # z^2 / (n + z^2) <= 0.02
    assert found.questions_needed == math.ceil(Z**2 * (1 / 0.02 - 1))
    assert f"about {found.questions_needed} could" in found.reason


def test_as_many_questions_as_it_asks_for_are_enough() -> None:
    for gained, lost, n in ((2, 6, 200), (0, 1, 40), (10, 10, 150)):
        needed = questions_needed(gained, lost, n, 0.05)
        assert needed is not None and needed > 1
        for size, enough in ((needed, True), (needed - 1, False)):
            found = paired_share_difference(gained * size / n, lost * size / n, size)
            assert (found.low >= -0.05) is enough
    assert questions_needed(0, 10, 200, 0.05) is None


def test_a_teacher_with_nothing_to_lose_gets_no_mask() -> None:
    found = recommend(table(1000, 15, (0, 0)), 0.02)
    assert found.max_ratio == 0
    assert "1.5 % of the questions" in found.reason and "prompt" in found.reason


# ------------------------------------------------------------------------------------- the step


@pytest.mark.parametrize(
    ("max_ratio", "step"),
    [
        (500, 100), (1000, 200), (1500, 500), (2000, 500), (2500, 500), (3000, 500), (4000, 500),
        (4500, 1500), (5000, 1000), (5500, 1100), (6000, 1000), (7000, 1000), (8000, 1000),
        (9000, 1500), (3700, 740), (7, 1), (1, 1), (11, 11),
    ],
)  # fmt: skip
def test_steps(max_ratio: int, step: int) -> None:
    assert choose_step(max_ratio) == step


def test_every_step_is_legal_and_most_give_a_schedule_of_the_right_length() -> None:
    for max_ratio in range(1, 10_000):
        step = choose_step(max_ratio)
        stages = len(mask_ratios(ratio_text(max_ratio), ratio_text(step)))
        assert 2 <= stages <= MOST
        if max_ratio % 500 == 0:
            assert stages >= FEWEST
            assert step % 100 == 0
    with pytest.raises(ValueError, match="above 0"):
        choose_step(0)
