"""From the fields of a row to a question: the checks every reader shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from masters.data.answers import ANSWERS, answer_texts, most_given
from masters.data.bad_rows import BadRowError
from masters.data.questions import IMAGE_MARKER, Question, Turn


def build_question(
    row: Mapping[str, object],
    *,
    identity: object,
    history: tuple[Turn, ...] = (),
    answer_may_index: bool = False,
) -> Question:
    """A question from a row with the fields ``image, question, answer, choices, kind``.

    Its images are what the row calls them: whether they are there is not looked at.

    Args:
        row: the fields; ``image`` or ``images`` is one path or a list, ``category`` stands for
            ``kind``, and further fields are kept in ``meta``. An ``answer`` that is a list of
            gold answers is kept there whole, and the one given most often is the label.
        identity: the question's id.
        history: earlier turns about the same images.
        answer_may_index: whether a whole-number answer beside choices is an index into them.

    Raises:
        BadRowError: a field is missing, empty or of the wrong type.
    """
    choices = _choices(row.get("choices"))
    answer = row.get("answer")
    if answer_may_index and choices and isinstance(answer, int) and 0 <= answer < len(choices):
        answer = choices[answer]
    meta = {key: value for key, value in row.items() if key not in _FIELDS}
    several = answer_texts(answer)
    if several is not None:
        answer = most_given(several)
        meta = {ANSWERS: several} | meta
    kind = row.get("kind") or row.get("category") or "all"
    asked = _text(row.get("question"), "question")
    names = _image_names(row)
    _check_markers([*(turn.question for turn in history), asked], len(names))
    return Question(
        id=_text(identity, "id"),
        text=asked,
        images=tuple(names),
        label=None if answer is None else _text(answer, "answer"),
        choices=choices,
        history=history,
        kind=str(kind),
        meta=meta,
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
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRowError(
            f"{name} is no Unicode",
            got=f"{name} {value[:60]!r}, with half a surrogate pair",
            expected="text that can be written in UTF-8",
            remedy=f"Correct the {name}",
        ) from error
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
