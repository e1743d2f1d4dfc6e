"""The policy term's say over the teacher's responses, and the floor under its advantages."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from masters.errors import RecipeError
from masters.recipe import Grpo, load_recipe
from masters.stages.train import _term
from masters.training.groups import Group, Response, make_rows
from masters.training.objective import GrpoTerm, RewardSettings, StepSums, micro_batch_loss


def slopes(term: GrpoTerm) -> list[float]:
    """d loss / d log pi of a right answer (2 tokens) of the teacher and two wrong student ones."""
    answers = (((1, 2), "teacher", 1.0), ((3,), "student", 0.0), ((4,), "student", 0.0))
    responses = tuple(
        Response(token_ids=ids, source=source, accuracy=right, reference=(-1.0,) * len(ids))
        for ids, source, right in answers
    )
    none = cast(Any, None)
    rows = make_rows(
        [Group(question_id="q", student_prompt=none, teacher_prompt=none, responses=responses)]
    )
    logp_N = torch.full((4,), -1.0, dtype=torch.float64, requires_grad=True)
    loss, _ = micro_batch_loss(
        rows, torch.zeros_like(logp_N), logp_N, terms=(term,),
        rewards=RewardSettings(distillation=False), questions=1, sums=StepSums(),
    )  # fmt: skip
    loss.backward()
    assert logp_N.grad is not None
    return logp_N.grad.tolist()


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_by_hand(weight: float) -> None:
    """R = 1, 0, 0: mean 1/3, std 1/sqrt(3), A = 2/sqrt(3), -1/sqrt(3) twice; each over G T."""
    unit = 3**-0.5
    expected = [-weight * 2 * unit / 6, -weight * 2 * unit / 6, unit / 3, unit / 3]
    assert slopes(GrpoTerm(kl=0.1, teacher_weight=weight)) == pytest.approx(expected, abs=1e-7)


def test_the_floor_reaches_the_loss() -> None:
    """max(0.577, 2) = 2: A = 1/3, -1/6 twice."""
    expected = [-1 / 18, -1 / 18, 1 / 18, 1 / 18]
    assert slopes(GrpoTerm(min_std=2.0)) == pytest.approx(expected, abs=1e-7)


def test_what_the_keys_become() -> None:
    assert _term(Grpo()) == GrpoTerm()
    assert _term(Grpo(students_only=True)) == GrpoTerm(teacher_weight=0.0)
    assert _term(Grpo(teacher_weight=0.5, min_std=0.1)) == GrpoTerm(teacher_weight=0.5, min_std=0.1)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "method.objective.0={kind: grpo, students_only: true, teacher_weight: 0.5}",
            "expected one of the",
        ),
        ("method.objective.0.teacher_weight=1.5", "teacher_weight"),
        ("method.objective.0.min_std=-1", "min_std"),
    ],
)
def test_refused(override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe("masters", "tiny", [override])
