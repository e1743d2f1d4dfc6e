"""Which engine answers for which model, and what of it makes another stage."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from masters.errors import RecipeError, StageError
from masters.plan import Plan, make_plan
from masters.recipe import load_recipe
from masters.specs import GenerateSpec
from masters.stages.preflight import check_engines
from tests.fault_server import FaultServer

ADDRESS = "runtime.server.url=http://localhost:8000/v1"
SERVER = "method.responses.engine=server"
MASK = "method.phases.0.mask={max_ratio: 0.1, step: 0.1}"
ALL = (
    "method.responses.served=[{model: student, name: s}, {model: teacher, name: t}, "
    "{model: teacher, ratio: 0.1, name: t-10}]"
)
TEACHER, STUDENT = "generate/0-teacher/teacher", "generate/0-teacher/student"


def plan_of(out: Path, *overrides: str, recipe: str = "masters") -> Plan:
    return make_plan(load_recipe(recipe, "tiny", overrides), out)


def generates(plan: Plan) -> dict[str, GenerateSpec]:
    return {s.name: s.spec for s in plan.stages if isinstance(s.spec, GenerateSpec)}


def test_a_served_name_stands_for_a_model_at_a_ratio(tmp_path: Path) -> None:
    found = generates(plan_of(tmp_path, SERVER, ADDRESS, MASK, ALL))
    names = {
        name: [(served.ratio, served.model) for served in spec.served or ()]
        for name, spec in found.items()
    }
    assert names == {TEACHER: [(1000, "t-10"), (0, "t")], STUDENT: [(0, "s")]}
    assert {spec.engine for spec in found.values()} == {"server"}


def test_a_model_that_is_not_named_answers_here(tmp_path: Path) -> None:
    only = "method.responses.served=[{model: student, name: s}]"
    found = generates(plan_of(tmp_path, SERVER, ADDRESS, MASK, only))
    assert found[STUDENT].engine == "server"
    assert (found[TEACHER].engine, found[TEACHER].served) == ("transformers", None)


def test_a_trained_student_is_not_what_is_served(tmp_path: Path) -> None:
    served = "method.responses.served=[{model: student, name: s}]"
    found = generates(plan_of(tmp_path, SERVER, ADDRESS, served, recipe="masters_ladder"))
    engines = {name: spec.engine for name, spec in found.items() if name.endswith("/student")}
    assert engines == {
        "generate/0-mid/student": "server",
        "generate/1-teacher/student": "transformers",
    }


def test_what_makes_another_stage(tmp_path: Path) -> None:
    def folders(*overrides: str) -> dict[str, Path]:
        stages = plan_of(tmp_path, MASK, *overrides).stages
        return {stage.name: stage.folder for stage in stages}

    plain, served = folders(), folders(SERVER, ADDRESS, ALL)
    assert plain[TEACHER] != served[TEACHER] and plain[STUDENT] != served[STUDENT]
    renamed = folders(SERVER, ADDRESS, ALL.replace("t-10", "other"))
    changed = {name for name in served if served[name] != renamed[name]}
    assert TEACHER in changed and STUDENT not in changed, "the student's names are the same"
    elsewhere = folders(
        SERVER, "runtime.server={url: 'http://x/v1', concurrency: 3}", ALL,
        "runtime.engine_check=false",
    )  # fmt: skip
    assert elsewhere == served, "where it runs is no part of what it is"
    vllm = "method.responses.engine=vllm"
    one, two = (folders(vllm, f"runtime.vllm.python={path}") for path in ("/a", "/b"))
    assert one == two and one[TEACHER] not in (plain[TEACHER], served[TEACHER])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([SERVER], "engine is 'server', but there is no runtime.server"),
        (["method.responses.engine=vllm"], "is 'vllm', but there is no runtime.vllm"),
        ([SERVER, ADDRESS], "served is empty, and engine is 'server'"),
        ([ALL], "served is set, but engine is 'transformers'"),
        (
            [SERVER, ADDRESS, MASK, "method.responses.served=[{model: teacher, name: t}]"],
            "has no name for teacher at ratio 0.1, which a phase asks.*--materialise",
        ),
        (
            [SERVER, ADDRESS, MASK, ALL.replace("ratio: 0.1", "ratio: 0.3")],
            r"served\[2\] is teacher at ratio 0.3, which no phase asks.*expected one of student at",
        ),
        (
            [SERVER, ADDRESS, MASK, ALL.replace("model: student", "model: pupil")],
            r"served\[0\] is pupil at ratio 0, which no phase asks",
        ),
        (
            [SERVER, ADDRESS, MASK, ALL.replace("ratio: 0.1", "ratio: 0")],
            r"served\[2\] is a second name for teacher at ratio 0",
        ),
        (
            ["runtime.vllm={python: x, options: {dtype: half}}"],
            "runtime.vllm.options.dtype is set, but it is more than a way to run",
        ),
    ],
)
def test_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load_recipe("masters", "tiny", overrides)


def test_engines_are_looked_for_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def check(*overrides: str) -> None:
        plan = plan_of(tmp_path, MASK, *overrides)
        check_engines((s.name, s.spec, plan.recipe.runtime) for s in plan.stages)

    with FaultServer(served="s") as server:
        at = f"runtime.server={{url: '{server.url}', attempts: 1}}"
        check(SERVER, at, "method.responses.served=[{model: student, name: s}]")
        with pytest.raises(StageError, match=r"serves 's'[\s\S]*generate/0-teacher/teacher will"):
            check(SERVER, at, ALL)
    vllm = "method.responses.engine=vllm"
    with pytest.raises(StageError, match=r"which has no package vllm; expected the interpreter"):
        check(vllm, f"runtime.vllm.python={sys.executable}")
    with pytest.raises(StageError, match=r"which cannot be started"):
        check(vllm, "runtime.vllm.python=/nowhere/python")
