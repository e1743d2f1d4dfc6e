"""A frozen model larger than its device: weights stay on the host, each block visits when it runs.

The blocks are what lies in the model's outermost module lists (decoder layers, vision layers,
mergers). Embeddings, norms, head and buffers live on the device. Between forward passes every
weight of a block is the host's own tensor, so that masks are set and taken back there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def stream_blocks(model: Any, device: torch.device | str) -> list[str]:
    """Has the model compute on ``device`` while the weights of its blocks stay where they are.

    Args:
        model: frozen, on the host; changed in place.
        device: where it computes from now on; ``model.device`` says so.

    Returns:
        The names of the blocks.
    """
    blocks = blocks_of(model)
    visiting = {id(p) for block in blocks.values() for p in block.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in visiting:
            parameter.data = parameter.data.to(device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    for block in blocks.values():
        visit = _Visit(device)
        block.register_forward_pre_hook(visit.arrive)
        block.register_forward_hook(visit.leave, always_call=True)
    return list(blocks)


def blocks_of(model: Any) -> dict[str, nn.Module]:
    """The blocks that would visit, by name; the model stays as it is."""
    # transformers takes the first parameter's device for the model's: it stays on the device.
    first = next(model.parameters())
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList):
            continue
        if any(name.startswith(f"{outer}.") for outer in found):
            continue
        for key, block in module.named_children():
            if all(p is not first for p in block.parameters()):
                found[f"{name}.{key}"] = block
    return found


class _Visit:
    """One block's way to the device and back; what comes back is the host's tensor itself."""

    def __init__(self, device: torch.device | str) -> None:
        self._device = device
        self._at_home: list[tuple[nn.Parameter, torch.Tensor]] = []

    def arrive(self, block: nn.Module, args: Any) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for parameter in block.parameters():
                home = parameter.data
                # Kept before the copy: a block that finds no room goes home all the same.
                self._at_home.append((parameter, home))
                parameter.data = home.to(self._device, copy=True)

    def leave(self, block: nn.Module, args: Any, output: Any) -> None:
        for parameter, home in self._at_home:
            parameter.data = home
        self._at_home.clear()
