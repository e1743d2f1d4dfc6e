"""Training over two ranks of DeepSpeed ZeRO-3 is training in one process.

The runs are those of `test_fsdp_training`: uneven steps, a rank without a group, questions in
several passes. They are skipped where the package is not installed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from .test_fsdp_training import Asked, KilledError, check_same, trainer_of
from .two_ranks import on_two_ranks

pytest.importorskip("deepspeed", reason="the extra deepspeed: make test-deepspeed")
pytestmark = pytest.mark.slow


def trained(rank: int, asked: Asked) -> dict[str, Any]:
    trainer = trainer_of(asked)
    try:
        metrics = trainer.run()
    except KilledError:
        return {}
    parameters: list[Any] = list(trainer.student.parameters())
    moments = [state[key] for state in trainer.optimiser.state.values() for key in ("exp_avg", "exp_avg_sq")]
    gradients = trainer.engine._engine.optimizer.grad_partitions_flat_buffer
    return {
        "whole": sum(p.data.numel() for p in parameters),
        "own": sum(p.ds_tensor.untyped_storage().nbytes() // 4 if False else p.ds_tensor.numel() for p in parameters),
        "all": sum(p.ds_numel for p in parameters),
        "moments": sum(m.untyped_storage().nbytes() // 4 for m in moments),
        "gradients": gradients.untyped_storage().nbytes() // 4,
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
    print(found)
    check_same(out, alone)
