"""The benchmarks run, say what they take, and write what they promise."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from masters.models.load import TokenIds
from masters.teachers.masked import MaskedTeacher
from masters.training.group_forward import Form
from masters.training.objective import RewardSettings, StepSums
from masters.training.step import StepSettings, accumulate
from tests.running import environment, read

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PACKED = ("mask", "attention")


def run(script: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(script), *words], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_each_says_what_it_takes(script: Path) -> None:
    assert "--json" in run(script, "--help")


def test_the_step_writes_its_numbers(tmp_path: Path) -> None:
    shown = run(BENCHMARKS / "step.py", "--quick", "--json", str(tmp_path / "step.json"))
    found = read(tmp_path / "step.json")
    assert list(found["speedup"]) == ["1:1", "4:1", "16:1"]
    assert all(value > 0 for value in found["speedup"].values())
    assert found["activation_ratio_16_1"] > 2
    assert found["max_logprob_error"] < 1e-4 and found["max_gradient_error"] < 1e-4
    for name in ("trl_ratio_live", "trl_ratio_stored"):
        assert list(found[name]) == ["4:1", "16:1"]
        assert all((value is None) == (find_spec("trl") is None) for value in found[name].values())
    for shape in found["steps"]["shapes"].values():
        assert shape["limit_counted"] > 1
        # TRL's functions and ours are timed on one and the same gradient.
        assert shape["errors"].get("gradient/trl", 0.0) < 1e-4
    assert "share of the limit" in shown and "stored" in shown


@pytest.fixture
def stepping(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from stepping import counts, shapes, ways  # pyright: ignore[reportMissingImports]

    return counts, shapes, ways


def test_the_limit_by_hand(stepping: Any) -> None:
    counts, shapes, ways = stepping
    case = shapes.Case(prefix=6, response=2, group=4, vocabulary=64, picture=False)
    assert case.token_limit == pytest.approx(4 * 8 / (6 + 8))
    models = ways.Models(shapes.QUICK_STUDENT, shapes.QUICK_TEACHER, case.vocabulary)
    found = counts.trunk_and_tower(models.student.vlm, case)
    # 64 wide, 2 layers, 4 heads of 16 with 2 of keys and values, 192 in between.
    weights = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 192)
    assert found.repeated == 2 * 32 * weights + 4 * (4 * 36) * 64 * 2
    assert found.packed == 2 * 14 * weights + 4 * (21 + 4 * (12 + 3)) * 64 * 2


@pytest.mark.parametrize("form", ["repeat", *PACKED])
def test_it_measures_the_step_of_training(stepping: Any, form: Form) -> None:
    _, shapes, ways = stepping
    case = shapes.Case(prefix=16, response=4, group=4, vocabulary=64)
    models = ways.Models(shapes.QUICK_STUDENT, shapes.QUICK_TEACHER, case.vocabulary)
    models.see_groups(form)
    group = models.referred(shapes.question(case), form)
    models.gradient(group, form, models.teacher_states(group, form))
    measured = models.gradients()
    models.clear()
    ids = TokenIds(end=(1,), pad=ways.PAD, banned=(), vocabulary=case.vocabulary)
    settings = StepSettings(
        terms=ways.TERMS, rewards=RewardSettings(), beta=0.5, temperature=1.0, clip_norm=1.0,
        micro_batch=1, vocabulary=case.vocabulary, student_form=form, teacher_form=form,
    )  # fmt: skip
    accumulate(
        models.student, MaskedTeacher(models.teacher, Path(), None), [group], ids=ids,
        settings=settings, questions=1, sums=StepSums(),
    )  # fmt: skip
    assert ways.apart(models.gradients(), measured) < 1e-6


_FOREIGN = """
import loguru
import sacrebleu
from lmms_eval.tasks._task_utils.file_utils import nothing


def relaxed_correctness(prediction, target):
    return prediction == target
"""


def test_verifiers_are_compared_with_a_toolkit_and_differences_want_a_reason(
    tmp_path: Path,
) -> None:
    # A toolkit of one function, in a package whose own start would fail.
    package = tmp_path / "lmms_eval"
    (package / "tasks" / "chartqa").mkdir(parents=True)
    (package / "tasks" / "_task_utils").mkdir()
    (package / "__init__.py").write_text("raise RuntimeError")
    (package / "tasks" / "_task_utils" / "file_utils.py").write_text("nothing = None")
    (package / "tasks" / "chartqa" / "utils.py").write_text(_FOREIGN)
    words = ["--lmms-eval", str(tmp_path), "--cases", "80", "--json", str(tmp_path / "out.json")]
    script = [sys.executable, str(BENCHMARKS / "verifiers.py"), *words]
    done = subprocess.run(script, env=environment(), capture_output=True, text=True)
    rows = {row["theirs"]: row for row in read(tmp_path / "out.json")["comparisons"]}
    chartqa = rows["lmms-eval: chartqa"]
    assert chartqa["agree"] + sum(one["count"] for one in chartqa["differences"]) == 80
    forms = {one["form"]: one for one in chartqa["differences"]}
    assert forms["thousands separators"]["why"]
    # Nobody has said why a number near the gold one should be wrong, so the status is 1.
    assert not forms["within 5 %"]["why"]
    assert done.returncode == 1 and "chartqa: within 5 %" in done.stderr
    assert "No module named 'lmms_eval.tasks.mme'" in rows["lmms-eval: mme"]["skipped"]
    assert rows["VLMEvalKit: DocVQA"]["skipped"] == "no folder given (--vlmeval)"
