"""Models whose weights are spread over ranks: what of each is here, and a whole copy where needed.

A weight is cut along its first axis, as `fully_shard` cuts it: rank r of R has rows
[r c, (r + 1) c) of n, c = ceil(n / R); the last ranks may have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Shard

from masters.errors import ModelError
from masters.models.layers import meta_model


def is_sharded(parameter: torch.Tensor) -> bool:
    """Whether other ranks hold a part of it."""
    return isinstance(parameter, DTensor)


def own_rows(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
    """(the rows of it that are here, to be written to as well; the number of the first one)."""
    if not isinstance(tensor, DTensor):
        return tensor, 0
    if len(tensor.placements) != 1 or tensor.placements[0] != Shard(0):
        raise ModelError(
            f"a weight of shape {tuple(tensor.shape)} lies as {tensor.placements}; expected it cut "
            "along its first axis over one group of ranks"
        )
    size, ranks = tensor.shape[0], tensor.device_mesh.size()
    rows = -(-size // ranks)
    return tensor.to_local(), min(tensor.device_mesh.get_local_rank() * rows, size)


@contextmanager
def brought_together(parameter: torch.Tensor) -> Iterator[torch.Tensor]:
    """The parameter, whole; all ranks enter this at the same time."""
    yield parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


@torch.no_grad()
def plain_copy(
    model: Any,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    here: bool = True,
    together: Callable[[torch.Tensor], AbstractContextManager[torch.Tensor]] = brought_together,
) -> Any:
    """The same model with every weight whole, brought together one by one; all ranks call this.

    Args:
        model: a transformers model, sharded or not.
        dtype: of the copy's weights.
        device: where the copy lies.
        here: False on ranks that only give; they get None.
        together: gives a weight whole, where another than `fully_shard` has cut it.
    """
    copy = meta_model(model.config).to(dtype).to_empty(device=device) if here else None
    if copy is not None:
        for name, buffer in model.named_buffers():  # some are in no checkpoint
            owner, _, key = name.rpartition(".")
            setattr(copy.get_submodule(owner), key, buffer.to(device))
        first: dict[int, str] = {}  # to_empty parts what is tied
        for name, parameter in model.named_parameters(remove_duplicate=False):
            owner, _, key = name.rpartition(".")
            if (other := first.setdefault(id(parameter), name)) != name:
                setattr(copy.get_submodule(owner), key, copy.get_parameter(other))
        copy.generation_config = model.generation_config
        copy.name_or_path = model.name_or_path
    names = {} if copy is None else dict(copy.named_parameters(remove_duplicate=False))
    for name, parameter in model.named_parameters():
        with together(parameter) as whole:
            if copy is not None:
                names[name].copy_(whole)
            del whole
    return None if copy is None else copy.eval()
