"""Which model a fingerprint means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from masters.fingerprints import Contents


def identity(folder: Path, tensors: dict[str, Any]) -> Any:
    """What identifies a model with these weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors")
    return Contents().model(str(folder), None)


@pytest.mark.parametrize("name", ["first", "between", "last", "scalar"])
def test_one_tensor_trained_further_makes_another_model(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    weights = {key: rng.normal(size=(40, 300)) for key in ("first", "between", "last")}
    weights |= {"scalar": np.ones(1), "none": np.zeros((0, 4))}
    before = identity(tmp_path / "one", weights)
    assert identity(tmp_path / "copied", weights) == before, "wherever it lies"
    after = identity(tmp_path / "two", {**weights, name: weights[name] * 1.001})
    assert after["files"].keys() == before["files"].keys()
    assert after["files"]["model.safetensors"][0] == before["files"]["model.safetensors"][0]
    assert after != before


def test_many_tensors_are_looked_at_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masters.fingerprints._MOST_TENSORS", 10)
    weights = {f"t{i:03}": np.full(8, float(i)) for i in range(95)}
    before = identity(tmp_path / "one", weights)
    trained = {key: value + 1 for key, value in weights.items()}
    assert identity(tmp_path / "two", trained) != before
