"""Masks in memory: nested, exact going up and down, ratio 0 bit for bit the checkpoint."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any
from weakref import finalize

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from masters.errors import ModelError
from masters.models.layers import maskable_layers
from masters.models.load import load_model
from masters.models.tiny import write_tiny_model
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


class Memory(TorchDispatchMode):
    """Bytes of the tensors that torch operations made and that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not func.is_view:
            storage = made.untyped_storage()
            given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
            if storage.data_ptr() not in given | self._known:
                self._add(storage.data_ptr(), storage.nbytes(), made)
        return made

    def _add(self, at: int, size: int, made: torch.Tensor) -> None:
        self._known.add(at)
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self._known.discard(at)
            self.now -= size

        finalize(made, gone)


def test_masks_hold_a_few_copies_of_one_matrix_never_of_the_model(tmp_path: Path) -> None:
    """Torch's tensors and what numpy reads, while masks go up, down and back to nothing."""
    write_tiny_model(tmp_path, "qwen3_vl_1m", seed=1, texts=["a red circle"])
    thresholds = measure_thresholds(tmp_path, RATIOS)
    masked = MaskedTeacher(load_model(str(tmp_path)), tmp_path, thresholds)
    sizes = [4 * layer.size for layer in thresholds.layers.values()]
    tracemalloc.start()
    try:
        for ratio in (5000, 1000, 2000, 0):
            tracemalloc.reset_peak()
            at_first = tracemalloc.get_traced_memory()[0]
            with Memory() as torchs:
                masked.set_ratio(ratio)
            peak = torchs.peak + tracemalloc.get_traced_memory()[1] - at_first
            # The matrix as read, its absolute values, and which of them are small.
            assert max(sizes) <= peak < 2.5 * max(sizes) < sum(sizes) / 2
    finally:
        tracemalloc.stop()


def test_only_what_changes_is_read(teacher: Tiny) -> None:
    """Going down by one part in ten thousand moves no weight of a small matrix."""
    ratios = (5001, 5000)
    thresholds = measure_thresholds(teacher.folder, ratios)
    masked = MaskedTeacher(teacher.model, teacher.folder, thresholds)
    masked.set_ratio(5001)
    assert masked.bytes_read == 0
    masked.set_ratio(5000)
    up = thresholds.ratios.index(5001)
    changed = [ly.size for ly in thresholds.layers.values() if ly.zeros[up] != ly.zeros[1 - up]]
    assert masked.bytes_read == 4 * sum(changed) and 0 < len(changed) < len(thresholds.layers)
    fresh: Any = load_model(str(teacher.folder))
    MaskedTeacher(fresh, teacher.folder, thresholds).set_ratio(5000)
    for name, weight in fresh.named_parameters():
        assert torch.equal(weight, teacher.model.get_parameter(name)), name
    assert masked.seconds > 0
