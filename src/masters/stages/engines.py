"""Which engine holds the trained weights of a stage."""

from __future__ import annotations

import torch
import torch.distributed as dist

from masters import ranks
from masters.crew import PATIENCE, backend_for, own_device
from masters.models.devices import find_device
from masters.recipe import Runtime
from masters.training.engine import Engine, Single
from masters.training.fsdp import Fsdp2


def open_engine(runtime: Runtime) -> Engine:
    """The engine of ``runtime.engine``, over the ranks that run this stage."""
    if runtime.engine == "single":
        return Single()
    device = find_device(runtime.device, key="runtime.device")
    if ranks.count() > 1:  # whoever works alone may see one device only, whatever its number is
        device = own_device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():  # nobody else: one rank, which needs no address
        alone = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        backend = backend_for(device.type)
        dist.init_process_group(backend, store=alone, rank=0, world_size=1, timeout=PATIENCE)
    offload = runtime.teacher_device == "offload"
    if runtime.engine == "deepspeed":
        from masters.training.deepspeed_engine import Deepspeed

        return Deepspeed(device, offload_teacher=offload)
    return Fsdp2(device, offload_teacher=offload)
