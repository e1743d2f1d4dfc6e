"""Rendered scenes: a 3x3 grid of coloured shapes with one question each, made on demand.

Question ``i`` of a source is a pure function of (seed, i) and the source's settings: nothing is
stored, and the same question looks the same on every machine. Every cell holds one shape at most
and coincides with one merged visual token of the tiny models (48 pixels, patch 8, merge 2).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from masters.data.ids import Ids
from masters.data.questions import Question
from masters.data.scene_pictures import COLOURS, SHAPES, Picker, render
from masters.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

Wording = Literal["word", "label_first", "varied"]

KINDS = ("colour", "shape", "count", "describe")
PLACES = tuple(f"{row} {col}" for row in ("top", "middle", "bottom") for col in
               ("left", "centre", "right"))  # fmt: skip
NUMBERS = ("zero", "one", "two", "three", "four")

_COLOUR_NAMES = tuple(COLOURS)
_QUESTIONS = {
    "colour": "what colour is at the {place}?",
    "shape": "what shape is at the {place}?",
    "count": "how many {things} are there?",
    "describe": "describe the {place}.",
}
_WORDINGS = {
    "colour": (
        "{label}",
        "it is {label}",
        "the shape at the {place} is {label}",
        "its colour is {label}",
    ),
    "shape": (
        "{label}",
        "it is a {label}",
        "the shape at the {place} is a {label}",
        "there is a {label} at the {place}",
    ),
    "count": (
        "{label}",
        "there {are} {label}",
        "there {are} {label} {counted}",
        "i can see {label} {counted}",
    ),
    "describe": (
        "{label}",
        "it is a {label}",
        "the {place} shows a {label}",
        "there is a {label} at the {place}",
    ),
}
_LABEL_FIRST = {
    "colour": (
        "{label}",
        "{label} it is",
        "{label} at the {place}",
        "{label} is its colour",
    ),
    "shape": (
        "{label}",
        "{label} it is",
        "{label} at the {place}",
        "{label} is its shape",
    ),
    "count": (
        "{label}",
        "{label} in all",
        "{label} {counted}",
        "{label} {counted} in all",
    ),
    "describe": (
        "{label}",
        "{label} it is",
        "{label} at the {place}",
        "{label} is what i see",
    ),
}
# What the content verifier takes for a different answer to a question of each kind.
_ALTERNATIVES = {
    "colour": _COLOUR_NAMES,
    "shape": SHAPES,
    "count": NUMBERS,
    "describe": (*_COLOUR_NAMES, *SHAPES),
}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What one image shows and what is asked about it.

    Args:
        cells: for each of the 9 cells, row by row, (shape, colour) or None for an empty one.
        kind: one of ``KINDS``.
        fields: what fills the question's and the wordings' templates.
        label: the answer in as few words as it takes.
        wording: index into ``wordings(kind)`` of the training label.
    """

    cells: tuple[tuple[str, str] | None, ...]
    kind: str
    fields: dict[str, str]
    label: str
    wording: int


class SceneQuestions:
    """The questions of one scene source, rendered when they are asked for.

    Args:
        count: how many questions.
        seed: sources with different seeds share no scene in practice.
        wording: "word" trains on the label itself; "varied" draws ``training_label`` from four
            valid wordings while ``label`` stays the bare answer; "label_first" from four others
            that all begin with it, which small models learn several times faster.
        kinds: the kinds asked, in turn (question i has kind i modulo their number), so that every
            stretch is balanced; all of ``KINDS`` when None.
        image: side of the picture in pixels; a multiple of 3, at least 24.

    Raises:
        DataError: for a count, kind, wording or image size that cannot be drawn.
    """

    def __init__(
        self,
        *,
        count: int,
        seed: int,
        wording: Wording = "word",
        kinds: Sequence[str] | None = None,
        image: int = 48,
    ) -> None:
        self._kinds = KINDS if kinds is None else tuple(kinds)
        self._count, self._seed, self._side = count, seed, image
        self._wording: Wording = wording
        self._check()

    def _check(self) -> None:
        where = f"scenes (seed {self._seed})"
        if self._count < 1:
            raise DataError(f"{where}: count is {self._count}; expected 1 or more. Raise it.")
        unknown = [kind for kind in self._kinds if kind not in KINDS]
        if unknown or not self._kinds or len(set(self._kinds)) < len(self._kinds):
            raise DataError(
                f"{where}: kinds are {list(self._kinds)}; expected different ones out of "
                f"{', '.join(KINDS)}. Correct `kinds`, or leave it out for all of them."
            )
        if self._wording not in get_args(Wording):
            raise DataError(
                f"{where}: wording is {self._wording!r}; expected one of "
                f"{', '.join(get_args(Wording))}. Use one."
            )
        if self._side < 24 or self._side % 3:
            raise DataError(
                f"{where}: image is {self._side} pixels; expected a multiple of 3 from 24 up, "
                "because the grid has 3 cells a side. Use 48."
            )

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Question:
        if not -self._count <= index < self._count:
            raise IndexError(f"scene {index} of {self._count}")
        index %= self._count
        scene = self.scene(index)
        training_label = None
        if self._wording != "word":
            template = wordings(scene.kind, self._wording)[scene.wording]
            training_label = _fill(template, scene.label, scene.fields)
        return Question(
            id=self._id(index),
            text=_QUESTIONS[scene.kind].format(**scene.fields),
            images=(f"scene:{self._seed}:{index}",),
            label=scene.label,
            training_label=training_label,
            kind=scene.kind,
            meta={"alternatives": _ALTERNATIVES[scene.kind]},
        )

    def __iter__(self) -> Iterator[Question]:
        return (self[index] for index in range(self._count))

    @property
    def ids(self) -> Sequence[str]:
        """All question ids, in order."""
        return Ids(self._count, self._id, self._place)

    def find(self, question_id: str) -> int:
        """The place of a question.

        Raises:
            KeyError: there is none of that id.
        """
        place = self._place(question_id)
        if place is None:
            raise KeyError(question_id)
        return place

    def _id(self, index: int) -> str:
        return f"scene-{self._seed}-{index}"

    def _place(self, question_id: str) -> int | None:
        index = question_id.rpartition("-")[2]
        if not index.isdecimal() or int(index) >= self._count:
            return None
        return int(index) if self._id(int(index)) == question_id else None

    @property
    def skipped(self) -> dict[str, int]:
        """Always empty: no scene is ever left out."""
        return {}

    def scene(self, index: int) -> Scene:
        """What question ``index`` shows and asks."""
        return draw_scene(self._seed, index, self._kinds[index % len(self._kinds)])

    def open_images(self, question: Question) -> list[Image]:
        """The scene of a question of this source as an RGB picture.

        Raises:
            DataError: the question's image is not a scene of this source.
        """
        from PIL import Image as PillowImage

        return [PillowImage.fromarray(self.pixels(self._index(question)))]

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """The scene of question ``index``: uint8 of shape [side, side, 3]."""
        return render(self.scene(index).cells, self._seed, index, self._side)

    def _index(self, question: Question) -> int:
        head, _, index = "".join(question.images).rpartition(":")
        if head != f"scene:{self._seed}" or not index.isdigit() or int(index) >= self._count:
            raise DataError(
                f"question {question.id!r}: image is {' '.join(question.images)!r}; expected "
                f"'scene:{self._seed}:<0 to {self._count - 1}>'. Open the source that made it."
            )
        return int(index)

    def fingerprint(self) -> str:
        """Hex digest of the settings and of a probe of questions and pixels.

        The rows follow from the settings and this file; the probe (the first 24 questions) makes
        the digest move when the drawing or the sentences do.
        """
        settings = [self._count, self._seed, self._wording, self._kinds, self._side]
        digest = hashlib.sha256(json.dumps(["scenes", *settings]).encode())
        for index in range(min(24, self._count)):
            question = self[index]
            row = [question.id, question.text, question.label, question.training_label]
            digest.update(json.dumps([*row, question.meta]).encode())
            digest.update(self.pixels(index).tobytes())
        worded = _LABEL_FIRST if self._wording == "label_first" else _WORDINGS
        digest.update(json.dumps(worded).encode())
        return digest.hexdigest()


def wordings(kind: str, wording: Wording = "varied") -> tuple[str, ...]:
    """The templates a label of this kind is worded in; the first is the bare label."""
    return (_LABEL_FIRST if wording == "label_first" else _WORDINGS)[kind]


def scene_vocabulary() -> list[str]:
    """Every question and every worded answer that scenes can have, to train a tokenizer on."""
    sentences: dict[str, None] = {}
    spots = [{"place": place} for place in PLACES]
    pairs = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    asked = {"colour": _COLOUR_NAMES, "shape": SHAPES, "describe": tuple(pairs)}
    for kind, labels in asked.items():
        for fields in spots:
            sentences[_QUESTIONS[kind].format(**fields)] = None
            for template in wordings(kind):
                sentences.update(dict.fromkeys(_fill(template, label, fields) for label in labels))
    for colour in COLOURS:
        for thing in ("shape", *SHAPES):
            for number in range(len(NUMBERS)):
                fields = _count_fields(number, colour, thing)
                sentences[_QUESTIONS["count"].format(**fields)] = None
                for template in wordings("count"):
                    sentences[_fill(template, NUMBERS[number], fields)] = None
    return list(sentences)


def draw_scene(seed: int, index: int, kind: str) -> Scene:
    """The scene and question of (seed, index, kind).

    Counts asked are uniform over zero to four, and the number of shapes beside the counted ones
    (0 to 4) is drawn independently of them. The other kinds show 1 to 6 shapes: a lone one
    teaches its look, several teach where to look.
    """
    pick = Picker("layout", seed, index, 64)
    order = list(range(9))
    for last in range(8, 0, -1):
        other = pick(last + 1)
        order[last], order[other] = order[other], order[last]
    wording = pick(len(wordings(kind)))
    cells: list[tuple[str, str] | None] = [None] * 9
    if kind == "count":
        number, colour = pick(len(NUMBERS)), _COLOUR_NAMES[pick(len(COLOURS))]
        # Two in three ask for a colour, one for colour and shape, which tiny models find harder.
        shape = SHAPES[pick(len(SHAPES))] if pick(3) == 0 else None
        for rank, cell in enumerate(order[: max(1, number + pick(5))]):
            cells[cell] = _thing(pick, colour, shape, wanted=rank < number)
        fields, label = _count_fields(number, colour, shape or "shape"), NUMBERS[number]
    else:
        for cell in order[: 1 + pick(6)]:
            cells[cell] = SHAPES[pick(len(SHAPES))], _COLOUR_NAMES[pick(len(COLOURS))]
        asked = cells[order[0]]
        assert asked is not None
        fields = {"place": PLACES[order[0]]}
        label = {"shape": asked[0], "colour": asked[1]}.get(kind, f"{asked[1]} {asked[0]}")
    return Scene(cells=tuple(cells), kind=kind, fields=fields, label=label, wording=wording)


def _thing(pick: Picker, colour: str, shape: str | None, *, wanted: bool) -> tuple[str, str]:
    """A (shape, colour) that is counted (``wanted``) or is any of those not counted."""
    if wanted:
        return shape or SHAPES[pick(len(SHAPES))], colour
    others = [
        (s, c) for s in SHAPES for c in COLOURS if c != colour or (shape is not None and s != shape)
    ]
    return others[pick(len(others))]


def _count_fields(number: int, colour: str, thing: str) -> dict[str, str]:
    plural = thing + ("es" if thing == "cross" else "s")
    return {
        "things": f"{colour} {plural}",
        "counted": f"{colour} {thing if number == 1 else plural}",
        "are": "is" if number == 1 else "are",
    }


def _fill(template: str, label: str, fields: dict[str, str]) -> str:
    return template.format(label=label, **fields)
