"""Writes a tiny random model of a family as its published checkpoints lie on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from masters.models.families import FAMILIES
from tests.families.architectures import BUILDERS, Shape
from tests.families.tokens import TOKENS, train_tokenizer

#: Families of the table; InternVL with both text models, and two architectures outside the table.
FAMILY_NAMES = (*FAMILIES, "internvl_qwen3", "llava", "glm4v")

SHAPES = {
    "student": Shape(hidden=32, layers=2, vision_hidden=32, image=32, tied=False),
    "teacher": Shape(hidden=64, layers=2, vision_hidden=48, image=48, tied=False),
    # vLLM takes no heads that are 16 wide.
    "wide": Shape(hidden=128, layers=2, vision_hidden=64, image=48, tied=False, head=64),
}


def write_tiny(
    folder: Path,
    family: str,
    *,
    size: str,
    seed: int,
    texts: Iterable[str] = (),
    sharpness: float = 4.0,
) -> None:
    """Writes a transformers folder: random weights, tokenizer, chat template, processor files.

    Args:
        folder: where to write.
        family: one of ``FAMILY_NAMES``.
        size: one of ``SHAPES``: other widths, other image resolution, same vocabulary.
        seed: of the weights.
        texts: what the tokenizer is trained on.
        sharpness: of the output head: near-uniform distributions hide mistakes.
    """
    import torch
    from transformers import AutoModelForImageTextToText, GenerationConfig

    tokens = TOKENS[family]
    tokenizer = train_tokenizer(tokens, texts)
    built = BUILDERS[family](SHAPES[size], tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoModelForImageTextToText.from_config(built.config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():  # projections that transformers starts at zero, biases
                    parameter.normal_(std=0.1)
            model.get_output_embeddings().weight.mul_(sharpness)
    ends = sorted(int(tokenizer.convert_tokens_to_ids(token)) for token in tokens.ends)
    model.generation_config = GenerationConfig(
        eos_token_id=ends if len(ends) > 1 else ends[0], pad_token_id=tokenizer.pad_token_id
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    built.images.save_pretrained(folder)
    _published_name(folder / "preprocessor_config.json")
    if built.processor:
        (folder / "processor_config.json").write_text(json.dumps(built.processor, indent=2))


def _published_name(file: Path) -> None:
    """Published files name the image processor's class without its backend."""
    values = json.loads(file.read_text())
    values["image_processor_type"] = values["image_processor_type"].removesuffix("Pil")
    file.write_text(json.dumps(values, indent=2))
