"""Tiny vision-language models of a real architecture, made on the spot.

They exist so that everything in Masters (demo, tests, docs) runs on real transformers classes where
no weights can be downloaded. A tiny model is saved as an ordinary transformers folder and is loaded
through the Auto classes like any other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'text' -%}{{ part.text }}{%- endif -%}
{%- endfor -%}{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""

#: Words beside a data set's own that make the tokenizer fit everyday questions about pictures.
EVERYDAY_WORDS = (
    "user assistant system yes no true false zero one two three four five six seven eight nine "
    "ten what which where how many is are there does the a an image picture shape color colour "
    "present contain in of at to and or not red green blue yellow black gray grey teal brown "
    "white purple orange circle square rectangle triangle cross left right top bottom middle "
    "above below between box object item tower Answer with a word or a phrase."
)


@dataclass(frozen=True, kw_only=True)
class TinySize:
    """Shape of a tiny Qwen3-VL: text trunk and vision tower."""

    hidden: int
    layers: int
    heads: int
    ffn: int
    vision_hidden: int
    vision_layers: int
    vision_heads: int
    init: float


#: Sizes by name. ``init`` is about 1/sqrt(hidden): with the usual 0.02 they hardly learn.
TINY_SIZES: dict[str, TinySize] = {
    "qwen3_vl_1m": TinySize(
        hidden=128, layers=2, heads=4, ffn=256,
        vision_hidden=96, vision_layers=1, vision_heads=2, init=0.125,
    ),
    "qwen3_vl_500k": TinySize(
        hidden=96, layers=2, heads=3, ffn=192,
        vision_hidden=64, vision_layers=1, vision_heads=2, init=0.11,
    ),
    "qwen3_vl_250k": TinySize(
        hidden=64, layers=2, heads=4, ffn=128,
        vision_hidden=48, vision_layers=1, vision_heads=2, init=0.1,
    ),
    "qwen3_vl_100k": TinySize(
        hidden=32, layers=2, heads=2, ffn=64,
        vision_hidden=32, vision_layers=1, vision_heads=2, init=0.12,
    ),
    "qwen3_vl_90k": TinySize(
        hidden=32, layers=2, heads=2, ffn=64,
        vision_hidden=24, vision_layers=1, vision_heads=2, init=0.12,
    ),
}  # fmt: skip

PATCH = 8
MERGE = 2
VOCABULARY = 512
#: Prompts have tens of tokens: a base this low makes neighbouring rows and columns tell apart.
ROPE_THETA = 20.0
#: Standard deviations at the start of words and of visual places: at ``init`` the content of a
#: patch drowns its place, and "what is at the top left" stays unlearnt for long.
WORD_INIT = 0.3
PLACE_INIT = 1.0
#: Pixel normalisation (value / 255 - mean) / std: a light background comes out near zero.
IMAGE_MEAN = 0.93
IMAGE_STD = 0.4


def train_tokenizer(texts: Iterable[str]) -> Any:
    """A byte-level BPE tokenizer of at most ``VOCABULARY`` tokens, the same for the same texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = EVERYDAY_WORDS.split()
    tokenizer.train_from_iterator([*texts, *words, *(" " + word for word in words)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def tiny_config(size: TinySize, tokenizer: Any) -> Any:
    """The transformers configuration of a tiny Qwen3-VL over this tokenizer."""
    from transformers import Qwen3VLConfig

    def token(name: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(name))

    head_dim = size.hidden // size.heads
    half = head_dim // 2
    height = width = half * 5 // 16
    return Qwen3VLConfig(
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": size.hidden,
            "intermediate_size": size.ffn,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.heads,
            "head_dim": head_dim,
            "max_position_embeddings": 2048,
            "initializer_range": size.init,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": ROPE_THETA,
                "mrope_section": [half - height - width, height, width],
                "mrope_interleaved": True,
            },
            "pad_token_id": token("<|endoftext|>"),
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "tie_word_embeddings": False,
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden,
            "intermediate_size": 2 * size.vision_hidden,
            "num_heads": size.vision_heads,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": size.hidden,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
            "initializer_range": size.init,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=False,
    )


def write_tiny_model(
    folder: Path, name: str, *, seed: int, texts: Iterable[str], longest_edge: int = 128
) -> None:
    """Writes a randomly initialised tiny VLM as a transformers folder, processor included.

    Args:
        folder: where to write; made when missing.
        name: a key of ``TINY_SIZES``.
        seed: of the random weights.
        texts: what the tokenizer is trained on; models that should share a vocabulary get the same.
        longest_edge: images above this many pixels a side (squared area) are scaled down.
    """
    import torch
    from transformers import AutoModelForImageTextToText, GenerationConfig, Qwen2VLImageProcessorPil

    tokenizer = train_tokenizer(texts)
    config = tiny_config(TINY_SIZES[name], tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        torch.nn.init.normal_(model.model.language_model.embed_tokens.weight, std=WORD_INIT)
        torch.nn.init.normal_(model.model.visual.pos_embed.weight, std=PLACE_INIT)
    model.generation_config = GenerationConfig(
        eos_token_id=config.text_config.eos_token_id, pad_token_id=config.text_config.pad_token_id
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shared: dict[str, Any] = {
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "image_mean": [IMAGE_MEAN] * 3,
        "image_std": [IMAGE_STD] * 3,
    }
    pixels = {"shortest_edge": (2 * PATCH * MERGE) ** 2, "longest_edge": longest_edge**2}
    Qwen2VLImageProcessorPil(size=pixels, **shared).save_pretrained(folder)
    video = {"video_processor_type": "Qwen3VLVideoProcessor", **shared}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video, indent=2) + "\n")
