"""SHAPES (Andreas et al., as in n2nmn) as a student and a much better teacher can use it.

    python benchmarks/suites/prepare_shapes.py data/shapes data/shapes_suite

Official SHAPES has 2,688 rows (picture, question, yes or no), too few to teach a good teacher, and
asks in its test other questions than in its training. But a picture is a grid of 3x3 cells, which
can be laid out anew: `read_cell` says what a cell shows, `holds` answers a question about a grid.
Both must agree with 99.8 % of the official answers before anything is written:

- `train.jsonl`: pictures laid out of cells of the official *training* pictures, the questions of
  the official test set that have both answers there, yes and no in equal number;
- `test.jsonl`: the official test rows of these questions, as they are (kind `official`), then as
  many pictures laid out of cells of the official *test* pictures (kind `laid out`).

Pictures are enlarged from 30 to 48 pixels, so that a cell is one visual token of the tiny models,
and inverted: these take a light background for nothing, and that of SHAPES is black.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TRAIN, TEST = 20_000, 2_000
STEPS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
PLACES = tuple((row, column) for row in range(3) for column in range(3))
Place = tuple[int, int]
Grid = dict[Place, tuple[str, str]]


def read_cell(cell: NDArray[np.uint8]) -> tuple[str, str] | None:
    """(colour, shape) of uint8 [10, 10, 3]; None where it is empty.

    Edges are smoothed, so a shape is told by soft features: a triangle is fainter at its top than
    at its bottom, a square has something in the corners of its box, a circle has not.
    """
    light = cell.max(axis=2) / 255
    if light.max() < 0.24:
        return None
    colour = ("red", "green", "blue")[int(cell.reshape(-1, 3).astype(int).sum(0).argmax())]
    ys, xs = np.nonzero(light > 0.1 * light.max())
    box = light[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] / light.max()
    third = max(1, len(box) // 3)
    if box[:third].mean() < 0.75 * box[-third:].mean():
        return colour, "triangle"
    corners = box[[0, 0, -1, -1], [0, -1, 0, -1]].mean()
    return colour, "circle" if corners < 0.01 else "square"


def holds(question: str, grid: Grid) -> bool:
    """The answer to, say, "is a red shape left of above a circle?".

    It is yes where some red cell lies left of a cell that lies above a circle, directly each time.
    """
    words = question.removesuffix("?").split()[2:]
    subject, rest = words[0], words[1:]
    rest = rest[1:] if rest[0] == "shape" else rest
    return bool(_places([subject], grid) & _places(rest, grid))


def _places(words: list[str], grid: Grid) -> set[Place]:
    words = words[1:] if words[0] in ("a", "an") else words
    step = " ".join(words[:2]) if words[0] in ("left", "right") else words[0]
    if step not in STEPS:
        return {place for place, thing in grid.items() if words[0] in thing}
    down, right = STEPS[step]
    inner = _places(words[len(step.split()) :], grid)
    return {(row + down, column + right) for row, column in inner} & set(PLACES)


class Cell:
    """A cell's pixels, uint8 [10, 10, 3], and what they show."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels, self.shown = pixels, read_cell(pixels)


Cells = dict[Place, Cell]


def grid_of(cells: Cells) -> Grid:
    """What a picture of these cells shows."""
    return {at: cell.shown for at, cell in cells.items() if cell.shown is not None}


class Official:
    """One official split: its rows with the cells of their pictures."""

    def __init__(self, folder: Path, split: str) -> None:
        lines = (folder / f"{split}.jsonl").read_text("utf-8").splitlines()
        rows: list[dict[str, str]] = [json.loads(line) for line in lines]
        self.rows = [(row, _cells(folder / row["image"])) for row in rows]
        self._pool = [cell for _, cells in self.rows for cell in cells.values()]

    def agreeing(self) -> int:
        """How many official answers are those computed from the picture."""
        return sum(
            holds(row["question"], grid_of(cells)) == (row["answer"] == "yes")
            for row, cells in self.rows
        )

    def lay_out(self, question: str, wanted: bool, draw: random.Random) -> Cells:
        """Nine cells of this split about which the question has the wanted answer."""
        while True:
            cells = dict(zip(PLACES, draw.sample(self._pool, 9), strict=True))
            if holds(question, grid_of(cells)) == wanted:
                return cells


def _cells(path: Path) -> Cells:
    pixels = np.array(Image.open(path).convert("RGB"))
    return {
        (row, column): Cell(pixels[10 * row : 10 * row + 10, 10 * column : 10 * column + 10])
        for row, column in PLACES
    }


class Writer:
    """Rows of one file and their pictures."""

    def __init__(self, folder: Path, name: str) -> None:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        self._folder, self._name, self.lines = folder, name, list[str]()

    def add(self, cells: Cells, question: str, answer: str, kind: str) -> None:
        """Adds a row, and writes its picture."""
        image = f"images/{self._name}-{len(self.lines)}.png"
        pixels = np.block(
            [[[cells[row, column].pixels] for column in range(3)] for row in range(3)]
        )
        picture = Image.fromarray(255 - pixels)
        picture.resize((48, 48), Image.Resampling.NEAREST).save(self._folder / image)
        row = {"id": image[7:-4], "image": image, "question": question, "answer": answer}
        self.lines.append(json.dumps({**row, "choices": ["yes", "no"], "kind": kind}) + "\n")

    def lay_out(self, source: Official, questions: Sequence[str], count: int, seed: int) -> None:
        """Adds ``count`` rows on new pictures: every question in turn, first yes, then no."""
        draw = random.Random(seed)
        for n in range(count):
            question, wanted = questions[n // 2 % len(questions)], n % 2 == 0
            cells = source.lay_out(question, wanted, draw)
            self.add(cells, question, "yes" if wanted else "no", "laid out")

    def close(self) -> None:
        """Writes the file."""
        (self._folder / f"{self._name}.jsonl").write_text("".join(self.lines), "utf-8")


def main() -> None:
    """Reads, checks, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    asked = parser.parse_args()
    learnt, asked_of = Official(asked.source, "train"), Official(asked.source, "test")
    agree, rows = learnt.agreeing() + asked_of.agreeing(), len(learnt.rows) + len(asked_of.rows)
    print(f"{agree:,} of {rows:,} official answers are those computed from the picture")
    if agree < 0.998 * rows:
        raise SystemExit("too few: the cells are not read right, nothing is written")
    told = {(row["question"], row["answer"]) for row, _ in asked_of.rows}
    questions = sorted(q for q, answer in told if answer == "yes" and (q, "no") in told)
    train, test = Writer(asked.target, "train"), Writer(asked.target, "test")
    train.lay_out(learnt, questions, TRAIN, seed=1)
    for row, cells in asked_of.rows:
        if row["question"] in questions:
            test.add(cells, row["question"], row["answer"], "official")
    official = len(test.lines)
    test.lay_out(asked_of, questions, TEST - official, seed=2)
    train.close()
    test.close()
    told_of = f"{official:,} official rows, {TEST - official:,} laid out"
    print(f"{len(questions)} questions; test: {told_of}")


if __name__ == "__main__":
    main()
