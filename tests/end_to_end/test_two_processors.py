"""Teacher and student with resolution, head and added tokens of their own, through all stages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from masters.data.tables import RESPONSES, read_shards
from tests.end_to_end.pictures import make_rows, sets_for, write_rows
from tests.running import fails, folders, lines, read, succeeds

TEXTS = ["what colour is the box?", "red", "green", "blue", "yellow"]


def write_pair(folder: Path) -> tuple[Path, Path]:
    """A student that reads 64 x 64 pixels and a teacher that reads 128 x 128."""
    from masters.models.tiny import write_tiny_model

    student, teacher = folder / "student", folder / "teacher"
    write_tiny_model(student, "qwen3_vl_100k", seed=0, texts=TEXTS, longest_edge=64)
    write_tiny_model(teacher, "qwen3_vl_250k", seed=1, texts=TEXTS, longest_edge=128)
    return student, teacher


def more_rows(folder: Path, rows: int, *, favour: int) -> None:
    """Pads embedding and head with random rows, and lets the model like to say ``favour``."""
    import torch

    from masters.models.load import load_model

    model = load_model(str(folder))
    generator = torch.Generator().manual_seed(0)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        more = torch.randn(rows, module.weight.shape[1], generator=generator) / 8
        module.weight = torch.nn.Parameter(torch.cat([module.weight.detach(), more]))
    with torch.no_grad():
        model.get_output_embeddings().weight[favour].mul_(8)
    model.config.get_text_config().vocab_size += rows
    model.save_pretrained(folder)


def add_token(folder: Path, token: str) -> int:
    """An added token at the end of a tokenizer, as tool tokens are; its id."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([token])
    tokenizer.save_pretrained(folder)
    return int(tokenizer.convert_tokens_to_ids(token))


def placeholders(folder: Path) -> int:
    """Image placeholders of a picture of 160 x 160 pixels, as the folder's processor reads it."""
    from masters.data.questions import Question
    from masters.models.encode import PromptText, encode_prompt
    from masters.models.load import load_processor

    processor = load_processor(str(folder))
    question = Question(id="q", text="what colour is the box?", images=("x",))
    encoded = encode_prompt(processor, question, [Image.new("RGB", (160, 160))], PromptText())
    return encoded.ids.count(processor.tokenizer.convert_tokens_to_ids("<|image_pad|>"))


def common_ids(student: Path) -> int:
    """How many tokens the student has."""
    from masters.models.load import load_processor

    return len(load_processor(str(student)).tokenizer)


def run_pair(verb: Callable[..., str], student: Path, teacher: Path, out: Path, *sets: str) -> str:
    """The whole method on pictures of 160 x 160 pixels."""
    rows = make_rows(out.parent, 8)
    for path in (out.parent / "pictures").iterdir():
        Image.open(path).resize((160, 160)).save(path)
    data = write_rows(out.parent / "rows.jsonl", rows)
    paths = (
        f"models.student={{path: {student}, tiny: null, sft: null}}",
        f"models.teachers=[{{name: teacher, path: {teacher}}}]",
    )
    own = [value for value in sets_for(data, data) if not value.startswith("models.")]
    words = ("masters", "--profile", "tiny", "--out", str(out))
    return verb("run", *words, sets=(*paths, *own, *sets))


def test_resolutions_heads_and_added_tokens_of_their_own(tmp_path: Path) -> None:
    student, teacher = write_pair(tmp_path)
    more_rows(teacher, 256, favour=add_token(teacher, "<tool_call>"))
    assert (placeholders(student), placeholders(teacher)) == (16, 64)
    run_pair(succeeds, student, teacher, tmp_path / "out")
    stages = folders(tmp_path / "out")
    metrics = read(stages["train/0-teacher"] / "record.json")["metrics"]
    steps = lines(stages["train/0-teacher"] / "metrics.jsonl")
    assert metrics["steps"] == len(steps) == 2
    assert all(step["tokens"] > 0 and step["loss/jsd"] > 0 for step in steps)
    # Scored by the student that answered: the KL of the first step is rounding.
    assert steps[0]["loss/kl"] < 1e-9
    said = read_shards(stages["generate/0-teacher/teacher"] / "responses", RESPONSES)["token_ids"]
    foreign = sum(max(ids) >= common_ids(student) for ids in said.to_pylist())
    assert 0 < foreign < len(said)
    assert metrics["responses_outside_vocabulary"] == foreign
    scored = read(stages["score/0-teacher/teacher"] / "record.json")["metrics"]
    assert scored["responses_without_scores"] == foreign


def test_a_teacher_with_another_processor(tmp_path: Path) -> None:
    """Named by the stage that would ask it first: nothing has been answered yet."""
    student, teacher = write_pair(tmp_path)
    path = teacher / "preprocessor_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "merge_size": 1}))
    message = run_pair(fails, student, teacher, tmp_path / "out", "runtime.jobs=1")
    assert f"{teacher}: the teacher gets" in message
    assert "image placeholders from its processor and makes" in message
    assert not list(tmp_path.glob("out/stages/*/responses/*"))
