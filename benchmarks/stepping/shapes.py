"""Models of a real architecture at a size for one core, and questions of a wanted shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from masters.models.encode import EncodedPrompt
from masters.training.groups import Group, Response

IMAGE, VIDEO, START, END = 2, 3, 4, 5
FIRST_WORD = 10
PATCH, MERGE = 16, 2


@dataclass(frozen=True, kw_only=True)
class Size:
    """Width and depth of a model; its heads are 64 wide (16 in a model of 64)."""

    hidden: int
    layers: int
    vision_hidden: int
    vision_layers: int = 2

    @property
    def head(self) -> int:
        """Channels of a head."""
        return 64 if self.hidden >= 512 else 16


STUDENT = Size(hidden=512, layers=6, vision_hidden=192)
TEACHER = Size(hidden=1024, layers=4, vision_hidden=256)
QUICK_STUDENT = Size(hidden=64, layers=2, vision_hidden=32)
QUICK_TEACHER = Size(hidden=128, layers=2, vision_hidden=32)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question: tokens of its prompt and of each response, responses, vocabulary.

    Three quarters of the prompt are image tokens, unless it has no picture.
    """

    prefix: int
    response: int = 48
    group: int = 8
    vocabulary: int = 4096
    picture: bool = True

    @property
    def image_tokens(self) -> int:
        """Placeholders in the prompt, a full rectangle."""
        return self.prefix * 3 // 4 if self.picture else 0

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (down, across) of the picture: four for each image token."""
        tokens = self.image_tokens
        down = next(n for n in range(int(tokens**0.5), 0, -1) if tokens % n == 0)
        return MERGE * down, MERGE * (tokens // down)

    @property
    def token_limit(self) -> float:
        """How many times fewer tokens a packed row has than repeated ones: G(P+R)/(P+GR)."""
        repeated = self.group * (self.prefix + self.response)
        return repeated / (self.prefix + self.group * self.response)


def random_model(size: Size, vocabulary: int, *, seed: int) -> Any:
    """A Qwen3-VL of this size with random weights, logits of about unit size."""
    from transformers import AutoModelForImageTextToText, Qwen3VLConfig

    half = size.head // 2
    side = half * 5 // 16
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": size.hidden,
            "intermediate_size": 3 * size.hidden,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.hidden // size.head,
            "num_key_value_heads": size.hidden // size.head // 2,
            "head_dim": size.head,
            "max_position_embeddings": 8192,
            "initializer_range": size.hidden**-0.5,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [half - 2 * side, side, side],
                "mrope_interleaved": True,
            },
            "pad_token_id": 0,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "tie_word_embeddings": False,
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden,
            "intermediate_size": 4 * size.vision_hidden,
            "num_heads": max(1, size.vision_hidden // 64),
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": size.hidden,
            "num_position_embeddings": 576,
            "deepstack_visual_indexes": [0],
            "initializer_range": size.vision_hidden**-0.5,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForImageTextToText.from_config(config, dtype=torch.float32)


def published_model(
    folder: Path, *, dtype: torch.dtype, device: torch.device, layers: int | None = None
) -> Any:
    """A Qwen3-VL of a published shape with random weights, drawn on the device.

    Its special ids are those of `question`.

    Args:
        folder: with its ``config.json``.
        dtype, device: of its weights; there is no copy elsewhere.
        layers: of the language model; None: as many as it has.
    """
    from transformers import AutoModelForImageTextToText

    from masters.models.load import load_config

    config = load_config(str(folder))
    config.image_token_id, config.video_token_id = IMAGE, VIDEO
    config.vision_start_token_id, config.vision_end_token_id = START, END
    if layers is not None:
        config.text_config.num_hidden_layers = layers
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    return model.to(device).eval()


def question(case: Case, *, seed: int = 0) -> Group:
    """A question whose responses all differ; teacher and student read the same prompt."""
    draw = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(FIRST_WORD, case.vocabulary, (count,), generator=draw).tolist()

    prompt = _prompt(case, words, draw)
    responses = tuple(
        Response(
            token_ids=tuple(words(case.response)),
            source="teacher" if j < case.group // 2 else "student",
            accuracy=float(j % 2),
        )
        for j in range(case.group)
    )
    return Group(
        question_id=str(seed), student_prompt=prompt, teacher_prompt=prompt, responses=responses
    )


def _prompt(case: Case, words: Any, draw: torch.Generator) -> EncodedPrompt:
    count = case.image_tokens
    if not count:
        types = {"mm_token_type_ids": [0] * case.prefix}
        return EncodedPrompt(text="", ids=words(case.prefix), token_types=types, images={})
    down, across = case.grid
    text = words(case.prefix - count - 2)
    return EncodedPrompt(
        text="",
        ids=[START, *[IMAGE] * count, END, *text],
        token_types={"mm_token_type_ids": [0, *[1] * count, 0, *[0] * len(text)]},
        images={
            "pixel_values": torch.randn(down * across, 3 * 2 * PATCH**2, generator=draw),
            "image_grid_thw": torch.tensor([[1, down, across]]),
        },
    )
