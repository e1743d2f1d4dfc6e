"""Questions read from files: looked up in an index, made when they are asked for."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masters.data.bad_rows import BadRowError, message
from masters.data.ids import Ids
from masters.data.images import Images
from masters.data.index import Index
from masters.data.questions import Question, Turn
from masters.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image


class RowQuestions:
    """The questions of an index, with their images in a store (``Questions``).

    Args:
        where: the file or folder they come from, for messages.
        index: the checked rows.
        images: opens the images.
        first: how many rows of the index to leave out.
    """

    def __init__(self, *, where: Path, index: Index, images: Images, first: int = 0) -> None:
        self._where, self._index, self._images, self._first = where, index, images, first
        self._fingerprint = ""
        self._verified = bool(index.about["decoded"])

    def __len__(self) -> int:
        return len(self._index) - self._first

    def __getitem__(self, index: int) -> Question:
        if not -len(self) <= index < len(self):
            raise IndexError(f"question {index} of {len(self)}")
        row = self._index.row(self._first + index % len(self))
        return question_of_row(row, self._images)

    def __iter__(self) -> Iterator[Question]:
        return (self[index] for index in range(len(self)))

    @property
    def ids(self) -> Sequence[str]:
        """All question ids, in order."""
        ids, first = self._index.ids, self._first
        return Ids(len(self), lambda place: ids[first + place].as_py(), self._place)

    @property
    def skipped(self) -> dict[str, int]:
        """How many source rows were left out, by reason."""
        return dict(self._index.about["skipped"])

    def find(self, question_id: str) -> int:
        """The place of a question.

        Raises:
            KeyError: there is none of that id.
        """
        place = self._place(question_id)
        if place is None:
            raise KeyError(question_id)
        return place

    def _place(self, question_id: str) -> int | None:
        place = self._index.find(question_id)
        return None if place is None or place < self._first else place - self._first

    def after(self, offset: int) -> RowQuestions:
        """The same without the first ``offset`` questions.

        Raises:
            DataError: none would be left.
        """
        if offset >= len(self):
            raise DataError(
                f"{self._where}: offset is {offset}, but there are {len(self)} questions; "
                "expected fewer. Lower `offset`."
            )
        return RowQuestions(
            where=self._where, index=self._index, images=self._images, first=self._first + offset
        )

    def open_images(self, question: Question) -> list[Image]:
        """The question's images as RGB, in order.

        Raises:
            DataError: an image is gone, cannot be decoded or is over a limit.
        """
        try:
            return [self._images.open(image) for image in question.images]
        except BadRowError as bad:
            raise DataError(message(str(self._where), question.id, bad)) from bad

    def verify(self, at_most: int | None = None) -> None:
        """Checks that images can be decoded, once.

        Args:
            at_most: where there are more image files (or questions, where images are not files),
                look at the images of so many questions, spread over the data by a fixed seed.
                None: look at all.

        Raises:
            DataError: naming the first question whose image cannot.
        """
        if self._verified:
            return
        places: Sequence[int] = range(len(self))
        if at_most is not None and min(self._index.n_files or len(self), len(self)) > at_most:
            places = sorted(random.Random(0).sample(places, at_most))
        for place in places:
            question = self[place]
            try:
                for image in question.images:
                    self._images.verify(image)
            except BadRowError as bad:
                raise DataError(message(str(self._where), question.id, bad)) from bad
        self._verified = True

    def fingerprint(self) -> str:
        """Hex digest of the canonical question rows and the images' sizes.

        Images count by the name their rows give them, so a data set may be moved.
        """
        if not self._fingerprint:
            self._fingerprint = self._index.digest(self._first)
        return self._fingerprint


def row_of_question(question: Question, images: Sequence[tuple[str, int]]) -> list[Any]:
    """The canonical row of a question whose images are stored under these names and sizes."""
    turns = [(turn.question, turn.answer) for turn in question.history]
    return [
        question.id, question.text, images, question.label, question.training_label,
        question.choices, turns, question.kind, question.meta,
    ]  # fmt: skip


def question_of_row(row: Sequence[Any], images: Images) -> Question:
    """The question of a canonical row."""
    identity, text, stored, label, training_label, choices, turns, kind, meta = row
    return Question(
        id=identity,
        text=text,
        images=tuple(images.reference(name) for name, _ in stored),
        label=label,
        training_label=training_label,
        choices=tuple(choices),
        history=tuple(Turn(question=asked, answer=answer) for asked, answer in turns),
        kind=kind,
        meta=meta,
    )
