"""Every shipped recipe x profile loads, plans, and means what its name says."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from masters.errors import RecipeError
from masters.estimate.changes import apply_change, first_change
from masters.estimate.cluster import load_cluster, shipped_clusters
from masters.estimate.jobs import place
from masters.estimate.plan import estimate_plan
from masters.estimate.stages import Jobs
from masters.estimate.workload import workload_of
from masters.plan import Plan, make_plan
from masters.recipe import load_recipe, recipe_from_yaml, resolved_yaml
from masters.recipe_file import shipped
from masters.specs import TrainSpec

CONFIGS = Path(__file__).parents[1] / "configs"
LADDERS = ("masters_ladder", "masters_ladder_no_mask")
RECIPES = ("sft", "distill", "distill_responses", "mask_progressive", "masters_no_mask", "masters")
OTHERS = ("rejection_sampling", "kd", "distillm", "distillm_masters", "masters_light")
REAL_PROFILES = ("one_gpu", "one_gpu_24gb", "one_gpu_80gb", "node", "cluster")
REAL = """
models: {student: {path: org/student}, teachers: [{name: teacher, path: org/teacher}]}
data: {train: train.jsonl, test: test.jsonl, count: 10000}
"""
MID = REAL.replace("teachers: [", "teachers: [{name: mid, path: org/mid}, ")


def tiny(name: str, out: Path) -> Plan:
    return make_plan(load_recipe(name, "tiny"), out)


def final(plan: Plan) -> TrainSpec:
    spec = next(stage.spec for stage in plan.stages if stage.name.startswith("train/"))
    assert isinstance(spec, TrainSpec)
    return spec


def test_what_is_shipped() -> None:
    assert shipped() == sorted((*RECIPES, *LADDERS, *OTHERS))
    assert shipped("recipes/profiles") == sorted((*REAL_PROFILES, "tiny"))


@pytest.mark.parametrize("name", (*RECIPES, *LADDERS, *OTHERS))
def test_tiny(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, "tiny")
    assert recipe_from_yaml(resolved_yaml(recipe), name) == recipe
    plan = make_plan(recipe, tmp_path)
    assert [stage.status for stage in plan.stages] == ["to do"] * len(plan.stages)
    assert {"evaluate/start", "evaluate/student", "evaluate/teacher-teacher"} <= set(plan.by_name)


@pytest.mark.parametrize("profile", REAL_PROFILES)
@pytest.mark.parametrize("name", (*RECIPES, *LADDERS, *OTHERS))
def test_every_profile_with_real_models(name: str, profile: str, tmp_path: Path) -> None:
    path = tmp_path / f"my_{name}.yaml"
    path.write_text(f"extends: {name}\n{MID if name in LADDERS else REAL}")
    recipe = load_recipe(path, profile)
    plan = make_plan(recipe, tmp_path / "out")
    assert plan.absent == ("train.jsonl", "test.jsonl")
    assert not any(stage.name.startswith("model/") for stage in plan.stages)
    assert recipe.runtime.device == "cuda"
    assert recipe.runtime.engine == ("fsdp2" if profile in ("node", "cluster") else "single")


@pytest.mark.parametrize(
    ("profile", "cluster", "gpus", "student", "teacher"),
    [
        ("one_gpu_24gb", "l4", 1, "2B", "8B"),
        ("one_gpu_24gb", "rtx4090", 1, "2B", "8B"),
        ("one_gpu_80gb", "a100", 1, "2B", "8B"),
        ("node", "a100", 8, "8B", "32B"),
        ("cluster", "h100", 64, "8B", "32B"),
    ],
)
@pytest.mark.parametrize("name", (*RECIPES, *LADDERS, *OTHERS))
def test_a_profile_fits_what_it_says_it_fits(
    name: str, profile: str, cluster: str, gpus: int, student: str, teacher: str, tmp_path: Path
) -> None:
    """By the estimate: no stage of any recipe needs more memory than its GPUs have."""
    text = MID if name in LADDERS else REAL
    for role, size in (("student", student), ("teacher", teacher), ("mid", teacher)):
        text = text.replace(f"org/{role}", str(CONFIGS / f"Qwen3-VL-{size}-Instruct"))
    path = tmp_path / f"my_{name}.yaml"
    path.write_text(f"extends: {name}\n{text}")
    plan = make_plan(load_recipe(path, profile), tmp_path / "out")
    found = estimate_plan(plan, load_cluster(cluster, gpus=gpus))
    assert {stage.name: stage.change for stage in found.stages if not stage.fits} == {}


@pytest.mark.slow
@pytest.mark.parametrize("profile", (*REAL_PROFILES, "tiny"))
@pytest.mark.parametrize("name", (*RECIPES, *LADDERS))
def test_the_first_change_is_enough_on_every_cluster(
    name: str, profile: str, tmp_path: Path
) -> None:
    """Whatever does not fit does with the change applied as one types it, the recipe read anew."""
    text = MID if name in LADDERS else REAL
    for role, size in (("student", "8B"), ("teacher", "32B"), ("mid", "8B")):
        text = text.replace(f"org/{role}", str(CONFIGS / f"Qwen3-VL-{size}-Instruct"))
    path = tmp_path / f"my_{name}.yaml"
    path.write_text(f"extends: {name}\n{text if profile != 'tiny' else ''}")
    recipe = load_recipe(path, profile)
    plan = make_plan(recipe, tmp_path / "out")
    for cluster in (load_cluster(one, gpus=n) for one in shipped_clusters() for n in (None, 1)):
        jobs = Jobs(recipe, plan.questions, cluster, workload_of(recipe))
        for stage in plan.by_name:
            if place(jobs.job(stage), cluster).fits:
                continue
            change = first_change(jobs, stage)
            assert change is not None, (cluster.name, cluster.gpus, stage)
            anew, on = load_recipe(path, profile, change.sets), apply_change(cluster, change)
            changed = Jobs(anew, plan.questions, on, workload_of(anew))
            assert place(changed.job(stage), on).fits, (cluster.name, stage, str(change))


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


def test_ladders_meet_the_mid_teacher_first_and_take_as_many_steps(tmp_path: Path) -> None:
    whole = final(tiny("masters", tmp_path))
    students: set[Path] = set()
    for name, masked in (("masters_ladder", True), ("masters_ladder_no_mask", False)):
        plan = tiny(name, tmp_path)
        trained = [stage for stage in plan.stages if stage.name.startswith("train/")]
        assert [stage.name for stage in trained] == ["train/0-mid", "train/1-teacher"]
        assert trained[1].inputs["student"] == "train/0-mid"
        specs = [stage.spec for stage in trained if isinstance(stage.spec, TrainSpec)]
        assert sum(spec.stop for spec in specs) == whole.stop
        assert {spec.schedule.ratios for spec in specs} == {
            whole.schedule.ratios if masked else (0,)
        }
        assert {(spec.optimiser, spec.objective) for spec in specs} == {
            (whole.optimiser, whole.objective)
        }
        students.add(plan.by_name["generate/0-mid/student"].folder)
        for shared in ("model/student", "model/teacher", "evaluate/teacher-teacher"):
            assert plan.by_name[shared].folder == tiny("masters", tmp_path).by_name[shared].folder
    assert len(students) == 1, "the student's answers do not depend on the teacher's mask"


def test_a_ladder_without_its_mid_teacher_says_so() -> None:
    teachers = "models.teachers=[{name: teacher, path: a/b}]"
    with pytest.raises(RecipeError, match=r"is 'mid'; expected one of models\.teachers: teacher"):
        load_recipe("masters_ladder", "tiny", [teachers])


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
