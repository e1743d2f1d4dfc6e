"""Masks in memory: nested, exact going up and down, ratio 0 bit for bit the checkpoint."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from masters.errors import ModelError
from masters.models.layers import maskable_layers
from masters.teachers.masked import MaskedTeacher
from masters.teachers.measuring import measure_thresholds
from masters.teachers.thresholds import Thresholds

from .conftest import Tiny

RATIOS = (1000, 2000, 5000)


def measured(tiny: Tiny) -> Thresholds:
    return measure_thresholds(tiny.folder, RATIOS)


def weights(tiny: Tiny) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in tiny.model.named_parameters()}


def test_up_and_down_agree_and_zero_restores_every_bit(teacher: Tiny) -> None:
    thresholds = measured(teacher)
    masked = MaskedTeacher(teacher.model, teacher.folder, thresholds)
    rising = {}
    for ratio in RATIOS:
        masked.set_ratio(ratio)
        rising[ratio] = weights(teacher)
    assert masked.bytes_read == 0
    for ratio in reversed(RATIOS):
        masked.set_ratio(ratio)
        for name, weight in weights(teacher).items():
            assert torch.equal(weight, rising[ratio][name]), name
    masked.set_ratio(0)
    assert masked.bytes_read > 0
    for name, original in load_file(teacher.folder / "model.safetensors").items():
        now = dict(teacher.model.named_parameters())[name]
        assert torch.equal(now.view(torch.int32), original.view(torch.int32)), name


def test_masks_are_nested_and_counted(teacher: Tiny) -> None:
    thresholds = measured(teacher)
    masked = MaskedTeacher(teacher.model, teacher.folder, thresholds)
    before: dict[str, torch.Tensor] = {}
    for column, ratio in enumerate(RATIOS):
        masked.set_ratio(ratio)
        zeros = 0
        for name, layer in thresholds.layers.items():
            gone = teacher.model.get_submodule(name).weight == 0
            assert int(gone.sum()) == layer.zeros[column] <= ratio * layer.size / 10_000
            assert not (before.get(name, gone) & ~gone).any()
            before[name] = gone
            zeros += int(gone.sum())
        assert thresholds.share_of_zeros(ratio) == pytest.approx(
            zeros / sum(p.numel() for p in teacher.model.parameters())
        )


def test_embeddings_head_norms_and_biases_stay_whole(teacher: Tiny) -> None:
    original = weights(teacher)
    thresholds = measured(teacher)
    MaskedTeacher(teacher.model, teacher.folder, thresholds).set_ratio(5000)
    touched = {f"{name}.weight" for name in thresholds.layers}
    assert "lm_head.weight" not in touched
    for name, weight in weights(teacher).items():
        assert torch.equal(weight, original[name]) == (name not in touched), name


def test_patterns(teacher: Tiny) -> None:
    language = maskable_layers(teacher.model, include=["*language_model*"])
    rest = maskable_layers(teacher.model, exclude=["*language_model*"])
    assert language and rest and set(language) | set(rest) == set(maskable_layers(teacher.model))
    assert language == maskable_layers(teacher.model, parts=["language"])
    assert set(rest) == set(maskable_layers(teacher.model, parts=["projector", "vision"]))
    with pytest.raises(ModelError, match="matches none of the"):
        maskable_layers(teacher.model, include=["*nothing*"])
    with pytest.raises(ModelError, match="output head"):
        maskable_layers(teacher.model, include=["lm_*"])


def test_a_ratio_that_was_not_measured_is_refused(teacher: Tiny) -> None:
    masked = MaskedTeacher(teacher.model, teacher.folder, measured(teacher))
    with pytest.raises(ModelError, match="no thresholds for masking ratio 3000"):
        masked.set_ratio(3000)


def test_thresholds_of_other_weights_are_refused(teacher: Tiny) -> None:
    thresholds = measured(teacher)
    name = next(iter(thresholds.layers))
    with torch.no_grad():
        teacher.model.get_submodule(name).weight.mul_(3)
    masked = MaskedTeacher(teacher.model, teacher.folder, thresholds)
    with pytest.raises(ModelError, match="belong to other weights"):
        masked.set_ratio(5000)
