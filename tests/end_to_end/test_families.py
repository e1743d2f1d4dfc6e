"""Every architecture through all stages by the command line, with a masked teacher."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from masters.models.checkpoint import checkpoint_tensors
from masters.models.load import load_processor
from tests.end_to_end.pictures import write_rows
from tests.families import FAMILY_NAMES, TOKENS, write_tiny
from tests.families.boxes import COLOURS, QUESTION, make_boxes
from tests.running import folders, lines, read, succeeds

QUESTIONS = 12
#: What a tensor of each part has in its name, in one family or another.
PARTS = (
    ("language_model", "text_model"),
    ("visual.blocks", "vision_tower", "vision_model"),
    ("projector", "connector", "merger"),
    ("lm_head", "embed_tokens"),
)
PROFILE = """
models:
  student: {{path: {student}}}
  teachers: [{{name: teacher, path: {teacher}}}]
data: {{train: {train}, validation: {test}, test: {test}}}
method:
  responses: {{max_new_tokens: 6, student: 2, teacher: 2}}
  phases: [{{teacher: teacher, mask: {{max_ratio: "0.4", step: "0.4"}}, epochs: 1}}]
  optimiser: {{questions_per_step: 4, precision: fp32, lr: 3.0e-4}}
validation: {{every: 2}}
evaluation: {{masking_ratios: ["0.4", "0"]}}
runtime: {{device: cpu, threads: 1, workers: 0, generation_batch: 64}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_all_stages(family: str, tmp_path: Path) -> None:
    """A teacher of twice the width and its own image resolution, pictures of unequal sizes."""
    texts = (QUESTION, *COLOURS)
    for seed, size in enumerate(("student", "teacher")):
        write_tiny(tmp_path / size, family, size=size, seed=seed, texts=texts)
    rows = make_boxes(tmp_path, QUESTIONS + 4)
    profile = tmp_path / "profile.yaml"
    profile.write_text(
        PROFILE.format(
            student=tmp_path / "student",
            teacher=tmp_path / "teacher",
            train=write_rows(tmp_path / "train.jsonl", rows[:QUESTIONS]),
            test=write_rows(tmp_path / "test.jsonl", rows[QUESTIONS:]),
        )
    )
    out = tmp_path / "out"
    succeeds("run", "masters", "--profile", str(profile), "--out", str(out))
    stages = folders(out)
    check_mask(stages, tmp_path / "teacher")
    check_training(lines(stages["train/0-teacher"] / "metrics.jsonl"))
    check_answers(family, stages, tmp_path / "student")
    check_model(stages["train/0-teacher"] / "model", tmp_path / "student")
    results = read(out / "report" / "report.json")["results"]
    assert {row["run"] for row in results} == {"start", "masters", "teacher"}
    assert {row["n"] for row in results} == {4}


def check_mask(stages: Mapping[str, Path], teacher: Path) -> None:
    metrics = read(stages["mask/teacher"] / "record.json")["metrics"]
    size = sum(entry.size for entry in checkpoint_tensors(teacher).values())
    assert metrics["parameters"] == size
    assert 0.3 < metrics["masked_parameters"] / size < 1
    assert metrics["share_of_zeros"]["4000"] == pytest.approx(
        0.4 * metrics["masked_parameters"] / size, abs=0.01
    )


def check_training(steps: list[Mapping[str, Any]]) -> None:
    assert [row["mask/ratio"] for row in steps] == [0.4, 0.4, 0.0]
    assert steps[0]["loss/kl"] < 1e-9
    for row in steps:
        assert all(math.isfinite(v) for v in row.values() if isinstance(v, float)), row
        assert row["grad_norm/total"] > 0 and row["loss/jsd"] > 0
    assert sum(row["groups/dropped"] for row in steps) == 0


def check_answers(family: str, stages: Mapping[str, Path], student: Path) -> None:
    """Nobody answers a picture token, and both read the pictures (`generate` refuses otherwise)."""
    from masters.data.tables import RESPONSES, list_shards, read_shard

    tokenizer = load_processor(str(student)).tokenizer
    pictures = {tokenizer.convert_tokens_to_ids(token) for token in TOKENS[family].pictures}
    for side in ("teacher", "student"):
        folder = stages[f"generate/0-teacher/{side}"] / "responses"
        found = [row for s in list_shards(folder) for row in read_shard(s, RESPONSES).to_pylist()]
        assert len(found) == 2 * QUESTIONS
        assert not pictures & {token for row in found for token in row["token_ids"]}


def check_model(trained: Path, student: Path) -> None:
    """Plain transformers loads it; every part was trained, nothing else was written anew."""
    model, report = AutoModelForImageTextToText.from_pretrained(trained, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert set(checkpoint_tensors(trained)) == set(checkpoint_tensors(student))
    before = AutoModelForImageTextToText.from_pretrained(student).state_dict()
    moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    for part in PARTS:
        assert any(word in name for name in moved for word in part), part
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    for file in student.iterdir():
        if file.suffix == ".json" and "processor" in file.name:
            assert json.loads((trained / file.name).read_text()) == json.loads(file.read_text())
