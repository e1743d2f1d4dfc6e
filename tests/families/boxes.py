"""Pictures of unequal sizes and aspects, so that one batch holds unequal numbers of crops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

COLOURS = {
    "red": (200, 30, 30),
    "green": (30, 160, 60),
    "blue": (40, 60, 200),
    "yellow": (220, 200, 40),
}
QUESTION = "what colour is the box?"
#: Width and height: square, wide, tall, and one that is cut into more crops than the others.
SIZES = ((40, 40), (96, 40), (36, 100), (120, 110))


def make_boxes(folder: Path, count: int) -> list[dict[str, Any]]:
    """Writes the pictures; returns rows of JSON lines, every sixth question about two pictures."""
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for index in range(count):
        colour = list(COLOURS)[index // len(SIZES) % len(COLOURS)]
        image = Image.new("RGB", SIZES[index % len(SIZES)], "white")
        image.paste(COLOURS[colour], (6, 6, 20 + index, 20 + index))
        image.save(folder / "pictures" / f"{index}.png")
        shown = [f"pictures/{i}.png" for i in ((index - 1, index) if index % 6 == 5 else (index,))]
        row = {"id": f"q{index}", "images": shown, "question": QUESTION, "answer": colour}
        rows.append(row)
    return rows
