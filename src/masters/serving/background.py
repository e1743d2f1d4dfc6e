"""A coroutine in a thread of its own, whose results a plain iterator hands out."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_STOP_SECONDS = 5.0


def results(work: Callable[[Callable[[T], None]], Coroutine[Any, Any, None]]) -> Iterator[T]:
    """Yields what ``work`` puts, as it comes; then raises what it raised.

    A thread, so that requests are sent, answered and timed while the caller is busy with a result.
    When the caller stops early (an error, Ctrl-C, ``close``), the work is cancelled, which closes
    its connections.

    Args:
        work: called with the function that puts a result.
    """
    out: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    task = loop.create_task(work(lambda item: out.put((True, item))))

    def serve() -> None:
        failure: BaseException | None = None
        try:
            loop.run_until_complete(task)
        except BaseException as error:
            failure = error
        finally:
            try:
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.close()
            finally:
                out.put((False, failure))

    thread = threading.Thread(target=serve, name="masters-serving", daemon=True)
    thread.start()
    try:
        while True:
            more, item = out.get()
            if more:
                yield item
            elif item is None:
                return
            else:
                raise item
    finally:
        if thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop closed since the line above
                loop.call_soon_threadsafe(task.cancel)
            thread.join(_STOP_SECONDS)
