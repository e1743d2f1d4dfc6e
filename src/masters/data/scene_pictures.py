"""The pictures of rendered scenes: coloured shapes on a 3x3 grid, and the dice they fall by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

COLOURS = {
    "red": (222, 45, 38),
    "green": (44, 160, 60),
    "blue": (45, 90, 225),
    "yellow": (245, 205, 40),
    "purple": (150, 60, 190),
    "black": (30, 30, 30),
}
SHAPES = ("circle", "square", "triangle", "cross")
_BACKGROUND = (240, 238, 232)


def render(
    cells: Sequence[tuple[str, str] | None], seed: int, index: int, side: int
) -> NDArray[np.uint8]:
    """Pixels of a grid, uint8 [side, side, 3]; the tints and each shape's size vary a little.

    Args:
        cells: 9 cells, row by row.
        seed: of the source; with ``index`` it decides the variation.
        index: of the question.
        side: pixels, a multiple of 3.
    """
    pick = Picker("pixels", seed, index, 64)
    picture = np.empty((side, side, 3), dtype=np.uint8)
    light = pick(13) - 6
    picture[:] = [channel + light for channel in _BACKGROUND]
    size = side // 3
    for place, cell in enumerate(cells):
        large, shade = pick(2), [pick(25) - 12 for _ in range(3)]
        if cell is None:
            continue
        top, left = place // 3 * size, place % 3 * size
        mask = _stencil(cell[0], size, large)
        tint = np.clip(np.add(COLOURS[cell[1]], shade), 0, 255)
        picture[top : top + size, left : left + size][mask] = tint
    return picture


class Picker:
    """Whole numbers from PCG64's raw stream, whose values numpy guarantees between versions."""

    def __init__(self, purpose: str, seed: int, index: int, draws: int) -> None:
        digest = hashlib.sha256(f"scenes/{purpose}/{seed}/{index}".encode()).digest()
        generator = np.random.PCG64(int.from_bytes(digest[:16], "little"))
        self._stream = iter(generator.random_raw(draws).tolist())

    def __call__(self, n: int) -> int:
        """A number from 0 to n - 1."""
        return next(self._stream) % n


@lru_cache(maxsize=512)
def _stencil(shape: str, size: int, large: int) -> NDArray[np.bool_]:
    """Which pixels of a cell a shape covers: bool [size, size]."""
    radius = size * (14 if large else 13) / 32
    middle = (size - 1) / 2
    y, x = np.mgrid[:size, :size].astype(np.float64)
    x, y = x - middle, y - middle
    reach = np.maximum(abs(x), abs(y))
    match shape:
        case "circle":
            return x * x + y * y <= radius * radius
        case "square":
            return reach <= radius * 0.85
        case "triangle":
            return (abs(x) <= (y + radius) * 0.55) & (y <= radius * 0.85)
        case "cross":
            return (np.minimum(abs(x), abs(y)) <= radius * 0.3) & (reach <= radius)
        case _:
            raise AssertionError(shape)
