"""Several teachers in phases: who learns from whom, in which state, on which schedule."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from masters.curriculum import step_questions
from masters.errors import RecipeError
from masters.plan import Plan, make_plan, read_plan, write_plan
from masters.plan_view import plan_tree
from masters.recipe import load_recipe
from masters.specs import EvaluateSpec, MaskSpec, TrainSpec

LADDER = """
extends: masters
models:
  student: {tiny: qwen3_vl_100k, sft: {steps: 9}}
  teachers:
    - {name: mid, tiny: qwen3_vl_250k, sft: {steps: 9}}
    - {name: large, tiny: qwen3_vl_1m, sft: {steps: 9}}
data:
  train: {kind: scenes, count: 3200}
  test: {kind: scenes, count: 32}
"""
TWO = "{teacher: mid, mask: {}}, {teacher: large, mask: {max_ratio: 0.4, step: 0.1}, epochs: 2}"
ASSISTANT = "{teacher: large, student: mid, mask: {}}, {teacher: mid, mask: {max_ratio: 0.1}}"
AGAIN = "{teacher: large}, {teacher: mid}, {teacher: student@0, mask: {max_ratio: 0.1}}"


def ladder(folder: Path, phases: str, *overrides: str) -> Plan:
    path = folder / "ladder.yaml"
    path.write_text(LADDER)
    return make_plan(load_recipe(path, None, [f"method.phases=[{phases}]", *overrides]), folder)


def trained(plan: Plan, name: str) -> TrainSpec:
    spec = plan.stage(f"train/{name}").spec
    assert isinstance(spec, TrainSpec)
    return spec


def trained_model(plan: Plan, evaluated: str) -> str:
    """The stage that made the evaluated model."""
    return plan.stage(f"evaluate/{evaluated}").inputs["model"]


def curves(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Evaluation -> ratios."""
    specs = {stage.name: stage.spec for stage in plan.stages}
    return {
        name.removeprefix("evaluate/"): spec.ratios
        for name, spec in specs.items()
        if isinstance(spec, EvaluateSpec)
    }


def test_each_phase_has_its_own_schedule_and_each_teacher_its_own_curve(tmp_path: Path) -> None:
    plan = ladder(tmp_path, TWO)
    first, second = trained(plan, "0-mid"), trained(plan, "1-large")
    assert first.schedule.ratios == (2000, 1500, 1000, 500, 0)
    assert second.schedule.ratios == (4000, 3000, 2000, 1000, 0)
    assert (first.start, first.stop, second.start, second.stop) == (0, 100, 0, 200)
    assert not second.carry_optimiser
    parts = [(part.phase, part.ratio, part.stop) for part in plan.curriculum]
    assert parts[4:6] == [("0-mid", 0, 100), ("1-large", 4000, 40)]
    assert parts[-1] == ("1-large", 0, 200)
    assert curves(plan)["teacher-mid"] == (2000, 1500, 1000, 500, 0)
    assert curves(plan)["teacher-large"] == (4000, 3000, 2000, 1000, 0)
    assert list(curves(plan)) == ["start", "student@0", "student", "teacher-mid", "teacher-large"]
    ended = trained_model(plan, "student@0"), trained_model(plan, "student")
    assert ended == ("train/0-mid", "train/1-large")
    without = ladder(tmp_path, TWO, "evaluation.each_phase=false")
    assert "student@0" not in curves(without)
    masks = {stage.name: stage.spec for stage in plan.stages if stage.kind == "mask"}
    assert {n: s.ratios for n, s in masks.items() if isinstance(s, MaskSpec)} == {
        "mask/mid": (2000, 1500, 1000, 500),
        "mask/large": (4000, 3000, 2000, 1000),
    }


def test_the_orders_of_two_phases_differ(tmp_path: Path) -> None:
    same = "{teacher: mid}, {teacher: mid}"
    plan = ladder(tmp_path, same)
    schedules = [trained(plan, f"{k}-mid").schedule for k in (0, 1)]
    orders = [[i for s in range(100) for i in step_questions(plan, 3200, s)] for plan in schedules]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(3200)), "both see every question"


def test_what_a_later_phase_says_leaves_the_earlier_ones_alone(tmp_path: Path) -> None:
    one = ladder(tmp_path, TWO.split(", {teacher: large")[0])
    two = ladder(tmp_path, TWO)
    shared = [stage.name for stage in one.stages if stage.name.split("/")[1] == "0-mid"]
    assert "train/0-mid" in shared
    assert len(shared) == 7
    assert all(one.stage(name).folder == two.stage(name).folder for name in shared)


def test_an_assistant_learns_first_and_then_teaches(tmp_path: Path) -> None:
    plan = ladder(tmp_path, ASSISTANT)
    assistant, student = plan.stage("train/0-large-to-mid"), plan.stage("train/1-mid")
    assert assistant.inputs["student"] == "model/mid"
    assert assistant.inputs["teacher"] == "model/large"
    assert plan.stage("generate/0-large-to-mid/student").inputs == {"model": "model/mid"}
    assert plan.stage("score/0-large-to-mid/teacher").inputs["reference"] == "model/mid"
    assert student.inputs["student"] == "model/student", "no phase has trained it yet"
    assert student.inputs["teacher"] == assistant.name
    assert student.inputs["thresholds"] == "mask/mid@0"
    assert plan.stage("mask/mid@0").inputs == {"teacher": assistant.name}
    answers = plan.stage("generate/1-mid/teacher").inputs
    assert answers == {"model": assistant.name, "thresholds": "mask/mid@0"}
    assert plan.stage("score/1-mid/student").inputs["reference"] == "model/student"
    assert plan.stage("evaluate/student").inputs == {"model": student.name}
    assert plan.stage("evaluate/teacher-mid").inputs == {"model": "model/mid"}
    assert plan.stage("evaluate/teacher-mid@0").inputs == answers
    assert curves(plan) == {
        "start": (0,),
        "student": (0,),
        "teacher-mid": (0,),
        "teacher-mid@0": (1000, 500, 0),
        "teacher-large": (2000, 1500, 1000, 500, 0),
    }
    assert "mask/mid" not in plan.by_name, "as it came it is never masked"
    seen: set[str] = set()
    for stage in plan.stages:
        assert set(stage.inputs.values()) <= seen, "each after what it reads"
        seen.add(stage.name)
    write_plan(plan)
    assert read_plan(plan.path) == plan


def test_the_run_as_reference_is_the_model_as_it_came(tmp_path: Path) -> None:
    phases = f"{ASSISTANT}, {{teacher: large}}"
    plan = ladder(tmp_path, phases, "method.objective.0.reference=run")
    named = {name: plan.stage(f"score/{name}/teacher").inputs["reference"] for name in
             ("0-large-to-mid", "1-mid", "2-large")}  # fmt: skip
    assert list(named.values()) == ["model/mid", "model/student", "model/student"]


def test_an_earlier_student_teaches(tmp_path: Path) -> None:
    plan = ladder(tmp_path, AGAIN)
    last = plan.stage("train/2-student@0")
    assert last.inputs["teacher"] == "train/0-large"
    assert last.inputs["student"] == "train/1-mid"
    assert plan.stage("mask/student@0").inputs == {"teacher": "train/0-large"}
    assert curves(plan)["teacher-student@0"] == (1000, 500, 0)
    latest = ladder(tmp_path, AGAIN.replace("student@0", "student")).stage("train/2-student")
    assert latest.inputs["teacher"] == latest.inputs["student"] == "train/1-mid"


def test_a_name_means_the_model_as_it_stands(tmp_path: Path) -> None:
    """mid teaches as it came, learns twice, and teaches in both of its later states."""
    phases = (
        "{teacher: mid}, {teacher: large, student: mid}, {teacher: large, student: mid}, "
        "{teacher: mid}, {teacher: mid@1}"
    )
    plan = ladder(tmp_path, phases)
    inputs = [stage.inputs for stage in plan.stages if stage.name.startswith("train/")]
    assert [found["teacher"] for found in inputs] == [
        "model/mid", "model/large", "model/large", "train/2-large-to-mid", "train/1-large-to-mid",
    ]  # fmt: skip
    assert [found["student"] for found in inputs] == [
        "model/student", "model/mid", "train/1-large-to-mid", "train/0-mid", "train/3-mid",
    ]  # fmt: skip


def test_resampling_within_a_ladder(tmp_path: Path) -> None:
    plan = ladder(tmp_path, ASSISTANT, "method.responses.resample=mask_stage")
    ends = [name for name in plan.by_name if name.startswith("train/0-large-to-mid/")]
    assert len(ends) == 5
    for before, after in pairwise(ends):
        assert plan.stage(after).inputs["student"] == before
    assert plan.stage("train/1-mid/0").inputs["teacher"] == ends[-1]
    assert plan.stage("mask/mid@0").inputs == {"teacher": ends[-1]}


REFUSED = [
    ("{teacher: lrge}", "phases[0].teacher is 'lrge'; expected one of models.teachers: mid, large"),
    ("{teacher: large, student: mdi}", "student is 'mdi'; expected student or one of"),
    ("{teacher: student}", "is 'student', which no phase before this one has trained"),
    ("{teacher: large}, {teacher: student@1}", "phases[1].teacher is 'student@1', but no phase"),
    ("{teacher: student@1}, {teacher: large}", "is 'student@1', but no phase of that number"),
    ("{teacher: large}, {teacher: mid@0}", "trains mid; expected a model as it came"),
    ("{teacher: large}, {teacher: student@}", "is 'student@'"),
    ("{teacher: large}, {teacher: student@x}", "expected student@0"),
    ("{teacher: large}, {teacher: student@-1}", "expected student@0"),
    ("{teacher: large}, {teacher: mid, student: mid}", "phases[1].student is 'mid', which neither"),
    ("{teacher: large, student: mid}, {teacher: large}", "with teacher: mid"),
]


@pytest.mark.parametrize(("phases", "says"), REFUSED)
def test_refused(tmp_path: Path, phases: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        ladder(tmp_path, phases)
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_nothing_to_learn_from_oneself_is_refused(tmp_path: Path) -> None:
    """A whole teacher that is the starting student has no divergence; the others have."""
    objective = "method.objective=[{kind: jsd}]"
    with pytest.raises(RecipeError, match="the very model that this phase starts from"):
        ladder(tmp_path, "{teacher: large}, {teacher: student}", objective)
    ladder(tmp_path, "{teacher: large}, {teacher: student}")
    ladder(tmp_path, "{teacher: large}, {teacher: student, mask: {}}", objective)
    ladder(tmp_path, "{teacher: large}, {teacher: mid}, {teacher: student@0}", objective)


def test_the_plan_says_who_teaches_whom(tmp_path: Path) -> None:
    console = Console(width=80, record=True)
    console.print(plan_tree(ladder(tmp_path, f"{ASSISTANT}, {{teacher: large}}")))
    shown = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert "0-large-to-mid large mid 0.2 0 to 19 640" in shown
    assert "1-mid mid@0 student 0.1 0 to 33 1088" in shown
    assert "2-large large student@1 0 0 to 99 3200" in shown
    assert shown[-1] == "mid@0: mid as phase 0 left it; student@1: student as phase 1 left it"
    console.print(plan_tree(ladder(tmp_path, "{teacher: large}")))
    assert "who learns" not in console.export_text(), "one phase has nothing to tell apart"
