"""What is needed next, made ahead by threads: in order, and never more than so many bytes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)
Made = TypeVar("Made")

#: Of results that were made and not yet taken.
ROOM = 1 << 30


class ReadAhead(Generic[Item, Made]):
    """``make(item)`` of coming items, in the order they will be taken, whatever thread makes them.

    Threads begin an item while what was made and not yet taken, with what is being made counted
    like the largest so far, leaves room for one more; the next item to be taken is always begun.

    Args:
        make: called in several threads at a time.
        items: in the order they will be taken.
        workers: threads; 0: an item is made when it is taken.
        size: bytes of a result.
        room: bytes to hold at most (one result may be larger).

    Attributes:
        seconds_waiting: how long ``take`` has waited, or made things itself.
    """

    def __init__(
        self,
        make: Callable[[Item], Made],
        items: Iterable[Item],
        *,
        workers: int,
        size: Callable[[Made], int] = lambda made: 0,
        room: int = ROOM,
    ) -> None:
        self.seconds_waiting = 0.0
        self._make, self._items, self._size, self._room = make, iter(items), size, room
        self._changed = threading.Condition()
        self._begun: list[Item] = []
        self._taken = 0
        self._results: dict[int, tuple[Made | None, BaseException | None, int]] = {}
        self._held = self._largest = 0
        self._ended = False
        self._failed: BaseException | None = None
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def take(self, item: Item) -> Made:
        """The result for the next item, which has to be this one.

        Raises:
            whatever ``make`` raised for it.
        """
        begin = time.perf_counter()
        try:
            return self._take(item) if self._threads else self._make(item)
        finally:
            self.seconds_waiting += time.perf_counter() - begin

    __call__ = take

    def _take(self, item: Item) -> Made:
        with self._changed:
            number = self._taken
            self._changed.wait_for(lambda: number in self._results or self._exhausted(number))
            if number >= len(self._begun) or self._begun[number] != item:
                if self._failed is not None:
                    raise self._failed
                expected = self._begun[number] if number < len(self._begun) else "nothing more"
                raise ValueError(f"{item!r} was asked for; expected {expected!r}, as announced")
            made, error, size = self._results.pop(number)
            self._taken += 1
            self._held -= size
            self._changed.notify_all()
        if error is not None:
            raise error
        return made  # type: ignore[return-value]

    def _exhausted(self, number: int) -> bool:
        return self._ended and number >= len(self._begun)

    def _has_room(self) -> bool:
        waiting = len(self._begun) - self._taken
        making = waiting - len(self._results)
        return waiting == 0 or self._held + (making + 1) * self._largest <= self._room

    def _work(self) -> None:
        while (number := self._begin()) is not None:
            made, error, size = None, None, 0
            try:
                made = self._make(self._begun[number])
                size = self._size(made)
            except BaseException as problem:
                error = problem  # raised where it is taken
            with self._changed:
                self._results[number] = (made, error, size)
                self._held += size
                self._largest = max(self._largest, size)
                self._changed.notify_all()

    def _begin(self) -> int | None:
        """The number of an item that this thread is to make; None when there are no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._has_room())
            if self._ended:
                return None
            try:
                self._begun.append(next(self._items))
                return len(self._begun) - 1
            except StopIteration:
                pass
            except BaseException as problem:
                self._failed = problem
            self._ended = True
            self._changed.notify_all()
            return None

    def close(self) -> None:
        """Begins nothing more and waits for what is being made."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> ReadAhead[Item, Made]:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()
