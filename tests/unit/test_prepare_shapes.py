"""The script behind the SHAPES suite: what a grid answers, and the files it writes."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.suites import prepare_shapes
from benchmarks.suites.prepare_shapes import PLACES, Grid, holds, read_cell
from numpy.typing import NDArray
from PIL import Image

GRID: Grid = {
    (0, 0): ("red", "circle"), (0, 1): ("blue", "square"),
    (1, 1): ("green", "triangle"), (2, 2): ("red", "square"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("is a red shape left of a square?", True),
        ("is a square left of a red shape?", False),
        ("is a triangle below a blue shape?", True),
        ("is a red shape a square?", True),
        ("is a blue shape a circle?", False),
        # Two apart is neither left of nor above.
        ("is a circle above a red shape?", False),
        # The circle lies left of (0, 1), which lies above the triangle.
        ("is a red shape left of above a triangle?", True),
        # The cell between need not hold anything: (1, 2) is empty.
        ("is a triangle left of above a red shape?", True),
        ("is a square right of above a triangle?", False),
    ],
)
def test_what_a_grid_answers(question: str, answer: bool) -> None:
    assert holds(question, GRID) is answer


def _cell(colour: str, shape: str) -> NDArray[np.uint8]:
    rows = {"square": [6] * 6, "triangle": [1, 1, 2, 4, 5, 6], "circle": [2, 6, 6, 6, 6, 2]}[shape]
    light = np.zeros((10, 10))
    for row, wide in enumerate(rows):
        left = 5 - (wide + 1) // 2
        light[2 + row, left : left + wide] = 1
    pixels = np.zeros((10, 10, 3), dtype=np.uint8)
    pixels[..., ("red", "green", "blue").index(colour)] = 200 * light
    return pixels


THINGS = [(c, s) for c in ("red", "green", "blue") for s in ("circle", "square", "triangle")]


def test_cells_are_read() -> None:
    assert [read_cell(_cell(*thing)) for thing in THINGS] == THINGS
    assert read_cell(np.zeros((10, 10, 3), dtype=np.uint8)) is None


def _official(folder: Path, rows: int, flip: int = 0) -> None:
    """A folder in the form of the official data; the first ``flip`` answers are wrong."""
    (folder / "images").mkdir(parents=True)
    draw = random.Random(3)
    questions = ("is a red shape above a circle?", "is a square left of a blue shape?")
    for split in ("train", "test"):
        lines = []
        for n in range(rows):
            things = [draw.choice([*THINGS, None]) for _ in PLACES]
            cells = [_cell(*t) if t else np.zeros((10, 10, 3), np.uint8) for t in things]
            picture = np.concatenate(
                [np.concatenate(cells[3 * row : 3 * row + 3], axis=1) for row in range(3)]
            )
            Image.fromarray(picture).save(folder / "images" / f"{split}-{n}.png")
            grid = {at: thing for at, thing in zip(PLACES, things, strict=True) if thing}
            right = holds(questions[n % 2], grid) != (n < flip)
            lines.append(json.dumps({
                "id": f"{split}-{n}", "image": f"images/{split}-{n}.png",
                "question": questions[n % 2], "answer": "yes" if right else "no",
            }))  # fmt: skip
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def _run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_shapes, "TRAIN", 40)
    monkeypatch.setattr(prepare_shapes, "TEST", 40)
    monkeypatch.setattr(sys, "argv", ["prepare", str(folder / "from"), str(folder / "to")])
    prepare_shapes.main()


def test_every_written_answer_is_that_of_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _official(tmp_path / "from", 24)
    _run(tmp_path, monkeypatch)
    for split, laid_out in (("train", 40), ("test", 16)):
        lines = (tmp_path / "to" / f"{split}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["kind"] for row in rows] == ["official"] * (40 - laid_out) + [
            "laid out"
        ] * laid_out
        new = [row["answer"] for row in rows if row["kind"] == "laid out"]
        assert new == ["yes", "no"] * (laid_out // 2)
        for row in rows:
            small = Image.open(tmp_path / "to" / row["image"]).resize(
                (30, 30), Image.Resampling.NEAREST
            )
            cells = {
                at: 255 - np.array(small)[10 * at[0] :, 10 * at[1] :][:10, :10] for at in PLACES
            }
            grid = {at: thing for at, cell in cells.items() if (thing := read_cell(cell))}
            assert holds(row["question"], grid) == (row["answer"] == "yes"), row


def test_answers_that_the_pictures_do_not_give_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _official(tmp_path / "from", 24, flip=1)
    with pytest.raises(SystemExit, match="nothing is written"):
        _run(tmp_path, monkeypatch)
    assert not (tmp_path / "to").exists()
