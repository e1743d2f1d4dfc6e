"""Published configurations on the meta device: they load, have the published size, and their parts
are found. Where their values come from: tests/configs/SOURCES.md."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from masters.models.families import family_of
from masters.models.layers import maskable_layers
from masters.models.load import load_config
from masters.parts import PARTS
from masters.recipe import Mask, ModelSource, Phase
from masters.sizes import ModelSize, model_size, unloaded

CONFIGS = Path(__file__).parents[1] / "configs"

#: Checkpoint -> published parameters (exact, or in words to so many digits), rows of the head, the
#: id that stands for image features.
PUBLISHED: dict[str, tuple[int | str, int, int]] = {
    "Qwen2.5-VL-3B-Instruct": (3_754_622_976, 151_936, 151_655),
    "Qwen2.5-VL-7B-Instruct": (8_292_166_656, 152_064, 151_655),
    "Qwen2.5-VL-32B-Instruct": (33_452_718_336, 152_064, 151_655),
    "Qwen2.5-VL-72B-Instruct": ("73.4B", 152_064, 151_655),
    "Qwen3-VL-2B-Instruct": (2_127_532_032, 151_936, 151_655),
    "Qwen3-VL-4B-Instruct": (4_437_815_808, 151_936, 151_655),
    "Qwen3-VL-8B-Instruct": (8_767_123_696, 151_936, 151_655),
    "Qwen3-VL-30B-A3B-Instruct": (31_070_754_032, 151_936, 151_655),
    "Qwen3-VL-32B-Instruct": (33_357_390_064, 151_936, 151_655),
    "InternVL3-2B-hf": (2_088_957_440, 151_674, 151_667),
    "InternVL3-8B-hf": ("7.94B", 151_674, 151_667),
    "InternVL3-14B-hf": ("15.1B", 151_674, 151_667),
    "InternVL3-38B-hf": (38_388_164_992, 151_674, 151_667),
    "InternVL3-78B-hf": (78_408_318_336, 151_674, 151_667),
    "InternVL3_5-2B-HF": ("2.3B", 151_936, 151_671),
    "InternVL3_5-4B-HF": ("4.7B", 151_936, 151_671),
    "InternVL3_5-8B-HF": (8_528_318_464, 151_936, 151_671),
    "InternVL3_5-14B-HF": ("15.1B", 151_936, 151_671),
    "InternVL3_5-38B-HF": ("38.4B", 151_936, 151_671),
    "SmolVLM-256M-Instruct": (256_484_928, 49_280, 49_190),
    "SmolVLM2-500M-Video-Instruct": (507_482_304, 49_280, 49_190),
    "SmolVLM-Instruct": ("2.2B", 49_155, 49_153),
    "Idefics3-8B-Llama3": ("8.46B", 128_259, 128_257),
    "llava-onevision-qwen2-0.5b-ov-hf": ("0.9B", 152_000, 151_646),
    "llava-onevision-qwen2-7b-ov-hf": ("8.0B", 152_128, 151_646),
    "gemma-3-4b-it": (4_300_079_472, 262_208, 262_144),
    "gemma-3-12b-it": (12_187_325_040, 262_208, 262_144),
    "gemma-3-27b-it": (27_432_406_640, 262_208, 262_144),
}

#: Published in billions: vision tower, and language model with its head (InternVL's README).
INTERNVL3_5_PARTS = {
    "2B": ("0.3", "2.0"), "4B": ("0.3", "4.4"), "8B": ("0.3", "8.2"),
    "14B": ("0.3", "14.8"), "38B": ("5.5", "32.8"),
}  # fmt: skip


@cache
def built(name: str) -> Any:
    return unloaded(ModelSource(path=str(CONFIGS / name)))[0]


@cache
def sized(name: str) -> ModelSize:
    phases = [("0", Phase(mask=Mask()))]
    return model_size(ModelSource(path=str(CONFIGS / name)), "teacher", phases=phases)


def test_every_configuration_is_listed_with_its_source() -> None:
    folders = {path.parent.name for path in CONFIGS.glob("*/config.json")}
    assert folders == PUBLISHED.keys()
    sources = (CONFIGS / "SOURCES.md").read_text(encoding="utf-8")
    assert {name for name in PUBLISHED if f"| {name} |" not in sources} == set()


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_the_published_size(name: str) -> None:
    published, rows, _ = PUBLISHED[name]
    size = sized(name)
    if isinstance(published, int):
        assert size.parameters == published
    else:
        digits = len(published.partition(".")[2]) - 1
        assert f"{size.parameters / 1e9:.{digits}f}B" == published
    assert size.head_rows == rows
    assert sum(size.parts.values()) == size.parameters


@pytest.mark.parametrize("size", INTERNVL3_5_PARTS)
def test_parts_have_the_published_size(size: str) -> None:
    parts = sized(f"InternVL3_5-{size}-HF").parts
    language = parts["language"] + parts["other"]
    got = (f"{parts['vision'] / 1e9:.1f}", f"{language / 1e9:.1f}")
    assert got == INTERNVL3_5_PARTS[size]


@pytest.mark.parametrize("name", PUBLISHED)
def test_its_parts_and_ids_are_found(name: str) -> None:
    config = load_config(str(CONFIGS / name))
    model = built(name)
    family = family_of(model)
    assert model.get_submodule(family.head) is model.get_output_embeddings()
    assert all(sized(name).parts[part] > 0 for part in PARTS)
    _, rows, image = PUBLISHED[name]
    assert getattr(config, family.image_id) == image < rows
    for key in family.marker_ids:
        assert 0 <= getattr(config, key) < rows, key


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_its_mask_covers(name: str) -> None:
    model = built(name)
    family = family_of(model)
    layers = maskable_layers(model)
    assert {layer.part for layer in layers} == set(PARTS)
    names = {layer.name for layer in layers}
    assert not names & {family.head, f"{family.language}.embed_tokens"}
    assert not any(name.endswith((".gate", ".router")) for name in names)
    (masked,) = sized(name).masked
    assert masked.matrices == len(layers)
    assert 0.7 < masked.parameters / sized(name).parameters < 0.99
    stacked = name == "Qwen3-VL-30B-A3B-Instruct"
    assert (masked.matrices > masked.tensors) is stacked
    if stacked:
        assert masked.matrices - masked.tensors == 48 * 2 * (128 - 1), "layers x stacks x experts"


def test_padded_vocabularies_of_one_family_differ() -> None:
    """Qwen2.5-VL pads to two sizes: 128 rows that only the larger model has."""
    large, small = (sized(f"Qwen2.5-VL-{size}-Instruct").head_rows for size in ("72B", "3B"))
    assert large - small == 128
