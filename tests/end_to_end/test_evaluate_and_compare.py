"""`masters evaluate --model`, `masters compare` of evaluations and `masters speed`, as typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from masters.data.scenes import SceneQuestions
from masters.rewards.judging.cache import VerdictCache
from tests.fault_server import FaultServer
from tests.running import SMALL, fails, folders, read, succeeds

PLAIN = (
    "prompt.suffix=null",
    "evaluation.max_new_tokens=8",
    "method.optimiser.precision=fp32",
    "runtime={threads: 1, workers: 0}",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty scenes as JSON Lines with two fields of their own."""
    root = tmp_path_factory.mktemp("data")
    scenes = SceneQuestions(count=30, seed=21)
    rows = []
    for place, question in enumerate(scenes):
        scenes.open_images(question)[0].save(root / f"{place}.png")
        row = {"id": question.id, "image": f"{place}.png", "question": question.text}
        row |= {"answer": question.label, "kind": question.kind}
        rows.append(row | {"topic": ("near", "far")[place % 2], "level": place % 3})
    (root / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root / "test.jsonl"


def evaluate(model: Path, data: Path, out: Path, *words: str) -> str:
    return succeeds(
        "evaluate", "--model", str(model), "--data", str(data), "--out", str(out), *words,
        sets=PLAIN,
    )  # fmt: skip


def test_any_checkpoint_on_any_data_and_two_of_them_compared(
    whole: Path, data: Path, tmp_path: Path
) -> None:
    stages = folders(whole)
    out = tmp_path / "out"
    words = ("--by", "topic", "--json", "--name")
    said = json.loads(evaluate(stages["train/0-teacher"], data, out, *words, "student"))
    rows = said["evaluations"]["student"]["rows"]
    assert [row["n"] for row in rows if row["by"] == "all"] == [30]
    assert {row["category"] for row in rows if row["by"] == "topic"} == {"near", "far"}
    assert sum(row["n"] for row in rows if row["by"] == "kind") == 30
    assert all(0 <= row["low"] <= row["value"] <= row["high"] <= 1 for row in rows)

    # The student before training has the same headers and sizes: its answers are its own.
    evaluate(stages["model/student"], data, out, "--name", "before")
    assert len(list((out / "stages").iterdir())) == 2
    evaluated = list((out / "stages").glob("*/answers/*.parquet"))
    times = {path: path.stat().st_mtime_ns for path in evaluated}
    evaluate(stages["model/student"], data, out, "--name", "before")
    assert {path: path.stat().st_mtime_ns for path in evaluated} == times, "done once"

    pair = (f"{out}:before", f"{out}:student")
    found = json.loads(succeeds("compare", *pair, "--by", "level", "--json"))
    assert found["questions"]["shared"] == 30
    assert {row["by"] for row in found["rows"]} == {"all", "kind", "topic", "level"}
    first = found["rows"][0]
    assert first["difference"] == pytest.approx(first["second"] - first["first"])
    assert first["gained"] - first["lost"] == pytest.approx(30 * first["difference"])
    assert "| all | 30 |" in succeeds("compare", *pair, "--markdown")
    assert "not told apart" in succeeds("compare", pair[0], pair[0])
    assert "expected one of kind, level, topic" in fails("compare", *pair, "--by", "colour")


def test_a_checkpoint_written_anew_is_evaluated_anew(
    whole: Path, data: Path, tmp_path: Path
) -> None:
    stages = folders(whole)
    model, out = tmp_path / "tuned", tmp_path / "out"
    shutil.copytree(stages["model/student"] / "model", model)
    evaluate(model, data, out)
    before = read(out / "evaluated" / "tuned.json")
    shutil.copy(stages["train/0-teacher"] / "model" / "model.safetensors", model)
    evaluate(model, data, out)
    assert read(out / "evaluated" / "tuned.json")["folder"] != before["folder"]


def test_a_run_s_own_models_compared(whole: Path, data: Path, tmp_path: Path) -> None:
    found = json.loads(succeeds("compare", f"{whole}:start", f"{whole}", "--json"))
    report = read(whole / "report" / "report.json")
    values = {row["run"]: row["value"] for row in report["results"] if row["kind"] == "all"}
    assert found["rows"][0]["first"] == pytest.approx(values["start"])
    assert found["rows"][0]["second"] == pytest.approx(values["masters"])
    evaluate(folders(whole)["model/student"], data, tmp_path / "other")
    said = fails("compare", f"{whole}:start", f"{tmp_path / 'other'}")
    assert "did not answer the same questions" in said and "none in common" in said


def test_a_recipe_s_evaluations_are_shown(whole: Path) -> None:
    words = ("masters", "--profile", "tiny", "--out", str(whole), "--json")
    found = json.loads(succeeds("evaluate", *words, sets=SMALL))["evaluations"]
    assert set(found) == {"start", "student", "teacher-teacher"}
    report = read(whole / "report" / "report.json")
    start = next(r for r in report["results"] if r["run"] == "start" and r["kind"] == "all")
    assert found["start"]["rows"][0]["value"] == start["value"]


def test_what_cannot_be_evaluated_or_compared(whole: Path, tmp_path: Path) -> None:
    assert "expected a recipe, or --model" in fails("evaluate", "--data", "x.jsonl")
    assert "no questions; expected --data" in fails("evaluate", "--model", str(whole))
    assert "expected either recipes, or two" in fails("compare", "masters", str(whole))
    assert "expected no setting" in fails(
        "compare", f"{whole}:start", str(whole), "--out", str(tmp_path)
    )
    assert "are for two finished evaluations" in fails("compare", "masters", "--json")


def test_what_would_fail_at_the_end_fails_before_the_model_is_asked(
    whole: Path, data: Path, tmp_path: Path
) -> None:
    student = str(folders(whole)["train/0-teacher"])
    words = ("--model", student, "--data", str(data), "--out", str(tmp_path / "out"))
    assert "expects those of 4 annotators" in fails(
        "evaluate", *words, sets=(*PLAIN, "evaluation.rule.rule=vqa")
    )
    with FaultServer(served="another") as server:
        judge = "evaluation.rule={kind: judge, judge: {model: server, name: wanted}}"
        # Verdicts of another judge are no reason not to look.
        VerdictCache(tmp_path / "out" / "verdicts.sqlite").close()
        message = fails(
            "evaluate", *words, sets=(*PLAIN, judge, f"runtime.server={{url: {server.url}}}")
        )
    assert "will ask a server to judge" in message and "It serves 'another'" in message
    assert not list((tmp_path / "out").glob("stages/*/answers/*"))


def test_speed_of_a_recipe_s_student_and_teacher(tmp_path: Path) -> None:
    words = ("--tokens", "4", "--batches", "1,2", "--repeats", "2", "--out", str(tmp_path))
    shown = succeeds("speed", "masters", "--profile", "tiny", *words)
    assert "student" in shown and "teacher" in shown
    content = read(tmp_path / "speed.json")
    assert [row["batch"] for row in content["rows"]] == [1, 2, 1, 2]
    assert content["command"].startswith("masters speed masters")
