"""What a forward pass keeps for its backward pass, and the peak of resident memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def saved_bytes(module: torch.nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes of the storages that autograd keeps during ``forward``, the weights' left out."""
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    size = sum(storage.nbytes() for storage in kept.values())
    del result
    return size


def resident(name: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process in bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in status if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def peak_of(work: Callable[[], Any]) -> int:
    """Bytes that ``work`` takes at its peak beyond what was resident before."""
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def in_a_fresh_process(script: Path, *arguments: str) -> Any:
    """What ``script`` prints as JSON in its last line."""
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])
