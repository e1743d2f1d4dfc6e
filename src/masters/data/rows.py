"""Questions read from files: the checks every reader shares, and the list they end in."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from masters.data.bad_rows import BadRowError, message
from masters.data.images import Images
from masters.data.questions import IMAGE_MARKER, Question, Turn
from masters.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

OnBad = Literal["error", "skip"]
_LOG = logging.getLogger(__name__)
_NAMED = 5
_SKIP_HINT = ", or set `on_bad: skip` to leave such rows out."


class RowQuestions:
    """Questions held in a list, with their images in files or in a table (``Questions``).

    Args:
        where: the file or folder they come from, for messages.
        rows: the questions, in order.
        images: opens the images.
        skipped: rows left out, by reason.
    """

    def __init__(
        self, *, where: Path, rows: Sequence[Question], images: Images, skipped: Mapping[str, int]
    ) -> None:
        self._where, self._rows, self._images = where, rows, images
        self._skipped = dict(skipped)
        self._ids = [row.id for row in rows]
        self._fingerprint = ""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Question:
        return self._rows[index]

    def __iter__(self) -> Iterator[Question]:
        return iter(self._rows)

    @property
    def ids(self) -> Sequence[str]:
        """All question ids, in order."""
        return self._ids

    @property
    def skipped(self) -> dict[str, int]:
        """How many source rows were left out, by reason."""
        return dict(self._skipped)

    def after(self, offset: int) -> RowQuestions:
        """The same without the first ``offset`` questions.

        Raises:
            DataError: none would be left.
        """
        if offset >= len(self._rows):
            raise DataError(
                f"{self._where}: offset is {offset}, but there are {len(self._rows)} questions; "
                "expected fewer. Lower `offset`."
            )
        return RowQuestions(
            where=self._where,
            rows=self._rows[offset:],
            images=self._images,
            skipped=self._skipped,
        )

    def open_images(self, question: Question) -> list[Image]:
        """The question's images as RGB, in order.

        Raises:
            DataError: an image is gone or cannot be decoded.
        """
        try:
            return [self._images.open(image) for image in question.images]
        except BadRowError as bad:
            raise DataError(message(str(self._where), question.id, bad)) from bad

    def verify(self) -> None:
        """Checks that every image can be decoded.

        Raises:
            DataError: naming the first question whose image cannot.
        """
        for question in self._rows:
            try:
                for image in question.images:
                    self._images.verify(image)
            except BadRowError as bad:
                raise DataError(message(str(self._where), question.id, bad)) from bad

    def fingerprint(self) -> str:
        """Hex digest of the canonical question rows and the images' sizes.

        Images count by the name their rows give them, so a data set may be moved.
        """
        if not self._fingerprint:
            digest = hashlib.sha256(b"rows")
            encode = json.JSONEncoder(sort_keys=True, default=str).encode
            for row in self._rows:
                stamps = [self._images.stamp(image) for image in row.images]
                turns = [(turn.question, turn.answer) for turn in row.history]
                parts = [row.id, row.text, stamps, row.label, row.training_label, row.choices]
                digest.update(encode([*parts, turns, row.kind, row.meta]).encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


class Collector:
    """Takes rows one by one, checks them, and ends in ``RowQuestions``.

    Args:
        where: the file or folder being read.
        images: finds the images.
        limit: how many questions to take; all when None.
        on_bad: "error" stops at the first bad row, "skip" counts them by reason and logs the first
            five of each. With "skip" every image is decoded when the data is opened, since which
            rows are left must be known before anything is planned.
        need_label: whether a question without label is bad.
    """

    def __init__(
        self,
        *,
        where: Path,
        images: Images,
        limit: int | None,
        on_bad: OnBad,
        need_label: bool,
    ) -> None:
        self._where, self._images, self._limit = where, images, limit
        self._on_bad, self._need_label = on_bad, need_label
        self._rows: list[Question] = []
        self._places: dict[str, str] = {}
        self._skipped: Counter[str] = Counter()

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self._limit is not None and len(self._rows) >= self._limit

    def add(self, place: str, identity: object, build: Callable[[], Question]) -> None:
        """Takes one question unless the limit is reached.

        Args:
            place: where the row is, e.g. ``train.jsonl:12``.
            identity: the row's id, for the message when ``build`` fails.
            build: makes the question; may raise ``BadRowError``.

        Raises:
            DataError: the row is bad and ``on_bad`` is "error".
        """
        if self.full:
            return
        try:
            question = build()
            self._check(question)
        except BadRowError as bad:
            if self._on_bad == "error":
                hint = bad.remedy + _SKIP_HINT
                raise DataError(message(place, identity, bad, hint)) from bad
            self._skipped[bad.reason] += 1
            if self._skipped[bad.reason] <= _NAMED:
                _LOG.warning("left out (%s): %s", bad.reason, message(place, identity, bad))
            return
        self._rows.append(question)
        self._places[question.id] = place

    def leave_out(self, reason: str) -> None:
        """Counts a row that is no question for a vision-language model but no mistake either."""
        if not self.full:
            self._skipped[reason] += 1

    def finish(self) -> RowQuestions:
        """The questions taken.

        Raises:
            DataError: there is none.
        """
        if not self._rows:
            counts = ", ".join(f"{n} {reason}" for reason, n in self._skipped.items())
            raise DataError(
                f"{self._where}: no usable question (left out: {counts or 'nothing'}); expected "
                "at least one. Check that the path and the names of the fields are right."
            )
        return RowQuestions(
            where=self._where, rows=self._rows, images=self._images, skipped=self._skipped
        )

    def _check(self, question: Question) -> None:
        if question.id in self._places:
            raise BadRowError(
                "duplicate id",
                got=f"an id already used at {self._places[question.id]}",
                expected="every id once",
                remedy="Rename one of them",
            )
        if question.label is None and self._need_label:
            raise BadRowError(
                "no label",
                got="no answer",
                expected="the ground truth, because this recipe compares responses with it",
                remedy="Add the answer",
            )
        if self._on_bad == "skip":
            for image in question.images:
                self._images.verify(image)


def build_question(
    row: Mapping[str, object],
    *,
    identity: object,
    images: Images,
    history: tuple[Turn, ...] = (),
    answer_may_index: bool = False,
) -> Question:
    """A question from a row with the fields ``image, question, answer, choices, kind``.

    Args:
        row: the fields; ``image`` or ``images`` is one path or a list, ``category`` stands for
            ``kind``, and further fields are kept in ``meta``.
        identity: the question's id.
        images: finds the image.
        history: earlier turns about the same images.
        answer_may_index: whether a whole-number answer beside choices is an index into them.

    Raises:
        BadRowError: a field is missing, empty or of the wrong type.
    """
    choices = _choices(row.get("choices"))
    answer = row.get("answer")
    if answer_may_index and choices and isinstance(answer, int) and 0 <= answer < len(choices):
        answer = choices[answer]
    kind = row.get("kind") or row.get("category") or "all"
    asked = _text(row.get("question"), "question")
    names = _image_names(row)
    _check_markers([*(turn.question for turn in history), asked], len(names))
    return Question(
        id=_text(identity, "id"),
        text=asked,
        images=tuple(images.find(name) for name in names),
        label=None if answer is None else _text(answer, "answer"),
        choices=choices,
        history=history,
        kind=str(kind),
        meta={key: value for key, value in row.items() if key not in _FIELDS},
    )


_FIELDS = frozenset({"id", "image", "images", "question", "answer", "choices", "kind", "category"})


def _text(value: object, name: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if value is None:
        raise BadRowError(
            f"no {name}",
            got=f"no {name}",
            expected=f"a field that holds the {name}",
            remedy=f"Add the {name}, or correct the field's name",
        )
    if not isinstance(value, str):
        raise BadRowError(
            f"{name} is no text",
            got=f"{name} {value!r} ({type(value).__name__})",
            expected="text or a number",
            remedy=f"Write the {name} as text",
        )
    if not value.replace(IMAGE_MARKER, "").strip():
        raise BadRowError(
            f"empty {name}",
            got=f"{name} {value!r}",
            expected="text that is not blank",
            remedy=f"Fill in the {name}",
        )
    return value.strip()


def _image_names(row: Mapping[str, object]) -> list[str]:
    if row.get("image") is not None and row.get("images") is not None:
        raise BadRowError(
            "image and images",
            got="both a field `image` and a field `images`",
            expected="one of them",
            remedy="Put all paths into `images`",
        )
    value = row.get("image") if row.get("images") is None else row.get("images")
    names = list(value) if isinstance(value, list | tuple) else [value]
    found = [name for name in names if isinstance(name, str) and name]
    if not found or len(found) < len(names):
        raise BadRowError(
            "no image",
            got=f"image {value!r}",
            expected="the path of one image, or a list of paths",
            remedy="Add the path, or correct the field's name",
        )
    return found


def _check_markers(asked: Sequence[str], images: int) -> None:
    """Raises BadRowError unless the turns have one marker for each image, or none at all."""
    markers = sum(text.count(IMAGE_MARKER) for text in asked)
    if markers not in (0, images):
        raise wrong_markers(markers, images)


def wrong_markers(markers: int, images: int) -> BadRowError:
    """The bad row whose text has some markers, but not one for each image."""
    return BadRowError(
        "markers and images differ",
        got=f"{markers} times {IMAGE_MARKER} and {images} images",
        expected=f"one {IMAGE_MARKER} for each image, or none (images first)",
        remedy="Correct the markers or the list of images",
    )


def _choices(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise BadRowError(
            "choices are no list",
            got=f"choices {value!r}",
            expected="a list of texts",
            remedy="Write the choices as a list",
        )
    return tuple(_text(choice, "choice") for choice in value)
