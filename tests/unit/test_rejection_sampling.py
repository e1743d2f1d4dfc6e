"""Fine-tuning on right responses only: which tokens count and how much, and what a plan needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from masters.errors import RecipeError
from masters.plan import Plan, make_plan
from masters.recipe import load_recipe
from masters.specs import TrainSpec
from masters.training.groups import Group, Response, make_rows
from masters.training.objective import NllTerm, RewardSettings, StepSums, micro_batch_loss

KEPT = (NllTerm(on="responses", correct=True),)


def group(name: str, *responses: tuple[tuple[int, ...], float | None]) -> Group:
    sides = ["teacher", "student", "student"]
    return Group(
        question_id=name, student_prompt=cast(Any, None), teacher_prompt=None,
        responses=tuple(
            Response(token_ids=ids, source=side, accuracy=accuracy)
            for (ids, accuracy), side in zip(responses, sides, strict=False)
        ),
    )  # fmt: skip


GROUPS = [
    group("two right", ((1, 2), 1.0), ((1, 2), 1.0), ((3,), 0.0)),
    group("none right", ((4,), 0.0), ((5, 6), 0.5)),
    group("one of two", ((7,), 0.0), ((8, 9, 10, 11), 1.0)),
]


def slopes(groups: list[Group], sums: StepSums, terms: tuple[NllTerm, ...] = KEPT) -> list[float]:
    """d loss / d log pi of each token of the distinct rows, Q = 3."""
    rows = make_rows(groups)
    logp_N = torch.linspace(-1, -2, len(rows.targets_N), dtype=torch.float64, requires_grad=True)
    loss, _ = micro_batch_loss(
        rows, torch.zeros_like(logp_N), logp_N, terms=terms, rewards=RewardSettings(),
        questions=3, sums=sums,
    )  # fmt: skip
    loss.backward()
    assert logp_N.grad is not None
    assert loss.item() == pytest.approx((logp_N.grad * logp_N).sum().item(), abs=1e-12)
    return logp_N.grad.tolist()


def test_by_hand() -> None:
    """Right responses weigh 1 / (Q K T), K right ones; a duplicate counts twice; Q counts all."""
    sums = StepSums()
    expected = [-1 / 6, -1 / 6, 0, 0, 0, 0, 0, -1 / 12, -1 / 12, -1 / 12, -1 / 12]
    assert slopes(GROUPS, sums) == pytest.approx(expected, abs=1e-7)
    assert sums.silent_groups == 1 and sums.groups == 3
    assert sums.rewards == {"accuracy/teacher": [1, 0, 0], "accuracy/student": [1, 0, 0.5, 1]}
    mean = [-2 / 18, -2 / 18, -1 / 9, -1 / 6, -1 / 12, -1 / 12, -1 / 6, *[-1 / 24] * 4]
    everything = (NllTerm(on="responses"),)
    assert slopes(GROUPS, StepSums(), everything) == pytest.approx(mean, abs=1e-7)


def test_a_step_does_not_depend_on_its_micro_batches() -> None:
    """A micro-batch in which nothing is right adds nothing, and no NaN."""
    apart = [slope for one in GROUPS for slope in slopes([one], StepSums())]
    assert apart == pytest.approx(slopes(GROUPS, StepSums()), abs=1e-12)
    assert slopes([GROUPS[1]], StepSums()) == [0, 0, 0]


def plan_of(out: Path, *overrides: str) -> Plan:
    return make_plan(load_recipe("rejection_sampling", "tiny", overrides), out)


def test_responses_are_judged_without_a_policy_term(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    train = plan.by_name["train/0-teacher"]
    assert {role for role in train.inputs if role != "student"} == {
        f"{what}.{side}" for what in ("responses", "rewards") for side in ("teacher", "student")
    }
    assert isinstance(train.spec, TrainSpec) and train.spec.teacher is None
    both = make_plan(load_recipe("distill_responses", "tiny"), tmp_path)
    for side in ("teacher", "student"):
        name = f"generate/0-teacher/{side}"
        assert plan.by_name[name].folder == both.by_name[name].folder, "the same responses"
    every = plan_of(tmp_path, "method.objective.0.keep=all")
    assert not any(stage.kind == "judge" for stage in every.stages)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("method.objective.0.on=labels", "is 'correct' on labels"),
        ("method.rewards.accuracy=null", "expected method.rewards.accuracy"),
        ("method.objective=[{kind: nll, on: labels, keep: right}]", "keep"),
    ],
)
def test_refused(override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe("rejection_sampling", "tiny", [override])
