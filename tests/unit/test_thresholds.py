"""Thresholds: by hand, against a sort, bounds and nesting, all stored dtypes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from masters.errors import ModelError
from masters.models.checkpoint import checkpoint_tensors
from masters.teachers.thresholds import (
    LayerThresholds,
    Thresholds,
    layer_thresholds,
    load_thresholds,
    save_thresholds,
    tensor_thresholds,
)

RATIOS = [500, 1000, 3333, 5000, 9999]


def test_by_hand() -> None:
    weight = np.array([[-4.0, 1.0], [3.0, -2.0]], dtype=np.float32)
    values, zeros = layer_thresholds(weight, [2500, 5000, 7400])
    # floor(r n) = 1, 2, 2 -> the 2nd and 3rd smallest of 1, 2, 3, 4
    assert values == (2.0, 3.0, 3.0)
    assert zeros == (1, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_against_a_sort_on_disk(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(37, 53) * 0.02).to(dtype)
    save_file({"w": weight}, tmp_path / "model.safetensors")
    layer = tensor_thresholds(checkpoint_tensors(tmp_path)["w"], RATIOS)
    magnitude = weight.abs().flatten().double().sort().values
    n = magnitude.numel()
    for ratio, value, zeros in zip(RATIOS, layer.values, layer.zeros, strict=True):
        assert value == magnitude[ratio * n // 10_000].item()
        assert zeros == int((weight.abs().double() < value).sum()) <= ratio * n / 10_000
    assert list(layer.values) == sorted(layer.values)


def test_ties_never_exceed_the_ratio() -> None:
    weight = np.array([1.0] * 9 + [0.5], dtype=np.float32)
    values, zeros = layer_thresholds(weight, [5000])
    assert values == (1.0,) and zeros == (1,)


def test_zeros_in_the_weights() -> None:
    values, zeros = layer_thresholds(np.zeros(8, dtype=np.float32), [5000])
    assert values == (0.0,) and zeros == (0,)


def test_refuses_nan_and_quantised(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="NaN"):
        layer_thresholds(np.array([1.0, np.nan], dtype=np.float32), [1000])
    save_file({"w": torch.zeros(4, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="I8.*unquantised"):
        tensor_thresholds(checkpoint_tensors(tmp_path)["w"], [1000])


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(400)}, file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="the file is cut"):
        checkpoint_tensors(tmp_path)


def test_file_round_trip_and_shares(tmp_path: Path) -> None:
    layers = {"a": LayerThresholds(tensor="a.weight", size=100, values=(0.1, 0.2), zeros=(10, 20))}
    kept = Thresholds(ratios=(1000, 2000), layers=layers, parameters=200, weights="x")
    save_thresholds(kept, tmp_path / "thresholds.json")
    again = load_thresholds(tmp_path / "thresholds.json")
    assert again == kept
    assert again.share_of_zeros(2000) == 0.1 and again.share_of_zeros(0) == 0.0
    (tmp_path / "thresholds.json").write_text("{")
    with pytest.raises(ModelError, match="run mask again"):
        load_thresholds(tmp_path / "thresholds.json")
