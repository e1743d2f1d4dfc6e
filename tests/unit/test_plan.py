"""Plans: which stages, what they share, what makes them another stage, and what has drifted."""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from pathlib import Path

import pytest

from masters.artifacts import write_record
from masters.errors import DataError, ModelError, RecipeError, StageError
from masters.plan import Plan, Stage, make_plan, read_plan, write_plan
from masters.recipe import load_recipe
from masters.run import run_plan
from masters.specs import EvaluateSpec, GenerateSpec, MaskSpec, TrainSpec


def plan_of(out: Path, *overrides: str, recipe: str = "masters", seed: int | None = None) -> Plan:
    return make_plan(load_recipe(recipe, "tiny", overrides), out, seed=seed)


def folders(plan: Plan) -> dict[str, Path]:
    return {stage.name: stage.folder for stage in plan.stages}


def changed(one: Plan, two: Plan) -> set[str]:
    first, second = folders(one), folders(two)
    assert first.keys() == second.keys()
    return {name for name in first if first[name] != second[name]}


def finish(stage: Stage) -> None:
    stage.folder.mkdir(parents=True, exist_ok=True)
    write_record(
        stage.folder,
        kind=stage.kind,
        spec=stage.spec.model_dump(mode="json"),
        fingerprint=stage.fingerprint,
        inputs={},
        runtime={},
        start=0,
        end=1,
        metrics={},
    )


def test_order_and_names(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert set(plan.by_name) == {
        "model/student", "model/teacher", "mask/teacher",
        "generate/0-teacher/teacher", "generate/0-teacher/student",
        "judge/0-teacher/teacher", "judge/0-teacher/student",
        "score/0-teacher/teacher", "score/0-teacher/student",
        "train/0-teacher", "evaluate/start", "evaluate/student", "evaluate/teacher-teacher",
    }  # fmt: skip
    seen: set[str] = set()
    for stage in plan.stages:
        assert set(stage.inputs.values()) <= seen, "each after what it reads"
        seen.add(stage.name)
        assert stage.folder.parent == tmp_path / "stages"
        assert stage.folder.name == f"{stage.kind}-{stage.fingerprint[:12]}"


def test_train_roles(tmp_path: Path) -> None:
    inputs = plan_of(tmp_path).by_name["train/0-teacher"].inputs
    assert inputs == {
        "student": "model/student",
        "teacher": "model/teacher",
        "thresholds": "mask/teacher",
        "responses.teacher": "generate/0-teacher/teacher",
        "responses.student": "generate/0-teacher/student",
        "rewards.teacher": "judge/0-teacher/teacher",
        "rewards.student": "judge/0-teacher/student",
        "scores.teacher": "score/0-teacher/teacher",
        "scores.student": "score/0-teacher/student",
    }


def test_what_changes_what(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    trained = {"train/0-teacher", "evaluate/student"}
    judged = {"judge/0-teacher/teacher", "judge/0-teacher/student"}
    scored = {"score/0-teacher/teacher", "score/0-teacher/student"}
    asked = {"generate/0-teacher/teacher", "generate/0-teacher/student"}
    cases = {
        "runtime.threads=2": set(),
        "runtime.micro_batch_questions=1": set(),
        "method.optimiser.lr=5e-4": trained,
        "method.objective.0.kl=0.2": trained,
        "validation.every=7": trained,
        "method.rewards.accuracy.rule=exact": judged | trained,
        "method.responses.teacher=3": trained
        | {f"{kind}/0-teacher/teacher" for kind in ("generate", "judge", "score")},
        "method.responses.temperature=0.9": asked | judged | scored | trained,
        "method.seed=1": asked | judged | scored | trained,
        "evaluation.benchmark=other": {
            "evaluate/start",
            "evaluate/student",
            "evaluate/teacher-teacher",
        },
        "models.student.sft.steps=5": set(plan.by_name)
        - {"model/teacher", "mask/teacher", "evaluate/teacher-teacher"}
        - {"generate/0-teacher/teacher", "judge/0-teacher/teacher"},
        "models.teachers.0.sft.steps=5": set(plan.by_name)
        - {"model/student", "evaluate/start"}
        - {f"{kind}/0-teacher/student" for kind in ("generate", "judge", "score")},
    }
    for override, expected in cases.items():
        assert changed(plan, plan_of(tmp_path, override)) == expected, override


def test_numerics_make_new_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from masters.specs import NUMERICS

    plan = plan_of(tmp_path)
    monkeypatch.setitem(NUMERICS, "judge", NUMERICS["judge"] + 1)
    got = changed(plan, plan_of(tmp_path))
    assert got == {
        "judge/0-teacher/teacher",
        "judge/0-teacher/student",
        "train/0-teacher",
        "evaluate/student",
    }


def test_seeds_share_the_models(tmp_path: Path) -> None:
    zero, one = plan_of(tmp_path), plan_of(tmp_path, seed=1)
    assert (zero.path.name, one.path.name) == ("masters.plan.json", "masters-seed1.plan.json")
    assert one.seed == 1
    same = set(folders(zero)) - changed(zero, one)
    assert same == {
        "model/student", "model/teacher", "mask/teacher", "evaluate/start",
        "evaluate/teacher-teacher",
    }  # fmt: skip


def test_smoke_run_keeps_the_models(tmp_path: Path) -> None:
    got = changed(plan_of(tmp_path), plan_of(tmp_path, "data.limit=96"))
    assert got.isdisjoint({"model/student", "model/teacher", "mask/teacher"})
    limits = [
        getattr(stage.spec, "data").limit  # noqa: B009
        for stage in plan_of(tmp_path, "data.limit=96").stages
        if stage.kind in ("generate", "evaluate")
    ]
    assert set(limits) == {96}


def test_status(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    write_plan(plan)
    for stage in plan.stages:
        finish(stage)
    assert {stage.status for stage in plan_of(tmp_path).stages} == {"done"}
    assert {stage.status for stage in read_plan(plan.path).stages} == {"done"}
    drifted = plan_of(tmp_path, "method.optimiser.lr=5e-4")
    assert drifted.stage("train/0-teacher").status == "drifted: optimiser.lr"
    assert drifted.stage("evaluate/student").status == "drifted: what it reads"
    assert drifted.stage("mask/teacher").status == "done"
    assert plan_of(tmp_path, "method.seed=7").stage("train/0-teacher").status.startswith("drifted")


def test_a_torn_record_is_told(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    finish(plan.stages[0])
    (plan.stages[0].folder / "record.json").write_text('{"finger')
    with pytest.raises(StageError, match="is damaged"):
        plan_of(tmp_path)


def test_plan_file(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert not plan.path.exists(), "planning writes nothing"
    write_plan(plan)
    content = json.loads(plan.path.read_text())
    assert content["stages"]["mask/teacher"]["folder"].startswith("stages/mask-")
    assert read_plan(plan.path) == plan_of(tmp_path)
    plan.path.write_text("{")
    with pytest.raises(StageError, match="is damaged"):
        plan_of(tmp_path)


def test_unknown_stage(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="has no stage 'mask'; expected one of: model/student"):
        plan_of(tmp_path).stage("mask")


def test_curriculum_in_the_plan(tmp_path: Path) -> None:
    parts = plan_of(tmp_path).curriculum
    assert parts[0].start == 0
    assert parts[-1].ratio == 0
    assert all(one.stop == two.start for one, two in pairwise(parts))


def test_too_few_iterations_for_the_mask(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"masters\.yaml: phase 0: 2 iterations cannot hold"):
        plan_of(tmp_path, "data.train.count=32")
    plan_of(tmp_path, "data.train.count=32", "method.optimiser.questions_per_step=2")


def test_a_smoke_run_may_skip_ratios(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "data.limit=32")
    assert [part.ratio for part in plan.curriculum] == [6000, 3000]
    assert [(part.start, part.stop) for part in plan.curriculum] == [(0, 1), (1, 2)]


def test_resample_per_mask_stage(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "method.responses.resample=mask_stage")
    count = len(plan.curriculum)
    trains = [plan.stage(f"train/0-teacher/{m}") for m in range(count)]
    previous_stop = 0
    for m, stage in enumerate(trains):
        spec = stage.spec
        assert isinstance(spec, TrainSpec)
        assert spec.start == previous_stop
        previous_stop = spec.stop
        assert spec.carry_optimiser == (m > 0)
        assert stage.inputs["responses.teacher"] == "generate/0-teacher/teacher"
        assert stage.inputs["responses.student"] == f"generate/0-teacher/student/{m}"
        student = f"train/0-teacher/{m - 1}" if m else "model/student"
        assert stage.inputs["student"] == student
        generate = plan.stage(f"generate/0-teacher/student/{m}")
        assert generate.inputs == {"model": student}
        assert isinstance(generate.spec, GenerateSpec)
        assert (generate.spec.start, generate.spec.stop) == (spec.start, spec.stop)
        score = plan.stage(f"score/0-teacher/student/{m}")
        assert score.inputs["reference"] == "model/student", "the student that starts the phase"
    assert plan.stage("evaluate/student").inputs["model"] == trains[-1].name


def test_two_phases_carry_the_student(tmp_path: Path) -> None:
    mid = "{name: mid, tiny: qwen3_vl_student, sft: {steps: 9}}"
    large = "{name: large, tiny: qwen3_vl_teacher, sft: {steps: 9}}"
    plan = plan_of(
        tmp_path,
        f"models.teachers=[{mid}, {large}]",
        "method.phases=[{teacher: mid, mask: {}}, {teacher: large, mask: {max_ratio: 0.4}}]",
        "evaluation.masking_ratios=null",
    )
    first, second = plan.stage("train/0-mid"), plan.stage("train/1-large")
    assert second.inputs["student"] == "train/0-mid"
    assert plan.stage("generate/1-large/student").inputs["model"] == "train/0-mid"
    assert plan.stage("score/1-large/teacher").inputs["reference"] == "train/0-mid"
    assert isinstance(first.spec, TrainSpec)
    assert isinstance(second.spec, TrainSpec)
    assert (first.spec.schedule.key, second.spec.schedule.key) == ("0", "1")
    assert not second.spec.carry_optimiser
    curves = [plan.stage(f"evaluate/teacher-{name}").spec for name in ("mid", "large")]
    assert all(isinstance(curve, EvaluateSpec) for curve in curves)
    assert [len(curve.ratios) for curve in curves if isinstance(curve, EvaluateSpec)] == [5, 9]
    run = plan_of(
        tmp_path,
        f"models.teachers=[{mid}, {large}]",
        "method.phases=[{teacher: mid}, {teacher: large}]",
        "method.objective.0.reference=run",
    )
    assert run.stage("score/1-large/teacher").inputs["reference"] == "model/student"


def test_masks_only_where_needed(tmp_path: Path) -> None:
    plain = plan_of(tmp_path, "evaluation.masking_curve=false", recipe="distill")
    assert "mask/teacher" not in plain.by_name
    spec = plain.stage("evaluate/teacher-teacher").spec
    assert isinstance(spec, EvaluateSpec)
    assert spec.ratios == (0,)
    other = plan_of(tmp_path, "evaluation.masking_ratios=[0.3]")
    masks = {stage.name: stage.spec for stage in other.stages if stage.kind == "mask"}
    assert set(masks) == {"mask/teacher", "mask/teacher/1"}
    curve = masks["mask/teacher/1"]
    assert isinstance(curve, MaskSpec)
    assert curve.ratios == (3000,)


def real_recipe(folder: Path, data: str = "count: 640") -> Path:
    path = folder / "real.yaml"
    path.write_text(
        "extends: masters\n"
        f"models: {{student: {{path: {folder}/student}},\n"
        "  teachers: [{name: teacher, path: o/t}]}\n"
        f"data: {{train: {folder}/train.jsonl, {data}}}\n"
    )
    return path


def model_folder(folder: Path, *, width: int = 4) -> Path:
    folder.mkdir(exist_ok=True)
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [width], "data_offsets": [0, 4 * width]}}
    ).encode()
    (folder / "config.json").write_text("{}")
    weights = struct.pack("<Q", len(header)) + header + bytes(4 * width)
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_planning_without_the_files(tmp_path: Path) -> None:
    model_folder(tmp_path / "student")
    plan = make_plan(load_recipe(real_recipe(tmp_path)), tmp_path / "out")
    assert plan.absent == (f"{tmp_path}/train.jsonl",)
    assert plan.curriculum[-1].stop == 20
    with pytest.raises(DataError, match="no such file"):
        make_plan(load_recipe(real_recipe(tmp_path, "limit: null")), tmp_path / "out")


def test_planning_from_a_configuration_alone(tmp_path: Path) -> None:
    student = model_folder(tmp_path / "student")
    recipe = load_recipe(real_recipe(tmp_path))
    before = folders(make_plan(recipe, tmp_path / "out"))
    (student / "model.safetensors").unlink()
    plan = make_plan(recipe, tmp_path / "out")
    assert plan.absent == (f"{tmp_path}/train.jsonl", f"{student}/*.safetensors")
    assert folders(plan)["train/0-teacher"] != before["train/0-teacher"], "not the real one's"
    assert folders(plan)["mask/teacher"] == before["mask/teacher"]
    with pytest.raises(StageError, match=r"student/\*\.safetensors: not here.*not run"):
        run_plan(plan)
    assert not (tmp_path / "out").exists(), "nothing was begun"


def test_models_are_known_by_content(tmp_path: Path) -> None:
    student = model_folder(tmp_path / "student")
    recipe = load_recipe(real_recipe(tmp_path))
    before = folders(make_plan(recipe, tmp_path))
    (student / "README.md").write_text("hello")
    assert folders(make_plan(recipe, tmp_path)) == before
    model_folder(student, width=5)
    after = folders(make_plan(recipe, tmp_path))
    assert after["train/0-teacher"] != before["train/0-teacher"]
    assert after["mask/teacher"] == before["mask/teacher"]
    moved = student.rename(tmp_path / "elsewhere")
    again = load_recipe(real_recipe(tmp_path), overrides=[f"models.student.path={moved}"])
    assert folders(make_plan(again, tmp_path)) == after
    pinned = load_recipe(
        real_recipe(tmp_path),
        overrides=[f"models.student.path={moved}", "models.teachers.0.revision=abc"],
    )
    assert folders(make_plan(pinned, tmp_path))["mask/teacher"] != after["mask/teacher"]


def test_broken_models_are_refused(tmp_path: Path) -> None:
    recipe = load_recipe(real_recipe(tmp_path))
    with pytest.raises(ModelError, match="no such folder"):
        make_plan(recipe, tmp_path)
    student = model_folder(tmp_path / "student")
    weights = student / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])
    with pytest.raises(ModelError, match="is cut"):
        make_plan(recipe, tmp_path)
    weights.unlink()
    (student / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        make_plan(recipe, tmp_path)
