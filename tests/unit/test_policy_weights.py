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


def slopes(
    term: GrpoTerm,
    rewards: RewardSettings = RewardSettings(distillation=False),  # noqa: B008
    divergence: tuple[float, ...] = (0.0,) * 4,
) -> list[float]:
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
        rows, torch.tensor(divergence, dtype=torch.float64), logp_N, terms=(term,),
        rewards=rewards, questions=1, sums=StepSums(),
    )  # fmt: skip
    loss.backward()
    assert logp_N.grad is not None
    return logp_N.grad.tolist()


@pytest.mark.parametrize("students_only", [False, True])
def test_by_hand(students_only: bool) -> None:
    """R = 1, 0, 0: mean 1/3, std 1/sqrt(3), A = 2/sqrt(3), -1/sqrt(3) twice; each over G T."""
    unit = 3**-0.5
    teacher = 0.0 if students_only else -2 * unit / 6
    expected = [teacher, teacher, unit / 3, unit / 3]
    found = slopes(GrpoTerm(kl=0.1, students_only=students_only))
    assert found == pytest.approx(expected, abs=1e-7)


def test_what_is_easy_and_wrong_earns_nothing() -> None:
    """D = 0.2 (right), 0.1, 0.3 (wrong): R_distill = 0.5, 1, 0.

    Earned by all, R = 1.5, 1, 0: mean 5/6, std sqrt(7/12). By right answers, R = 1.5, 0, 0, whose
    advantages are those of 1, 0, 0.
    """
    divergence, std = (0.25, 0.15, 0.1, 0.3), (7 / 12) ** 0.5
    all_of_them = slopes(GrpoTerm(), RewardSettings(), divergence)
    expected = [-(2 / 3) / std / 6, -(2 / 3) / std / 6, -(1 / 6) / std / 3, (5 / 6) / std / 3]
    assert all_of_them == pytest.approx(expected, abs=1e-7)
    right = slopes(GrpoTerm(), RewardSettings(earned_by_right=True), divergence)
    assert right == pytest.approx(slopes(GrpoTerm()), abs=1e-7)


def test_what_the_keys_become() -> None:
    assert _term(Grpo()) == GrpoTerm()
    assert _term(Grpo(students_only=True)) == GrpoTerm(students_only=True)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "method.rewards={accuracy: null, distillation: {earned_by: right}}",
            "nothing says what is right",
        ),
        ("method.rewards.distillation={earned_by: right, normalise: false}", "normalise: true"),
    ],
)
def test_refused(override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe("masters", "tiny", [override])
