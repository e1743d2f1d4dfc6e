"""How long to wait before asking again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Exponential backoff with full jitter; time itself can be replaced, for tests.

    Attributes:
        first: the longest wait after the first failure, seconds; it doubles with each further one.
        longest: no wait is longer, seconds, but for one that the server asks for.
        longest_asked: a server that asks for more than this, seconds, counts as gone.
        jitter: draws from [0, 1).
        sleep: waits for some seconds.
        clock: seconds that only go up.
    """

    first: float = 1.0
    longest: float = 60.0
    longest_asked: float = 600.0
    jitter: Callable[[], float] = random.random
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic

    def pause(self, failures: int) -> float:
        """Seconds to wait after this many failures in a row, 1 or more."""
        # Full jitter: requests that failed together must not come back together.
        return self.jitter() * min(self.longest, self.first * 2.0 ** min(failures - 1, 60))
