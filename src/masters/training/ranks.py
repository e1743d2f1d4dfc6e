"""What the processes that train together must know of each other; one process alone agrees."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

Value = TypeVar("Value")


def gathered(value: Value) -> list[Value]:
    """What every rank gave, in their order; all ranks call this at the same time."""
    if not _several():
        return [value]
    values: list[Value | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def given_by(rank: int, value: Value) -> Value:
    """What this rank has, on all of them; all ranks call this at the same time."""
    if not _several():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=rank)
    return values[0]


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
