"""torch FSDP2 (`fully_shard`): weights, gradients and moments cut over the ranks of one run.

The student's layers are groups of their own; what is left, output head and a tied embedding with
it, is the root module's and is brought together once a pass. A frozen teacher is cut by a plan of
its own: its layers, its trunk, its head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from masters import ranks
from masters.models.offload import blocks_of
from masters.models.shards import plain_copy
from masters.training.checkpoints import Position
from masters.training.engine import OwnOptimiser
from masters.training.sharded_checkpoints import (
    load_optimiser,
    load_sharded_checkpoint,
    save_sharded_checkpoint,
    whole_optimiser_state,
)
from masters.training.student import Student


class Fsdp2(OwnOptimiser):
    """`Engine` over the ranks of the running process group (one is enough).

    Args:
        device: that each rank computes on.
        offload_teacher: a teacher's layers stay in the host's memory, each rank's part of them.
    """

    def __init__(self, device: torch.device, *, offload_teacher: bool = False) -> None:
        self._device = device
        self._mesh: DeviceMesh = init_device_mesh(device.type, (ranks.count(),))
        self._offload = offload_teacher and device.type == "cuda"

    def prepare_student(self, student: Student) -> Student:
        """See `Engine`."""
        # Layers travel and compute in the autocast dtype; the residual stream, the embedding and
        # the head stay in float32 as in one process, or the reference would be another model.
        half = student.precision if student.precision != torch.float32 else None
        policy = MixedPrecisionPolicy(
            param_dtype=half,
            reduce_dtype=torch.float32 if half else None,
            cast_forward_inputs=False,
        )
        for block in blocks_of(student.vlm).values():
            fully_shard(block, mesh=self._mesh, mp_policy=policy)
        fully_shard(student, mesh=self._mesh)
        for module in student.modules():
            if isinstance(module, FSDPModule):
                # The loss is divided by the questions of all ranks: gradients are summed.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo knows no other way
        return student

    def prepare_teacher(self, model: Any) -> Any:
        """See `Engine`."""
        stays = CPUOffloadPolicy() if self._offload else OffloadPolicy()
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        tied = head.weight is embedding.weight
        for block in blocks_of(model).values():
            fully_shard(block, mesh=self._mesh, reshard_after_forward=True, offload_policy=stays)
        # Masks are set on shards, so no group may stay together behind a forward pass.
        fully_shard(model.base_model, mesh=self._mesh, reshard_after_forward=True)
        if tied:
            head.weight = embedding.weight
        else:
            fully_shard(head, mesh=self._mesh)
        return model

    @contextmanager
    def whole(self, student: Student) -> Iterator[Any]:
        """See `Engine`."""
        _apart(student)
        yield plain_copy(student.vlm, dtype=student.precision, device=self._device)

    def exported(self, student: Student) -> tuple[Any, dict[str, torch.Tensor]] | None:
        """See `Engine`."""
        _apart(student)
        here = ranks.rank() == 0
        copy = plain_copy(student.vlm, dtype=torch.float32, device="cpu", here=here)
        return (copy, copy.state_dict()) if here else None

    def optimiser_state(self, optimiser: torch.optim.Optimizer) -> dict[str, Any] | None:
        """See `Engine`."""
        return whole_optimiser_state(optimiser, here=ranks.rank() == 0)

    def take_optimiser_state(self, optimiser: torch.optim.Optimizer, file: Path) -> None:
        """See `Engine`."""
        load_optimiser(optimiser, file)

    def save(
        self, folder: Path, model: Student, optimiser: torch.optim.Optimizer, position: Position
    ) -> None:
        """See `Engine`."""
        _apart(model)
        save_sharded_checkpoint(folder, model, optimiser, position)

    def load(
        self, folder: Path, model: Student, optimiser: torch.optim.Optimizer
    ) -> Position | None:
        """See `Engine`."""
        return load_sharded_checkpoint(folder, model, optimiser)


def _apart(student: Student) -> None:
    """Has the root's weights cut again; a pass without gradient leaves them together."""
    assert isinstance(student, FSDPModule)
    student.reshard()
