"""SHAPES (Andreas et al., as in n2nmn) as a student and a much better teacher can use it.

The official set has 2,688 rows (picture, question, answer) of 42 questions: too few to teach a good
teacher. A picture is a 3x3 grid, so its nine cells can be read and laid out anew: `read_cell` says
what a cell holds, `holds` answers a question about a grid. Both are checked against every official
answer before anything is written: 99.8 % or more must agree.

    python benchmarks/suites/prepare_shapes.py data/shapes data/shapes_parts

writes `official.jsonl` (all official rows, shuffled) and `recombined.jsonl`: new pictures made of
official cells, of rows that are not among the first HELD_OUT of `official.jsonl`, with the official
questions (but the five whose answer never changes), yes and no in equal number. Pictures are
enlarged from 30 to 48 pixels, so that a cell is one visual token of the tiny models, and inverted:
the tiny models take a light background for nothing, SHAPES' is black.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

HELD_OUT = 1500
RECOMBINED = 32_000
STEPS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
Grid = dict[tuple[int, int], tuple[str, str]]


def read_cell(cell: np.ndarray) -> tuple[str, str] | None:
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


def cells_of(picture: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """The nine cells of uint8 [30, 30, 3]."""
    return {
        (row, column): picture[10 * row : 10 * row + 10, 10 * column : 10 * column + 10]
        for row in range(3)
        for column in range(3)
    }


def holds(question: str, grid: Grid) -> bool:
    """The answer to, say, "is a red shape left of above a circle?".

    It is yes where some red cell lies left of a cell that lies above a circle, directly each time.
    """
    words = question.removesuffix("?").split()[2:]
    subject, rest = words[0], words[1:]
    rest = rest[1:] if rest[0] == "shape" else rest
    return bool(_places([subject], grid) & _places(rest, grid))


def _places(words: list[str], grid: Grid) -> set[tuple[int, int]]:
    words = words[1:] if words[0] in ("a", "an") else words
    step = " ".join(words[:2]) if words[0] in ("left", "right") else words[0]
    if step not in STEPS:
        return {place for place, thing in grid.items() if words[0] in thing}
    down, right = STEPS[step]
    inner = _places(words[len(step.split()) :], grid)
    moved = {(row + down, column + right) for row, column in inner}
    return {(row, column) for row, column in moved if 0 <= row < 3 and 0 <= column < 3}


def main() -> None:
    """Reads, checks, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    asked = parser.parse_args()
    lines = [
        line
        for part in ("train", "test")
        for line in (asked.source / f"{part}.jsonl").read_text("utf-8").splitlines()
    ]
    rows: list[dict[str, str]] = [json.loads(line) for line in lines]
    random.Random(0).shuffle(rows)
    cells = [
        cells_of(np.array(Image.open(asked.source / row["image"]).convert("RGB"))) for row in rows
    ]
    grids = [
        {at: thing for at, cell in nine.items() if (thing := read_cell(cell))} for nine in cells
    ]
    agree = [
        holds(row["question"], grid) == (row["answer"] == "yes")
        for row, grid in zip(rows, grids, strict=True)
    ]
    print(f"{sum(agree):,} of {len(rows):,} official answers are those computed from the picture")
    if sum(agree) < 0.998 * len(rows):
        raise SystemExit("too few: the cells are not read right, nothing is written")
    (asked.target / "images").mkdir(parents=True, exist_ok=True)
    with (asked.target / "official.jsonl").open("w", encoding="utf-8") as out:
        for row, nine in zip(rows, cells, strict=True):
            out.write(_row(asked.target, row["id"], nine, row["question"], row["answer"]))
    pool = [cell for nine in cells[HELD_OUT:] for cell in nine.values()]
    told = {(row["question"], row["answer"]) for row in rows}
    questions = sorted(q for q, answer in told if answer == "yes" and (q, "no") in told)
    draw = random.Random(1)
    with (asked.target / "recombined.jsonl").open("w", encoding="utf-8") as out:
        for n in range(RECOMBINED):
            question, wanted = questions[n // 2 % len(questions)], n % 2 == 0
            while True:
                nine = dict(zip(cells[0], draw.sample(pool, 9), strict=True))
                grid = {at: thing for at, cell in nine.items() if (thing := read_cell(cell))}
                if holds(question, grid) == wanted:
                    break
            answer = "yes" if wanted else "no"
            out.write(_row(asked.target, f"recombined-{n}", nine, question, answer))


def _row(folder: Path, name: str, nine: dict, question: str, answer: str) -> str:
    rows = [np.concatenate([nine[row, column] for column in range(3)], axis=1) for row in range(3)]
    pixels = 255 - np.concatenate(rows)
    picture = Image.fromarray(pixels).resize((48, 48), Image.Resampling.NEAREST)
    picture.save(folder / "images" / f"{name}.png")
    said = {"id": name, "image": f"images/{name}.png", "question": question, "answer": answer}
    return json.dumps({**said, "choices": ["yes", "no"]}) + "\n"


if __name__ == "__main__":
    main()
