"""Example questions for the report: chosen by a fixed rule, with images and all models' answers."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from masters.evaluation.readings import Row

if TYPE_CHECKING:
    from PIL.Image import Image

    from masters.data.questions import Question, Questions

COUNT = 10
RULE = (
    "the first questions of the test set, in its order, that at least one model gets right "
    "and at least one gets wrong; if there are too few of those, the first of the others"
)
LARGEST_SIDE = 384
"""Larger images are shrunk to this many pixels before they go into the page."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image ready for the page: PNG as a data URI, and its size before any shrinking."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Example:
    """One question, what was asked, and what every model answered.

    Args:
        question: the text asked; None where the data set could not be opened.
        pictures: empty for text-only rows and images that could not be opened; ``note`` says why.
        answers: model name -> its row of the answers table.
    """

    id: str
    question: str | None
    label: str
    kind: str
    pictures: tuple[Picture, ...]
    note: str
    answers: dict[str, Row]


def choose_examples(answers: Mapping[str, Mapping[str, Row]], order: Sequence[str]) -> list[str]:
    """Ids of at most ten questions that every model answered, by ``RULE``.

    Args:
        answers: model -> question id -> row with "correct".
        order: question ids in the test set's order.
    """
    if not answers:
        return []
    shared = [key for key in order if all(key in rows for rows in answers.values())]

    def told(key: str) -> set[bool]:
        return {r[key]["correct"] for r in answers.values() if r[key].get("score", 0) is not None}

    split = [key for key in shared if len(told(key)) > 1]
    rest = [key for key in shared if key not in set(split)]
    place = {key: index for index, key in enumerate(shared)}
    return sorted((split + rest)[:COUNT], key=place.__getitem__)


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """The evaluated data set, or why it cannot be opened any more."""

    questions: Questions | None
    trouble: str = ""

    @property
    def order(self) -> Sequence[str] | None:
        """Ids in the test set's order; None where it is not here."""
        return None if self.questions is None else self.questions.ids

    def example(self, key: str, answers: Mapping[str, Row]) -> Example:
        """One question with its images and the models' answers.

        Args:
            key: its id.
            answers: model -> its row of the answers table; at least one.
        """
        row = next(iter(answers.values()))
        text, pictures, note = None, (), self.trouble
        if self.questions is not None:
            try:
                question = self.questions[self.questions.find(key)]
                text = question.text
                pictures, note = _open(self.questions, question)
            except Exception as error:  # the data were changed since: named on the page
                note = f"The question could not be read: {error}"
        return Example(
            id=key,
            question=text,
            label=str(row.get("label") or ""),
            kind=str(row.get("kind") or ""),
            pictures=pictures,
            note=note,
            answers=dict(answers),
        )


def open_shelf(open_data: Callable[[], Questions]) -> Shelf:
    """Data that can't be opened any more costs the images and texts, not the report."""
    try:
        return Shelf(questions=open_data())
    except Exception as error:  # any reader, any broken file: the report is worth more
        return Shelf(questions=None, trouble=f"The test data could not be opened: {error}")


def examples(answers: Mapping[str, Mapping[str, Row]], shelf: Shelf) -> list[Example]:
    """Up to ten questions by ``RULE``, with images, label and answers.

    Args:
        answers: model -> question id -> row of its answers table.
        shelf: the evaluated data set.
    """
    if not answers:
        return []
    order = shelf.order or list(next(iter(answers.values())))
    return [
        shelf.example(key, {model: rows[key] for model, rows in answers.items()})
        for key in choose_examples(answers, order)
    ]


def picture_of(image: Image) -> Picture:
    """The image as a PNG data URI, shrunk where its longer side is above ``LARGEST_SIDE``."""
    width, height = image.size
    small = image.convert("RGB")
    small.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return Picture(uri=data_uri(png_bytes(small)), width=width, height=height)


def png_bytes(image: Image) -> bytes:
    """The image encoded as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def data_uri(png: bytes) -> str:
    """PNG bytes as a URI that needs no request."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _open(questions: Questions, question: Question) -> tuple[tuple[Picture, ...], str]:
    try:
        return tuple(picture_of(image) for image in questions.open_images(question)), ""
    except Exception as error:  # any broken image: named on the page
        return (), f"The image could not be opened: {error}"
