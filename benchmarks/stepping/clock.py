"""Seconds of parts that take turns, and what one core can do at most."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import TypeVar

import torch

Result = TypeVar("Result")


def now() -> float:
    """Processor time on one thread, which a busy machine disturbs least; else wall time."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


class Times:
    """Seconds of every repeat of named parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def __call__(self, name: str, part: Callable[[], Result]) -> Result:
        """Runs and measures a part."""
        begin = now()
        result = part()
        self.seconds[name].append(now() - begin)
        return result

    def rounds(self, *names: str) -> list[float]:
        """Seconds of these parts together, for each repeat."""
        return [sum(values) for values in zip(*(self.seconds[n] for n in names), strict=True)]

    def ratios(self, slow: tuple[str, ...], fast: tuple[str, ...]) -> list[float]:
        """How many times longer the first parts take, repeat by repeat."""
        pairs = zip(self.rounds(*slow), self.rounds(*fast), strict=True)
        return [a / b for a, b in pairs]


def spread(values: list[float]) -> list[float]:
    """[median, least, most]."""
    return [median(values), min(values), max(values)]


def device_now(device: torch.device) -> float:
    """Wall time once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def repeated(device: torch.device, work: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each repeat on a device, after one that warms up."""
    seconds = []
    for _ in range(repeats + 1):
        begin = device_now(device)
        work()
        seconds.append(device_now(device) - begin)
    return seconds[1:]


def matmul_peak(size: int = 1024, repeats: int = 10) -> float:
    """FLOP/s of square float32 matrix products."""
    a, b = torch.randn(2, size, size)
    a @ b
    begin = now()
    for _ in range(repeats):
        a @ b
    return 2 * size**3 * repeats / (now() - begin)
