"""Tiny models with scaled initialisation (sharp, so that mistakes show), and groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from masters.data.scenes import SceneQuestions, scene_vocabulary
from masters.models.encode import EncodedPrompt, PromptText, encode_prompt
from masters.models.load import TokenIds, load_model, load_processor, token_ids
from masters.models.tiny import write_tiny_model
from masters.training.groups import Group, Response


@dataclass
class Tiny:
    """A loaded tiny model and the prompts of eight scenes."""

    model: Any
    processor: Any
    ids: TokenIds
    folder: Path
    prompts: list[EncodedPrompt]


def load_tiny(folder: Path) -> Tiny:
    model, processor = load_model(str(folder)), load_processor(str(folder))
    questions = SceneQuestions(count=8, seed=5)
    text = PromptText(suffix=None)
    prompts = [encode_prompt(processor, q, questions.open_images(q), text) for q in questions]
    return Tiny(model, processor, token_ids(model, processor), folder, prompts)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("models")
    texts = scene_vocabulary()
    write_tiny_model(root / "student", "qwen3_vl_100k", seed=1, texts=texts)
    write_tiny_model(root / "teacher", "qwen3_vl_250k", seed=2, texts=texts)
    for name in ("student", "teacher"):
        sharpen(root / name)
    return root / "student", root / "teacher"


def sharpen(folder: Path) -> None:
    """Scales the output head up: near-uniform distributions hide mistakes."""
    model = load_model(str(folder))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(6)
    model.save_pretrained(folder)


@pytest.fixture
def student(folders: tuple[Path, Path]) -> Tiny:
    return load_tiny(folders[0])


@pytest.fixture
def teacher(folders: tuple[Path, Path]) -> Tiny:
    return load_tiny(folders[1])


def make_groups(student: Tiny, teacher: Tiny, *, seed: int = 0, size: int = 4) -> list[Group]:
    """Eight groups with responses of unequal lengths and a duplicate in each."""
    generator = torch.Generator().manual_seed(seed)
    groups = []
    for q, (mine, theirs) in enumerate(zip(student.prompts, teacher.prompts, strict=True)):
        responses = []
        for j in range(size):
            length = 1 + int(torch.randint(1 + 2 * ((q + j) % 4), (1,), generator=generator))
            ids = torch.randint(100, student.ids.vocabulary, (length,), generator=generator)
            responses.append(
                Response(
                    token_ids=(*ids.tolist(), student.ids.end[0]),
                    source="teacher" if j < size // 2 else "student",
                    accuracy=float(torch.randint(2, (1,), generator=generator)),
                    reference=tuple([-2.0] * (length + 1)),
                )
            )
        responses.append(responses[0])
        groups.append(
            Group(
                question_id=f"q{q}",
                student_prompt=mine,
                teacher_prompt=theirs,
                responses=tuple(responses),
            )
        )
    return groups
