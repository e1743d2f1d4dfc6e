"""The commands on one finished run: what they print, write and leave alone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.running import SMALL, cli, fails, folders, lines, read, succeeds

TINY = ("masters", "--profile", "tiny", "--out")


def state(out: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file."""
    files = (path for path in out.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def test_every_stage_is_done_and_tidy(whole: Path) -> None:
    stages = folders(whole)
    assert len(stages) == 13
    for name, folder in stages.items():
        assert (folder / "record.json").is_file(), name
        assert not (folder / "checkpoints").exists(), name
        assert not (folder / "init").exists(), name
    left = [path for path in whole.rglob("*") if path.name.endswith((".tmp", ".partial"))]
    assert left == []


def test_report_json_is_as_documented(whole: Path) -> None:
    report = read(whole / "report" / "report.json")
    assert report["schema"] == 1
    assert report["seed"] == 0
    assert set(report["models"]) == {"teacher", "student"}
    assert all(type(model["parameters"]) is int for model in report["models"].values())
    row = {"run", "model", "seed", "benchmark", "kind", "metric", "value", "low", "high", "n"}
    for result in report["results"]:
        assert set(result) == row
        assert 0 <= result["low"] <= result["value"] <= result["high"] <= 1
    headline = {
        result["run"]
        for result in report["results"]
        if (result["benchmark"], result["kind"], result["metric"])
        == ("held_out", "all", "accuracy")
    }
    assert headline == {"start", "teacher", "masters"}
    assert all(set(point) == {"ratio", "zeros", "accuracy"} for point in report["masking"])
    assert all(set(stage) >= {"name", "kind", "seconds"} for stage in report["stages"])
    assert {stage["name"] for stage in report["stages"]} >= set(folders(whole))
    page = (whole / "report" / "report.html").read_text()
    assert "<html" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "data:image/png;base64," in page


def test_the_masking_curve_falls_back_to_the_whole_teacher(whole: Path) -> None:
    rows = read(folders(whole)["evaluate/teacher-teacher"] / "results.json")["rows"]
    curve = sorted((row for row in rows if row["kind"] == "all"), key=lambda row: row["ratio"])
    assert curve[0]["ratio"] == 0
    assert len(curve) > 2
    zeros = [row["zeros"] for row in curve]
    assert zeros[0] == 0
    assert zeros == sorted(set(zeros)), "the share of zeros rises with the ratio"
    assert all(row["zeros"] <= row["ratio"] / 10_000 for row in curve)
    for result in (row for row in rows if row["kind"] != "all"):
        assert result["n"] > 0


def test_a_phase_starts_at_its_reference_and_the_policy_term_has_no_value(whole: Path) -> None:
    rows = lines(folders(whole)["train/0-teacher"] / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert abs(rows[0]["loss/kl"]) < 1e-9
    assert abs(rows[0]["kl/max"]) < 1e-9
    assert rows[-1]["loss/kl"] > 1e-9, "it has moved since"
    assert all(abs(row["loss/policy"]) < 1e-6 for row in rows)
    ratios = [row["mask/ratio"] for row in rows]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > ratios[-1] == 0
    assert all(row["loss/jsd"] > 0 and row["grad_norm/grpo"] > 0 for row in rows)
    watched = lines(folders(whole)["train/0-teacher"] / "validation.jsonl")
    assert [row["step"] for row in watched] == [0, 2, 4, 6]


def test_the_teacher_is_bit_equal_to_its_checkpoint_after_all_ratios(whole: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from masters.models.load import load_model
    from masters.teachers.masked import MaskedTeacher
    from masters.teachers.thresholds import load_thresholds

    stages = folders(whole)
    folder = stages["model/teacher"] / "model"
    thresholds = load_thresholds(stages["mask/teacher"] / "thresholds.json")
    teacher = MaskedTeacher(load_model(str(folder)), folder, thresholds)
    stored = load_file(folder / "model.safetensors")
    changed = []
    for ratio in (*reversed(thresholds.ratios), 0):
        teacher.set_ratio(ratio)
        now = teacher.model.state_dict()
        changed.append(sum(not torch.equal(now[name], stored[name]) for name in stored))
    assert changed[-1] == 0
    assert all(changed[:-1])


def test_plan_says_done_and_a_second_run_does_nothing(whole: Path) -> None:
    before = state(whole)
    plan = json.loads(succeeds("plan", *TINY, str(whole), "--json", sets=SMALL))
    assert {stage["status"] for stage in plan["stages"].values()} == {"done"}
    assert state(whole) == before, "planning writes nothing"
    shown = succeeds("plan", *TINY, str(whole), sets=SMALL)
    assert "13 of 13 stages done" in shown
    assert "to do" not in shown
    succeeds("run", *TINY, str(whole), sets=SMALL)
    after = state(whole)
    plan_file = str(whole / "masters.plan.json")
    assert {path for path in after if after[path] != before.get(path)} <= {plan_file}
    assert after.keys() == before.keys()


def test_a_changed_key_drifts_what_depends_on_it_and_overwrites_nothing(
    whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    sets = (*SMALL, "method.responses.temperature=0.7")
    plan: dict[str, Any] = json.loads(succeeds("plan", *TINY, str(out), "--json", sets=sets))
    status = {name: stage["status"] for name, stage in plan["stages"].items()}
    assert status["model/teacher"] == status["mask/teacher"] == status["evaluate/start"] == "done"
    assert status["generate/0-teacher/teacher"] == "drifted: temperature"
    assert status["judge/0-teacher/teacher"] == "drifted: what it reads"
    assert status["train/0-teacher"] == "drifted: what it reads"
    before = {path: seen for path, seen in state(out).items() if "/stages/" in path}
    succeeds("run", *TINY, str(out), "--until", "judge/0-teacher/teacher", sets=sets)
    after = state(out)
    assert all(after[path] == seen for path, seen in before.items())
    assert len(list((out / "stages").glob("generate-*"))) == 3
    plan = json.loads(succeeds("plan", *TINY, str(out), "--json", sets=SMALL))
    assert plan["stages"]["train/0-teacher"]["status"] == "done", "the first setting is still there"


def test_recipes_share_stages_by_content(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    words = ("sft", "distill", "masters", "--profile", "tiny", "--out", str(out))
    table = succeeds("compare", *words, sets=SMALL)
    assert all(run in table for run in ("start", "teacher", "sft", "distill", "masters"))
    found = [folders(out, recipe) for recipe in ("sft", "distill", "masters")]
    for name in ("model/teacher", "model/student", "evaluate/start", "evaluate/teacher-teacher"):
        assert len({stages[name] for stages in found}) == 1, name
    made = list((out / "stages").glob("train-*"))
    assert len(made) == 2 + 3, "one teacher, one starting student, three students"
    report = read(out / "report" / "report.json")
    runs = {row["run"] for row in report["results"]}
    assert runs == {"start", "teacher", "sft", "distill", "masters"}


def test_show(whole: Path) -> None:
    first = folders(whole)["generate/0-teacher/teacher"]
    from masters.data.tables import RESPONSES, read_shards

    row = read_shards(first / "responses", RESPONSES).to_pylist()[0]
    words = ("--question", row["question_id"], "--out", str(whole))
    shown = succeeds("show", "generate/0-teacher/teacher", *words)
    assert row["question_id"] in shown
    assert "<|im_start|>user" in shown
    assert row["text"].strip().splitlines()[0] in shown
    assert "reward" in shown


def test_doctor_verifies_bytes(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    words = ("doctor", "--verify", str(out))
    assert "torch" in succeeds(*words)
    weights = folders(out)["model/teacher"] / "model" / "model.safetensors"
    with open(weights, "r+b") as file:
        file.seek(-100, os.SEEK_END)
        byte = file.read(1)
        file.seek(-100, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    said = fails(*words)
    assert weights.parents[1].name in said
    assert "model/model.safetensors changed" in said


def test_the_student_is_an_ordinary_transformers_folder(whole: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoTokenizer, GenerationConfig

    from masters.data.scenes import SceneQuestions
    from masters.models.load import load_processor

    folder = folders(whole)["train/0-teacher"] / "model"
    model: Any = AutoModelForImageTextToText.from_pretrained(folder)
    config = GenerationConfig.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    assert config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.chat_template
    assert (folder / "chat_template.jinja").is_file()
    processor: Any = load_processor(str(folder))
    questions = SceneQuestions(count=1, seed=9)
    content = [{"type": "image"}, {"type": "text", "text": questions[0].text}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    images = questions.open_images(questions[0])
    inputs = processor(images=images, text=[prompt], return_tensors="pt")
    with torch.no_grad():
        answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert answer.shape[1] > inputs["input_ids"].shape[1]
    assert (folders(whole)["train/0-teacher"] / "best" / "model.safetensors").is_file()


@pytest.mark.parametrize("words", [("--help",), ("run", "--help")])
def test_help(words: tuple[str, ...]) -> None:
    assert cli(words[0], *words[1:]).returncode == 0
