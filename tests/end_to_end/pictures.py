"""A small data set of one's own: coloured squares as PNG files, questions as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

COLOURS = {
    "red": (200, 30, 30),
    "green": (30, 160, 60),
    "blue": (40, 60, 200),
    "yellow": (220, 200, 40),
}


def make_rows(folder: Path, count: int = 40) -> list[dict[str, Any]]:
    """Writes the pictures; returns their rows."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        name = list(COLOURS)[index % len(COLOURS)]
        image = Image.new("RGB", (48, 48), "white")
        image.paste(COLOURS[name], (8, 8, 24 + index % 16, 24 + index % 16))
        image.save(folder / "pictures" / f"{index}.png")
        rows.append(
            {
                "id": f"q{index}",
                "image": f"pictures/{index}.png",
                "question": "what colour is the box?",
                "answer": name,
                "kind": "colour",
            }
        )
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A JSON-lines file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sets_for(train: Path, test: Path) -> tuple[str, ...]:
    """The tiny profile on these files, in a few steps."""
    return (
        f"data.train={train}",
        f"data.validation={test}",
        f"data.test={test}",
        f"models.student.sft.data={train}",
        "models.student.sft.steps=4",
        "models.student.sft.questions_per_step=8",
        f"models.teachers.0.sft.data={train}",
        "models.teachers.0.sft.steps=4",
        "models.teachers.0.sft.questions_per_step=8",
        "method.optimiser.questions_per_step=4",
        "method.responses.max_new_tokens=8",
        "method.phases=[{teacher: teacher, mask: {max_ratio: '0.2', step: '0.2'}, epochs: 1}]",
        "evaluation.masking_ratios=['0.2', '0']",
        "validation.every=4",
    )
