"""Random masks: the scores, how many weights fall, and any part of a matrix by itself."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from masters.errors import ModelError, RecipeError
from masters.models.checkpoint import checkpoint_tensors
from masters.recipe import Mask, load_recipe
from masters.teachers import drawn
from masters.teachers.drawn import drawn_below, drawn_thresholds, scores
from masters.teachers.thresholds import tensor_thresholds

RATIOS = [500, 3333, 5000, 9999]


def test_scores_are_a_pure_function_of_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """53 bits of PCG64 seeded by the name, whatever part is asked for, in whatever blocks."""
    seed = int.from_bytes(hashlib.sha256(b"0/a.weight/2").digest()[:16], "big")
    expected = np.random.Generator(np.random.PCG64(seed)).random(1000)
    (whole,) = scores("a.weight", 2, 0, 1000)
    np.testing.assert_array_equal(whole, expected)
    monkeypatch.setattr(drawn, "BLOCK", 64)
    np.testing.assert_array_equal(
        np.concatenate(list(scores("a.weight", 2, 100, 700))), expected[100:700]
    )
    for other in (("a.weight", 3), ("a.weight", None), ("b.weight", 2)):
        assert abs(np.corrcoef(np.concatenate(list(scores(*other, 0, 1000))), expected)[0, 1]) < 0.2


@pytest.mark.parametrize("block", [1 << 20, 97])
def test_as_many_zeros_as_by_magnitude_against_a_sort(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(drawn, "BLOCK", block)
    torch.manual_seed(0)
    save_file({"w": torch.randn(3, 37, 53)}, tmp_path / "model.safetensors")
    entry = checkpoint_tensors(tmp_path)["w"]
    for matrix in (None, 1):
        layer = drawn_thresholds(entry, RATIOS, matrix=matrix)
        assert layer.size == 37 * 53 * (3 if matrix is None else 1)
        ordered = np.sort(np.concatenate(list(scores("w", matrix, 0, layer.size))))
        before = np.zeros(layer.size, dtype=bool)
        for column, ratio in enumerate(RATIOS):
            assert layer.values[column] == ordered[ratio * layer.size // 10_000]
            gone = drawn_below(layer, column, 0, layer.size)
            assert gone.sum() == layer.zeros[column] == ratio * layer.size // 10_000
            assert (before <= gone).all(), "nested"
            np.testing.assert_array_equal(drawn_below(layer, column, 53, 106), gone[53:106])
            before = gone
        assert layer.zeros == tensor_thresholds(entry, RATIOS, matrix=matrix).zeros
    assert not drawn_below(layer, 0, 5, 5).size


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(4, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="I8.*unquantised"):
        drawn_thresholds(checkpoint_tensors(tmp_path)["w"], [1000])


def test_orders() -> None:
    falling = Mask.model_validate({"max_ratio": "0.2", "step": "0.1"})
    rising = falling.model_copy(update={"order": "rising"})
    assert (falling.ratios, rising.ratios) == ((2000, 1000, 0), (0, 1000, 2000))
    soft = Mask.model_validate(
        {"max_ratio": "0.2", "step": "0.1", "kind": "softness", "temperatures": [2, 1.5, 1]}
    )
    assert [soft.temperature(ratio) for ratio in (2000, 1000, 0)] == [2, 1.5, 1]


SOFT = 'max_ratio: "0.6", step: "0.3", kind: softness, temperatures: [2, 1.5, 1]'


@pytest.mark.parametrize(
    ("mask", "more", "said"),
    [
        ("kind: softness", (), "temperatures is missing; expected one for each of the ratios 0.2"),
        ("temperatures: [1]", (), "is set, but kind is 'magnitude'"),
        (SOFT.replace("1.5, ", ""), (), "has 2 numbers; expected one for each of the ratios 0.6"),
        (SOFT.replace(", 1]", ", 1.1]"), (), "is 1.1 at ratio 0; expected 1 there"),
        (SOFT.replace("[2", "[0"), (), "temperatures"),
        (SOFT + ", parts: [vision]", (), "parts is set, but kind is 'softness'"),
        (SOFT, ("method.signal=hidden",), "stores one output head for all ratios"),
        (SOFT, ("method.responses.engine=vllm", "runtime.vllm.python=x"), "no checkpoint of"),
        (SOFT, ("evaluation.masking_ratios=[0.15]",), "is 0.15, for which the softness mask"),
        ("kind: large", (), "kind"),
    ],
)
def test_refused(mask: str, more: tuple[str, ...], said: str) -> None:
    curve = (
        () if any("masking_ratios" in one for one in more) else ("evaluation.masking_ratios=null",)
    )
    with pytest.raises(RecipeError, match=said):
        load_recipe("masters", "tiny", [f"method.phases.0.mask={{{mask}}}", *curve, *more])
