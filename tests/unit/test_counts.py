"""Counted operations beside those that torch counts while the model runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from masters.estimate.memory import kept_by_layers, kept_by_tower
from masters.models import counts
from masters.models.layers import meta_model
from masters.models.load import load_config
from masters.models.shape import model_shape
from masters.recipe import ModelSource, Sft
from masters.sizes import unloaded

CONFIGS = Path(__file__).parents[1] / "configs"
SIDE = 8  # patches across
IMAGE = SIDE * SIDE // 4


@pytest.fixture(scope="module")
def model() -> Any:
    """A tiny Qwen3-VL with a picture's worth of positions; eager, so that pairs are products."""
    from transformers import AutoModelForImageTextToText

    config = unloaded(ModelSource(tiny="qwen3_vl_250k", sft=Sft()))[0].config
    return AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()


def inputs(model: Any, text: int) -> dict[str, torch.Tensor]:
    ids = [model.config.image_token_id] * IMAGE + [20] * text
    types = [1] * IMAGE + [0] * text
    return {
        "input_ids": torch.tensor([ids]),
        "mm_token_type_ids": torch.tensor([types]),
        "pixel_values": torch.randn(SIDE * SIDE, 3 * 2 * 8 * 8),
        "image_grid_thw": torch.tensor([[1, SIDE, SIDE]]),
    }


def counted(work: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("text", [4, 40])
def test_a_forward_pass_is_what_torch_counts(model: Any, text: int) -> None:
    shape, tokens = model_shape(model), IMAGE + text
    got = counts.language(shape, tokens, tokens**2)
    got += counts.logits(shape, tokens) + counts.tower(shape, IMAGE)
    with torch.no_grad():
        torchs = counted(lambda: model(**inputs(model, text)))
    # What is no layer's weight is left out: rotary angles, interpolated places.
    assert got == pytest.approx(torchs, rel=0.01)


def test_a_backward_pass_is_two_forward_passes(model: Any) -> None:
    ids = torch.full((1, 48), 20)
    forward = counts.language(model_shape(model), 48, 48**2)
    torchs = counted(lambda: model.model(input_ids=ids).last_hidden_state.sum().backward())
    assert 3 * forward == pytest.approx(torchs, rel=0.03), "the first layer's input has no gradient"


def test_by_hand(model: Any) -> None:
    """The numbers of `qwen3_vl_250k`: 64 wide, 2 layers, MLP 128; tower 48 wide, 1 layer."""
    shape = model_shape(model)
    layer = 4 * 64 * 64 + 3 * 64 * 128
    assert shape.weights == 2 * layer
    assert shape.head == 64 * shape.head_rows
    patch = 3 * 2 * 8 * 8 * 48
    assert shape.tower_weights == patch + 4 * 48 * 48 + 2 * 48 * 96
    merged = 4 * 48
    assert shape.projector_weights == 2 * (merged * merged + merged * 64), "merger and deepstack"
    assert counts.language(shape, 10, 55) == 2 * 10 * 2 * layer + 4 * 55 * 64 * 2
    assert counts.packed(5, 3, 2) == (11, 15 + 2 * (15 + 6))
    assert counts.repeated(5, 3, 2) == (16, 2 * 36)


def test_of_experts_those_that_a_token_meets_count() -> None:
    model, _, _ = unloaded(ModelSource(path=str(CONFIGS / "Qwen3-VL-30B-A3B-Instruct")))
    shape = model_shape(model)
    active = shape.weights + shape.head + shape.tower_weights
    assert shape.parameters > 30e9
    assert 2.9e9 < active < 3.7e9, "3B of 30B are active"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/config.json")), ids=lambda p: p.parent.name)
def test_every_published_configuration_has_a_shape(path: Path) -> None:
    shape = model_shape(meta_model(load_config(str(path.parent))))
    assert 0 < shape.weights < shape.parameters
    assert shape.tower_weights > 0 and shape.patches >= 1
    assert 0 < shape.largest_layer <= shape.layer_parameters < shape.parameters


def test_scoring_makes_logits_again_beyond_a_chunk(model: Any) -> None:
    shape = model_shape(model)
    one = counts.logits(shape, 100)
    assert counts.scoring(shape, shape, 100, chunk=100) == pytest.approx((2 + 3) * one)
    assert counts.scoring(shape, shape, 100, chunk=50) == pytest.approx((2 * 1.5 + 3) * one)
    assert counts.scoring(shape, None, 100, chunk=100) == pytest.approx((1 + 2) * one)


def test_activations_are_what_autograd_keeps() -> None:
    """Counted tensors of a forward pass beside the storages that its backward pass would need."""
    from transformers import AutoModelForImageTextToText

    config = unloaded(ModelSource(tiny="qwen3_vl_1m", sft=Sft()))[0].config
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    for text in (40, 400):
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states = model.model(**inputs(model, text)).last_hidden_state
        shape = model_shape(model)
        counted = kept_by_layers(shape, IMAGE + text) + kept_by_tower(shape, IMAGE)
        assert 4 * counted == pytest.approx(sum(kept.values()), rel=0.3), text
        del states
