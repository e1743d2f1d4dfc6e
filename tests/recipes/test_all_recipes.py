"""Every shipped recipe x profile loads, plans, and means what its name says."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from masters.plan import Plan, make_plan
from masters.recipe import load_recipe, recipe_from_yaml, resolved_yaml
from masters.recipe_file import shipped
from masters.specs import TrainSpec

RECIPES = ("sft", "distill", "distill_responses", "mask_progressive", "masters_no_mask", "masters")
REAL = """
models: {student: {path: org/student}, teachers: [{name: teacher, path: org/teacher}]}
data: {train: train.jsonl, test: test.jsonl, count: 10000}
"""


def tiny(name: str, out: Path) -> Plan:
    return make_plan(load_recipe(name, "tiny"), out)


def final(plan: Plan) -> TrainSpec:
    spec = next(stage.spec for stage in plan.stages if stage.name.startswith("train/"))
    assert isinstance(spec, TrainSpec)
    return spec


def test_what_is_shipped() -> None:
    assert shipped() == sorted(RECIPES)
    assert shipped("recipes/profiles") == ["one_gpu", "tiny"]


@pytest.mark.parametrize("name", RECIPES)
def test_tiny(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, "tiny")
    assert recipe_from_yaml(resolved_yaml(recipe), name) == recipe
    plan = make_plan(recipe, tmp_path)
    assert [stage.status for stage in plan.stages] == ["to do"] * len(plan.stages)
    assert {"evaluate/start", "evaluate/student", "evaluate/teacher-teacher"} <= set(plan.by_name)


@pytest.mark.parametrize("name", RECIPES)
def test_one_gpu_with_real_models(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"my_{name}.yaml"
    path.write_text(f"extends: {name}\n{REAL}")
    plan = make_plan(load_recipe(path, "one_gpu"), tmp_path / "out")
    assert plan.absent == ("train.jsonl", "test.jsonl")
    assert not any(stage.name.startswith("model/") for stage in plan.stages)


def test_the_shapes(tmp_path: Path) -> None:
    plans = {name: tiny(name, tmp_path) for name in RECIPES}
    kinds = {name: {stage.kind for stage in plan.stages} for name, plan in plans.items()}
    for name in ("sft", "distill"):
        assert not kinds[name] & {"generate", "judge", "score"}
        assert [term.on for term in final(plans[name]).objective] == ["labels"]
    for name in ("distill_responses", "mask_progressive"):
        assert "generate" in kinds[name]
        assert not kinds[name] & {"judge", "score"}
    for name in ("masters_no_mask", "masters"):
        assert {"generate", "judge", "score"} <= kinds[name]
    masked = {name for name, plan in plans.items() if len(final(plan).schedule.ratios) > 1}
    assert masked == {"mask_progressive", "masters"}
    assert final(plans["sft"]).teacher is None
    assert "teacher" not in plans["sft"].by_name["train/0"].inputs


def test_same_steps_and_questions(tmp_path: Path) -> None:
    specs = [final(tiny(name, tmp_path)) for name in RECIPES]
    assert len({(spec.stop, spec.schedule.questions_per_step) for spec in specs}) == 1
    assert len({(spec.schedule.key, spec.schedule.seed, spec.data) for spec in specs}) == 1


def test_shared_stages(tmp_path: Path) -> None:
    folders = {
        name: {stage.name: stage.folder for stage in tiny(name, tmp_path).stages}
        for name in RECIPES
    }

    def users(stage: str) -> dict[Path, set[str]]:
        found: dict[Path, set[str]] = {}
        for name, by_stage in folders.items():
            if stage in by_stage:
                found.setdefault(by_stage[stage], set()).add(name)
        return found

    shared = ("model/teacher", "model/student", "mask/teacher", "evaluate/start")
    for stage in (*shared, "evaluate/teacher-teacher"):
        assert list(users(stage).values()) == [set(RECIPES)], stage
    students = list(users("generate/0-teacher/student").values())
    assert students == [{"distill_responses", "mask_progressive", "masters", "masters_no_mask"}]
    teachers = list(users("generate/0-teacher/teacher").values())
    assert {"distill_responses", "masters_no_mask"} in teachers
    assert {"mask_progressive", "masters"} in teachers
    assert list(users("judge/0-teacher/student").values()) == [{"masters", "masters_no_mask"}]


def test_planning_is_quick_and_torch_free() -> None:
    code = (
        "import sys, masters.cli, masters.plan, masters.run\n"
        "from masters.plan import make_plan; from masters.recipe import load_recipe\n"
        "make_plan(load_recipe('masters', 'tiny'), 'nowhere')\n"
        "assert not {'torch', 'transformers', 'pyarrow'} & set(sys.modules)"
    )
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert time.monotonic() - began < 5, "well under one second on an idle machine"
