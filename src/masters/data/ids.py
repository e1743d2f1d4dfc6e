"""Question ids as a sequence that makes a string when it is asked for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload


class Ids(Sequence[str]):
    """All ids of a data set, in order.

    Args:
        size: how many.
        get: the id at a place from 0 to ``size - 1``.
        find: the place of an id, or None.
    """

    def __init__(
        self, size: int, get: Callable[[int], str], find: Callable[[str], int | None]
    ) -> None:
        self._size, self._get, self._find = size, get, find

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._get(place) for place in range(*index.indices(self._size))]
        if not -self._size <= index < self._size:
            raise IndexError(f"id {index} of {self._size}")
        return self._get(index % self._size)

    def __iter__(self) -> Iterator[str]:
        return (self._get(place) for place in range(self._size))

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and self._find(value) is not None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        more = ", ..." if self._size > 5 else ""
        return f"Ids([{', '.join(map(repr, self[:5]))}{more}], {self._size} in all)"
