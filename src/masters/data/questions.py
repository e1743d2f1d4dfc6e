"""The noun everything starts from: one question about its images, with its label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

#: Stands in a question's text where an image goes, as in LLaVA's data.
IMAGE_MARKER = "<image>"


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One earlier exchange of a conversation, kept as history before the question."""

    question: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one image, or several.

    Args:
        id: unique within its data set.
        text: the question, without prompt suffix. ``IMAGE_MARKER`` in it and in the turns before
            says where each image goes, in order; without any, all go before the first turn.
        images: where the images are: paths, or a generator's references (``scene:<seed>``). Empty
            for a text-only question.
        label: the ground truth; None where the data has none. Only verifiers and judges read it,
            except under recipes that train on labels.
        training_label: the wording to train on when labels are worded in several ways; defaults to
            ``label``.
        choices: the options of a multiple-choice question, in order.
        history: earlier turns about the same images.
        kind: a category to report accuracy by.
    """

    id: str
    text: str
    images: tuple[str, ...] = ()
    label: str | None = None
    training_label: str | None = None
    choices: tuple[str, ...] = ()
    history: tuple[Turn, ...] = ()
    kind: str = "all"
    meta: dict[str, object] = field(default_factory=dict)


class Questions(Protocol):
    """A data set: an ordered, indexable collection of questions that can open their images."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Question: ...

    def __iter__(self) -> Iterator[Question]: ...

    @property
    def ids(self) -> Sequence[str]:
        """All question ids, in order."""
        ...

    def find(self, question_id: str) -> int:
        """The place of a question; raises KeyError for an unknown id."""
        ...

    @property
    def skipped(self) -> dict[str, int]:
        """How many source rows were left out, by reason."""
        ...

    def open_images(self, question: Question) -> list[Image]:
        """The question's images as RGB; raises DataError naming question and file when broken."""
        ...

    def fingerprint(self) -> str:
        """Hex digest of the canonical question rows and the images' sizes."""
        ...
