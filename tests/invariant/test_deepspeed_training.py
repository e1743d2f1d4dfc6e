"""Training over two ranks of DeepSpeed ZeRO-3 is training in one process.

The runs are those of `test_fsdp_training`: uneven steps, a rank without a group, questions in
several passes. They are skipped where the package is not installed; `make test-deepspeed` has it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from masters.errors import NonFiniteLossError

from .test_fsdp_training import (
    Asked,
    KilledError,
    check_same,
    check_same_model,
    rows,
    tied_without_eyes,
    trainer_of,
)
from .two_ranks import on_two_ranks

pytest.importorskip("deepspeed", reason="the extra deepspeed; make test-deepspeed installs it")
pytestmark = pytest.mark.slow


def trained(rank: int, asked: Asked) -> dict[str, Any]:
    """What this rank holds when it is through."""
    trainer = trainer_of(asked)
    try:
        trainer.run()
    except KilledError:
        return {}
    if not asked.deepspeed:
        return {}
    engine: Any = trainer.engine
    parameters: list[Any] = list(trainer.student.parameters())
    parts = {p.ds_tensor.untyped_storage() for p in parameters}
    moments = [
        state[key]
        for state in trainer.optimiser.state.values()
        for key in ("exp_avg", "exp_avg_sq")
    ]
    return {
        "together": sum(p.data.numel() for p in parameters),
        "own": sum({part.data_ptr(): part.nbytes() // 4 for part in parts}.values()),
        "all": sum(p.ds_numel for p in parameters),
        "moments": sum(m.untyped_storage().nbytes() // 4 for m in moments),
        "gradients": engine._engine.optimizer.grad_partitions_flat_buffer.numel(),
    }


@pytest.fixture(scope="module")
def alone(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    trainer_of(Asked(folders=folders, out=out, spread=False)).run()
    return out


def test_two_ranks_train_as_one_process(
    folders: tuple[Path, Path], alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "stage"
    found = on_two_ranks(trained, tmp_path, Asked(folders=folders, out=out, deepspeed=True))
    check_same(out, alone)
    for rank in found:
        # Weights, gradients and both moments: half here, the rounding of odd sizes aside.
        assert rank["together"] == 0
        assert rank["own"] == pytest.approx(rank["all"] / 2, rel=0.01)
        assert rank["gradients"] == pytest.approx(rank["all"] / 2, rel=0.01)
        assert rank["moments"] == pytest.approx(rank["all"], rel=0.01)


def watched(rank: int, asked: Asked) -> dict[str, Any]:
    """The most numbers of weights that lay here whole, and what else kept some for the backward."""
    trainer = trainer_of(asked)
    parameters: list[Any] = list(trainer.student.parameters())
    most: list[int] = []

    def look(*_: Any) -> None:
        most.append(sum(p.data.numel() for p in parameters))

    for module in trainer.student.modules():
        module.register_forward_hook(look)
    views: list[tuple[int, ...]] = []

    def pack(saved: torch.Tensor) -> torch.Tensor:
        for p in parameters:
            if p.numel() and saved.untyped_storage().data_ptr() == p.untyped_storage().data_ptr():
                views.extend([tuple(saved.shape)] if saved.stride() != p.stride() else [])
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        trainer.run()
    return {"most": max(most), "all": sum(p.ds_numel for p in parameters), "views": len(views)}


def test_layers_are_brought_together_one_by_one(folders: tuple[Path, Path], tmp_path: Path) -> None:
    asked = Asked(folders=folders, out=tmp_path / "stage", steps=2, deepspeed=True)
    for rank in on_two_ranks(watched, tmp_path, asked):
        assert rank["views"] == 0
        assert 0 < rank["most"] < rank["all"] / 2, rank


@pytest.mark.parametrize(
    "way", ["two to two", "two to one", "one to two", "two to fsdp2", "fsdp2 to two"]
)
def test_checkpoints_are_taken_up_by_any_engine(
    folders: tuple[Path, Path], alone: Path, tmp_path: Path, way: str
) -> None:
    """A run that ends behind its checkpoint of step 2 goes on with what is named."""
    asked = Asked(folders=folders, out=tmp_path / "stage", fail=3)
    for name, fail in zip(way.split(" to "), (3, None), strict=True):
        asked = replace(asked, fail=fail, deepspeed=name == "two", spread=name != "one")
        if asked.spread:
            on_two_ranks(trained, tmp_path, asked)
        else:
            trained(0, asked)
        if fail:
            kept = [path.name for path in (asked.out / "checkpoints").iterdir()]
            assert kept == ["step-00000002"] and not (asked.out / "model").exists()
    check_same(asked.out, alone)


def test_tied_and_frozen_weights_under_offloaded_activations(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    asked = Asked(
        folders=folders, out=tmp_path / "two", steps=4, offload=True, deepspeed=True,
        change=tied_without_eyes,
    )  # fmt: skip
    on_two_ranks(trained, tmp_path, replace(asked, fail=3))
    on_two_ranks(trained, tmp_path, asked)
    alone = replace(asked, out=tmp_path / "one", spread=False, deepspeed=False)
    trained(0, alone)
    for mine, other in zip(rows(asked.out), rows(alone.out), strict=True):
        assert mine["loss/total"] == pytest.approx(other["loss/total"], rel=2e-4, abs=2e-5)
    check_same_model(asked.out, alone.out)


def test_bf16_ranks_start_at_the_reference(folders: tuple[Path, Path], tmp_path: Path) -> None:
    asked = Asked(
        folders=folders, out=tmp_path / "two", steps=2, precision=torch.bfloat16, deepspeed=True
    )
    on_two_ranks(trained, tmp_path, asked)
    alone = replace(asked, out=tmp_path / "one", spread=False, deepspeed=False)
    trained(0, alone)
    for mine, other in zip(rows(asked.out), rows(alone.out), strict=True):
        assert mine["loss/jsd"] == pytest.approx(other["loss/jsd"], abs=2e-3)
    assert rows(asked.out)[0]["loss/kl"] < 1e-4


def poisoned(rank: int, asked: Asked) -> dict[str, Any]:
    try:
        trainer_of(asked).run()
    except NonFiniteLossError as error:
        return {"said": str(error)}
    return {"said": ""}


def test_a_loss_that_is_not_finite_stops_all_ranks(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    asked = Asked(folders=folders, out=tmp_path / "stage", poison=True, deepspeed=True)
    one, other = on_two_ranks(poisoned, tmp_path, asked)
    assert one == other
    assert "step 1" in one["said"] and "the loss is nan on questions" in one["said"]
