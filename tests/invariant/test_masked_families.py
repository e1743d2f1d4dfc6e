"""Masks of every architecture: renamed tensors, stacks of experts, shards, and checkpoints made of
them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from masters.errors import ModelError
from masters.models.checkpoint import checkpoint_tensors
from masters.models.layers import maskable_layers
from masters.models.load import load_model
from masters.models.tensor_names import parameter_sources
from masters.parts import PARTS
from masters.teachers.masked import MaskedTeacher
from masters.teachers.materialise import write_masked
from masters.teachers.measuring import measure_thresholds
from tests.families import FAMILY_NAMES, write_tiny

RATIOS = (2000, 5000)


def saved(folder: Path, family: str, dtype: torch.dtype) -> Path:
    """A tiny checkpoint in several files, in this dtype."""
    write_tiny(folder / "float32", family, size="student", seed=3)
    model: Any = load_model(str(folder / "float32")).to(dtype)
    model.save_pretrained(folder / "kept", max_shard_size="100KB")
    assert len(list((folder / "kept").glob("*.safetensors"))) > 1
    return folder / "kept"


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_up_down_and_on_disk(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    folder = saved(tmp_path, family, dtype)
    thresholds = measure_thresholds(folder, RATIOS)
    model = load_model(str(folder), dtype=dtype)
    layers = maskable_layers(model)
    # GLM-4.1V's projector lies in the tower, where only a row of the table would tell it apart.
    parts = {"language", "vision"} if family == "glm4v" else set(PARTS)
    assert {layer.part for layer in layers} == parts
    original = state(model)
    teacher = MaskedTeacher(model, folder, thresholds)
    teacher.set_ratio(5000)
    masked = state(model)
    touched = {layer.parameter for layer in layers}
    for name in original:
        assert torch.equal(original[name], masked[name]) == (name not in touched), name
    for layer in layers:  # against a sort, matrix by matrix
        weight, now = original[layer.parameter], masked[layer.parameter]
        if layer.matrix is not None:
            weight, now = weight[layer.matrix], now[layer.matrix]
        limit = weight.abs().flatten().sort().values[5000 * layer.size // 10_000]
        assert torch.equal(now, weight.masked_fill(weight.abs() < limit, 0)), layer.name
    write_masked(folder, tmp_path / "masked", thresholds, 5000)
    assert same(state(load_model(str(tmp_path / "masked"), dtype=dtype)), masked)
    teacher.set_ratio(2000)
    teacher.set_ratio(0)
    assert same(state(model), original)


def transposed_experts(folder: Path) -> None:
    """Stores the experts as the published Qwen3-VL-MoE checkpoints do: [E, inputs, outputs]."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if ".experts." in name:
            tensors[name] = tensors[name].mT.contiguous()
    save_file(tensors, file, metadata={"format": "pt"})


def test_experts_stored_the_other_way_round(tmp_path: Path) -> None:
    write_tiny(tmp_path / "moe", "qwen3_vl_moe", size="teacher", seed=3)
    before = state(load_model(str(tmp_path / "moe")))
    straight = measure_thresholds(tmp_path / "moe", RATIOS)
    transposed_experts(tmp_path / "moe")
    model = load_model(str(tmp_path / "moe"))
    assert same(state(model), before)
    thresholds = measure_thresholds(tmp_path / "moe", RATIOS)
    for name, layer in thresholds.layers.items():
        assert (layer.matrix is not None) == (".experts." in name) == layer.transposed
        assert layer.values == straight.layers[name].values
    teacher = MaskedTeacher(model, tmp_path / "moe", thresholds)
    teacher.set_ratio(5000)
    masked = state(model)
    write_masked(tmp_path / "moe", tmp_path / "masked", thresholds, 5000)
    assert same(state(load_model(str(tmp_path / "masked"))), masked)
    teacher.set_ratio(0)
    assert same(state(model), before)


def test_routers_stay_whole_and_experts_have_their_own_thresholds(tmp_path: Path) -> None:
    write_tiny(tmp_path, "qwen3_vl_moe", size="student", seed=3)
    model = load_model(str(tmp_path))
    layers = maskable_layers(model)
    assert not [layer.name for layer in layers if ".gate." in layer.name]
    routers = [name for name, _ in model.named_parameters() if ".mlp.gate." in name]
    assert routers
    thresholds = measure_thresholds(tmp_path, RATIOS)
    stack = [n for n in thresholds.layers if n.rpartition("[")[0].endswith("gate_up_proj")]
    assert len({thresholds.layers[name].values for name in stack}) == len(stack) > 1


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_parameter_has_its_tensor(tmp_path: Path, family: str) -> None:
    write_tiny(tmp_path, family, size="student", seed=3)
    model = load_model(str(tmp_path))
    sources = parameter_sources(model, checkpoint_tensors(tmp_path))
    parameters = dict(model.named_parameters())
    assert parameters.keys() <= sources.keys()
    assert {name: len(found) for name, found in sources.items()} == dict.fromkeys(sources, 1)


def test_a_tensor_that_is_gone_is_named(tmp_path: Path) -> None:
    write_tiny(tmp_path, "internvl", size="student", seed=3)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    gone = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight"))
    del tensors[gone]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"becomes model\.language_model\.layers\.1\.mlp\.up_proj"):
        measure_thresholds(tmp_path, RATIOS)


def test_fp8_is_refused_by_name(tmp_path: Path) -> None:
    write_tiny(tmp_path, "qwen3_vl", size="student", seed=3)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith("language_model.layers.0.mlp.up_proj.weight"))
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.up_proj\.weight is stored as F8_E4M3"):
        measure_thresholds(tmp_path, RATIOS)


def test_tied_embeddings_stay_whole(tmp_path: Path) -> None:
    write_tiny(tmp_path, "qwen3_vl", size="student", seed=3)
    model: Any = load_model(str(tmp_path))
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    model.save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in checkpoint_tensors(tmp_path / "tied")
    tied = load_model(str(tmp_path / "tied"))
    before = tied.get_output_embeddings().weight.clone()
    thresholds = measure_thresholds(tmp_path / "tied", RATIOS)
    MaskedTeacher(tied, tmp_path / "tied", thresholds).set_ratio(5000)
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    assert torch.equal(tied.get_output_embeddings().weight, before)
    with pytest.raises(ModelError, match="names the output head"):
        measure_thresholds(tmp_path / "tied", RATIOS, include=("lm_head",))


def test_a_masked_checkpoint_is_whole_or_not_there(tmp_path: Path) -> None:
    write_tiny(tmp_path / "one", "qwen3_vl", size="student", seed=3)
    write_tiny(tmp_path / "other", "qwen3_vl", size="student", seed=4)
    thresholds = measure_thresholds(tmp_path / "one", RATIOS)
    with pytest.raises(ModelError, match="lie below the threshold"):
        write_masked(tmp_path / "other", tmp_path / "target", thresholds, 5000)
    assert not (tmp_path / "target").exists()
    write_masked(tmp_path / "one", tmp_path / "target", thresholds, 5000)
    with pytest.raises(ModelError, match="exists; move it away"):
        write_masked(tmp_path / "one", tmp_path / "target", thresholds, 5000)
    with pytest.raises(ModelError, match="no thresholds for masking ratio 3000"):
        write_masked(tmp_path / "one", tmp_path / "third", thresholds, 3000)
