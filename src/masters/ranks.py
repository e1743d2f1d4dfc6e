"""What the processes that train together must know of each other; one process alone agrees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist

Value = TypeVar("Value")


_alone = False


@contextmanager
def alone() -> Iterator[None]:
    """Within, this process works by itself: the others do not take part."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def rank() -> int:
    """This process's number among those that train together; 0 for one alone."""
    return dist.get_rank() if _joined() else 0


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _joined() else 1


def share(items: Sequence[Value]) -> Sequence[Value]:
    """This rank's part of what all work on: every item is in the part of one rank."""
    return items[rank() :: count()]


def gathered(value: Value) -> list[Value]:
    """What every rank gave, in their order; all ranks call this at the same time."""
    if count() == 1:
        return [value]
    values: list[Value | None] = [None] * count()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def given_by(rank: int, value: Value) -> Value:
    """What this rank has, on all of them; all ranks call this at the same time."""
    if count() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=rank)
    return values[0]


def wait_for_all() -> None:
    """Goes on when every rank is here."""
    gathered(None)


@contextmanager
def main_first() -> Iterator[None]:
    """Rank 0 does what is within before the others, who find its files."""
    if rank() != 0:
        wait_for_all()
    try:
        yield
    finally:
        if rank() == 0:
            wait_for_all()


def _joined() -> bool:
    return not _alone and dist.is_available() and dist.is_initialized()
