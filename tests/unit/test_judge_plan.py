"""Who judges in a plan, and which of the judge's keys make another stage."""

from __future__ import annotations

from pathlib import Path

from masters.fingerprints import Contents, _content
from masters.plan import Plan, make_plan
from masters.recipe import load_recipe
from masters.specs import EvaluateSpec, JudgeSpec, LocalJudge, TrainSpec

JUDGE = "method.rewards.accuracy.kind=judge"
SERVER = "method.rewards.accuracy={kind: judge, judge: {model: server, name: large}}"
ADDRESS = "runtime.server.url=http://localhost:8000/v1"


def plan_of(out: Path, *overrides: str, recipe: str = "masters") -> Plan:
    return make_plan(load_recipe(recipe, "tiny", overrides), out)


def changed(one: Plan, two: Plan) -> set[str]:
    folders = [{stage.name: stage.folder for stage in plan.stages} for plan in (one, two)]
    assert folders[0].keys() == folders[1].keys()
    return {name for name in folders[0] if folders[0][name] != folders[1][name]}


def judges(plan: Plan) -> dict[str, LocalJudge | None]:
    return {s.name: s.spec.judge for s in plan.stages if isinstance(s.spec, JudgeSpec)}


def test_the_whole_teacher_judges_both_halves(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, JUDGE)
    for side in ("teacher", "student"):
        stage = plan.by_name[f"judge/0-teacher/{side}"]
        assert stage.inputs == {
            "judge": "model/teacher",
            "responses": f"generate/0-teacher/{side}",
        }, "no thresholds: it is not masked"
        assert isinstance(stage.spec, JudgeSpec) and stage.spec.judge is not None
        assert (stage.spec.judge.name, stage.spec.judge.precision) == ("teacher", "fp32")
    asked = plan_of(tmp_path, JUDGE, "method.responses.precision=bf16")
    assert {judge and judge.precision for judge in judges(asked).values()} == {"bf16"}


def test_each_phase_has_its_own_judge(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, JUDGE, recipe="masters_ladder")
    names = {name: judge and judge.name for name, judge in judges(plan).items()}
    assert names == {
        "judge/0-mid/teacher": "mid", "judge/0-mid/student": "mid",
        "judge/1-teacher/teacher": "teacher", "judge/1-teacher/student": "teacher",
    }  # fmt: skip


def test_what_makes_another_judge(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, JUDGE)
    judged = {"judge/0-teacher/teacher", "judge/0-teacher/student"}
    trained = {"train/0-teacher", "evaluate/student"}
    assert changed(plan_of(tmp_path), plan) == judged | trained
    key = "method.rewards.accuracy.judge"
    for override in ("rules_first=true", "max_new_tokens=99", "retries=5"):
        assert changed(plan, plan_of(tmp_path, JUDGE, f"{key}.{override}")) == judged | trained
    for override in (f"{key}.max_missing=0.5", ADDRESS):
        assert changed(plan, plan_of(tmp_path, JUDGE, override)) == set()
    served = plan_of(tmp_path, SERVER, ADDRESS)
    assert set(judges(served).values()) == {None}
    assert changed(plan, served) == judged | trained
    other = plan_of(tmp_path, SERVER.replace("large", "larger"), ADDRESS)
    assert changed(served, other) == judged | trained, "who is asked at the server counts"
    moved = plan_of(tmp_path, SERVER, "runtime.server={url: http://other/v1, concurrency: 2}")
    assert changed(served, moved) == set(), "where it is asked does not"


def test_an_evaluation_by_a_judge_leaves_training_alone(tmp_path: Path) -> None:
    by_rule = plan_of(tmp_path)
    rule = "evaluation.rule={kind: judge, judge: {model: server, name: large}}"
    judged = plan_of(tmp_path, rule, ADDRESS)
    evaluated = {"evaluate/start", "evaluate/student", "evaluate/teacher-teacher"}
    assert changed(by_rule, judged) == evaluated
    for stage in judged.stages:
        if isinstance(stage.spec, EvaluateSpec):
            assert stage.spec.rule.judge is not None
        if isinstance(stage.spec, TrainSpec) and stage.spec.validation:
            assert stage.spec.validation.rule.kind == "rule"


def test_a_rules_stage_is_hashed_as_before_there_were_judges(tmp_path: Path) -> None:
    contents = Contents()
    for stage in plan_of(tmp_path).stages:
        if isinstance(stage.spec, JudgeSpec):
            hashed = _content(stage.spec, contents)
            assert set(hashed) == {"kind", "source", "data", "rule"}
            assert hashed["rule"] == {"kind": "rule", "rule": "auto"}
