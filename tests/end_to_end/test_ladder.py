"""A run in which an assistant is trained, teaches the student, and a larger teacher follows."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from masters.data.scenes import SceneQuestions
from masters.data.tables import RESPONSES, SCORES, list_shards, read_shard
from masters.errors import ModelError
from masters.models.encode import PromptText, encode_prompt, pad_rows
from masters.models.load import load_model, load_processor
from masters.teachers.masked import MaskedTeacher
from masters.teachers.thresholds import load_thresholds
from tests.invariant.killing import differences
from tests.running import command, environment, folders, lines, read, succeeds

SFT = "{steps: 6, questions_per_step: 16, validate_every: 6, data: {kind: scenes, count: 96"
RECIPE = f"""
extends: masters
models:
  student: {{tiny: qwen3_vl_100k, sft: {SFT}, seed: 1}}}}}}
  teachers:
    - {{name: mid, tiny: qwen3_vl_100k, sft: {SFT}, seed: 2}}, seed: 2}}}}
    - {{name: teacher, tiny: qwen3_vl_250k, sft: {SFT}, seed: 3}}, seed: 3}}}}
data:
  train: {{kind: scenes, count: 96, seed: 3}}
  validation: {{kind: scenes, count: 16, seed: 4}}
  test: {{kind: scenes, count: 32, seed: 5}}
method:
  phases:
    - {{teacher: teacher, student: mid, mask: {{max_ratio: "0.4", step: "0.2"}}, epochs: "0.5"}}
    - {{teacher: mid, mask: {{max_ratio: "0.3", step: "0.3"}}}}
    - {{teacher: teacher, mask: {{max_ratio: "0.5", step: "0.25"}}, epochs: "0.7"}}
  responses: {{max_new_tokens: 8}}
  optimiser: {{questions_per_step: 16, precision: fp32, lr: 3.0e-3}}
prompt: {{suffix: null}}
validation: {{every: 2}}
runtime: {{device: cpu, jobs: 2, threads: 1, micro_batch_questions: 16, checkpoint_every: 2}}
"""
TRAINED = {"0-teacher-to-mid": 3, "1-mid": 6, "2-teacher": 4}
"""Train stages and their steps: 96 questions, 16 a step, half an epoch, one, 0.7 of one."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ladder") / "ladder.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def out(recipe: Path) -> Path:
    succeeds("run", str(recipe), "--out", str(recipe.parent / "out"))
    return recipe.parent / "out"


def test_every_phase_runs_its_own_schedule(out: Path) -> None:
    stages = folders(out, "ladder")
    ratios = {
        name: [row["mask/ratio"] for row in lines(stages[f"train/{name}"] / "metrics.jsonl")]
        for name in TRAINED
    }
    assert ratios == {
        "0-teacher-to-mid": [0.4, 0.2, 0],
        "1-mid": [0.3, 0.3, 0.3, 0, 0, 0],
        "2-teacher": [0.5, 0.5, 0.25, 0],
    }


def test_every_phase_starts_at_its_reference_and_moves(out: Path) -> None:
    for name in TRAINED:
        rows = lines(folders(out, "ladder")[f"train/{name}"] / "metrics.jsonl")
        assert abs(rows[0]["loss/kl"]) < 1e-9, name
        assert abs(rows[0]["kl/max"]) < 1e-9, name
        assert rows[-1]["loss/kl"] > 1e-9, name


def test_adam_is_new_in_every_phase(out: Path) -> None:
    for name, steps in TRAINED.items():
        file = folders(out, "ladder")[f"train/{name}"] / "optimiser.pt"
        state = torch.load(file, weights_only=True)["state"]
        assert {int(moments["step"]) for moments in state.values()} == {steps}, name


def raw_logprobs(folder: Path, index: int, ids: list[int]) -> list[float]:
    """Log-probabilities of a response to question ``index`` of the pool, one forward pass."""
    processor, questions = load_processor(str(folder)), SceneQuestions(count=96, seed=3)
    question = questions[index]
    images = questions.open_images(question)
    prompt = encode_prompt(processor, question, images, PromptText(suffix=None))
    with torch.no_grad():
        logits = load_model(str(folder))(**pad_rows([(prompt, ids)], pad=0)).logits[0]
    vocabulary = len(processor.tokenizer)
    logp = logits[len(prompt.ids) - 1 : -1, :vocabulary].log_softmax(dim=-1)
    return logp[range(len(ids)), ids].tolist()


def far(one: list[float], two: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, two, strict=True))


def test_the_student_that_ended_a_phase_answers_and_is_the_reference_of_the_next(
    out: Path,
) -> None:
    """By what is recorded, and by the numbers themselves: only its weights give them."""
    stages = folders(out, "ladder")
    ended = read(stages["train/1-mid"] / "record.json")["fingerprint"]
    for stage, role in {
        "generate/2-teacher/student": "model",
        "score/2-teacher/student": "reference",
        "score/2-teacher/teacher": "reference",
        "train/2-teacher": "student",
    }.items():
        assert read(stages[stage] / "record.json")["inputs"][role] == ended, stage
    asked, scored = stages["generate/2-teacher/student"], stages["score/2-teacher/student"]
    row: dict[str, Any] = read_shard(list_shards(asked / "responses")[0], RESPONSES).to_pylist()[0]
    score = read_shard(list_shards(scored / "scores")[0], SCORES).to_pylist()[0]
    ids = SceneQuestions(count=96, seed=3).ids
    index = list(ids).index(row["question_id"])
    known = {
        name: raw_logprobs(stages[name] / "model", index, row["token_ids"])
        for name in ("model/student", "train/1-mid", "train/2-teacher")
    }
    for stored in (row["logprobs"], score["reference_logprobs"]):
        assert far(stored, known["train/1-mid"]) < 1e-4
        assert far(stored, known["model/student"]) > 1e-2
        assert far(stored, known["train/2-teacher"]) > 1e-2


def test_the_masks_of_an_assistant_are_of_its_trained_weights(out: Path) -> None:
    """Applying thresholds counts the zeros: those of other weights are refused."""
    stages = folders(out, "ladder")
    thresholds = load_thresholds(stages["mask/mid@0"] / "thresholds.json")

    def mask(stage: str) -> None:
        folder = stages[stage] / "model"
        MaskedTeacher(load_model(str(folder)), folder, thresholds).set_ratio(3000)

    mask("train/0-teacher-to-mid")
    with pytest.raises(ModelError, match="belong to other weights"):
        mask("model/mid")


def test_the_assistant_is_evaluated_before_and_after(out: Path) -> None:
    stages = folders(out, "ladder")
    ratios = {
        name: [r["ratio"] for r in read(stages[f"evaluate/{name}"] / "results.json")["rows"]
               if r["kind"] == "all"]
        for name in ("teacher-mid", "teacher-mid@0", "teacher-teacher")
    }  # fmt: skip
    assert ratios == {
        "teacher-mid": [0],
        "teacher-mid@0": [0, 3000],
        "teacher-teacher": [0, 2000, 2500, 4000, 5000],
    }
    report = read(out / "report" / "report.json")
    named = {row["run"] for row in report["summary"]["runs"]}
    between = {"ladder/1-mid"}  # the phase before trained the assistant
    assert named == {"start", "ladder", "teacher", "teacher-mid", "teacher-mid@0"} | between
    assert [point["ratio"] for point in report["masking"]] == [0, 0.2, 0.25, 0.4, 0.5]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["1-mid", "2-teacher"])
def test_a_run_killed_in_a_later_phase_ends_the_same(
    name: str, recipe: Path, out: Path, tmp_path: Path
) -> None:
    folder = tmp_path / folders(out, "ladder")[f"train/{name}"].relative_to(out)
    words = command("run", str(recipe), "--out", str(tmp_path))
    run = subprocess.Popen(words, env=environment(), start_new_session=True)
    began = time.monotonic()
    while not (folder / "metrics.jsonl").exists():
        assert run.poll() is None and time.monotonic() - began < 300
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert not (folder / "record.json").exists(), "killed while the phase trained"
    succeeds("run", str(recipe), "--out", str(tmp_path))
    expected, found = folders(out, "ladder"), folders(tmp_path, "ladder")
    assert found.keys() == expected.keys()
    for stage in found:
        assert differences(found[stage], expected[stage]) == [], stage
