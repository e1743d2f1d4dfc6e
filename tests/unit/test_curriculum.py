"""The schedule's arithmetic, by hand and by its invariants."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest

from masters.curriculum import (
    iterations,
    mask_ratios,
    mask_stages,
    pairs,
    ratio_at,
    step_questions,
)
from masters.errors import RecipeError
from masters.ratios import ratio_parts, ratio_text
from masters.specs import Schedule


def schedule(**changes: object) -> Schedule:
    values: dict[str, object] = {
        "key": "0",
        "seed": 0,
        "epochs": "1",
        "questions_per_step": 4,
        "ratios": (2000, 1500, 1000, 500, 0),
    }
    return Schedule.model_validate(values | changes)


def test_the_papers_ratios() -> None:
    assert mask_ratios("0.2", "0.05") == (2000, 1500, 1000, 500, 0)
    assert len(mask_ratios(0.4, 0.05)) == 9
    assert mask_ratios(Decimal("0.3"), Fraction(1, 20))[0] == 3000
    assert len(mask_ratios(0.3, 0.05)) == 7, "int(0.3 / 0.05) + 1 in floats would be 6"
    assert mask_ratios("0", "0.05") == (0,)


@pytest.mark.parametrize(
    ("top", "step", "says"),
    [
        ("0.23", "0.05", "0.2 and 0.25"),
        ("0.95", "0.5", "0 and 0.5"),
        ("1.3", "0.05", "Did you mean 0.13"),
        ("0.2", "0", r"\(0, 1\)"),
        ("-0.2", "0.1", "expected a number in"),
        ("0.00001", "0.1", "four decimals"),
        ("nan", "0.1", "expected a number in"),
        ("much", "0.1", "expected a number in"),
    ],
)
def test_refused_ratios(top: str, step: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        mask_ratios(top, step)


def test_ratio_text_is_the_inverse_of_parts() -> None:
    for parts in (0, 1, 500, 2000, 9999):
        assert ratio_parts(ratio_text(parts)) == parts


def test_equation_3_by_hand() -> None:
    """I = 12, M = 5: r[i] = 0.2 - 0.05 floor(5 i / 12)."""
    ratios = [ratio_at(i, schedule(), 12) for i in range(12)]
    assert ratios == [2000] * 3 + [1500] * 2 + [1000] * 3 + [500] * 2 + [0] * 2
    with pytest.raises(IndexError):
        ratio_at(12, schedule(), 12)


@pytest.mark.parametrize("total", [5, 6, 12, 99, 1000])
@pytest.mark.parametrize("top", ["0", "0.2", "0.4", "0.95"])
def test_invariants_of_the_mask_stages(total: int, top: str) -> None:
    ratios = mask_ratios(top, "0.05")
    if total < len(ratios):
        return
    plan = schedule(ratios=ratios)
    walked = [ratio_at(i, plan, total) for i in range(total)]
    assert walked[0] == ratio_parts(top)
    assert walked[-1] == 0
    assert walked == sorted(walked, reverse=True)
    stages = mask_stages(plan, total)
    assert [ratio for ratio, a, b in stages for _ in range(a, b)] == walked
    sizes = [stop - start for _, start, stop in stages]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == total


def test_iterations() -> None:
    assert iterations(50, schedule()) == 12
    assert iterations(50, schedule(epochs="2")) == 25
    assert iterations(30, schedule(epochs="0.7", questions_per_step=3)) == 7, "exact: not 6.99"
    assert iterations(50, schedule(iterations=7)) == 7
    with pytest.raises(RecipeError, match="no single step"):
        iterations(3, schedule())
    with pytest.raises(RecipeError, match="4 iterations cannot hold 5 mask stages"):
        iterations(16, schedule())


def test_every_question_once_per_epoch() -> None:
    plan = schedule(epochs="2")
    order = [index for i in range(24) for index in step_questions(plan, 48, i)]
    assert sorted(order[:48]) == sorted(order[48:]) == list(range(48))
    assert order[:48] != order[48:]


def test_batches_run_over_the_end_of_an_epoch() -> None:
    plan = schedule(epochs="3", ratios=(0,))
    order = [index for i in range(7) for index in step_questions(plan, 10, i)]
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))


def test_shuffle_depends_on_seed_and_key_only() -> None:
    first = step_questions(schedule(), 100, 0)
    assert first == step_questions(schedule(ratios=(0,), epochs="5"), 100, 0)
    assert first != step_questions(schedule(seed=1), 100, 0)
    assert first != step_questions(schedule(key="1"), 100, 0)


def test_a_batch_larger_than_the_data() -> None:
    plan = schedule(questions_per_step=7, epochs="7", ratios=(0,))
    batch = step_questions(plan, 3, 0)
    assert sorted(batch.count(index) for index in range(3)) == [2, 2, 3]


def test_pairs_are_what_is_trained() -> None:
    plan = schedule(epochs="2")
    found = pairs(plan, 50)
    total = iterations(50, plan)
    used = [
        (index, ratio_at(i, plan, total))
        for i in range(total)
        for index in step_questions(plan, 50, i)
    ]
    assert [tuple(pair) for pair in found.tolist()] == list(dict.fromkeys(used))
    middle = pairs(plan, 50, start=5, stop=10)
    assert [tuple(pair) for pair in middle.tolist()] == list(dict.fromkeys(used[20:40]))
