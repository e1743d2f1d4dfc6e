"""Questions from LLaVA-style conversations: one per answer, earlier turns as its history."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path

from masters.data.bad_rows import BadRowError
from masters.data.collector import Collector, Reading, collect
from masters.data.fields import build_question, wrong_markers
from masters.data.images import Images
from masters.data.json_stream import json_items
from masters.data.jsonl import unreadable
from masters.data.questions import IMAGE_MARKER, Question, Turn
from masters.data.rows import RowQuestions
from masters.errors import DataError

_HUMAN = frozenset({"human", "user"})
_MODEL = frozenset({"gpt", "assistant"})


def read_llava(path: Path, *, images: Images, reading: Reading) -> RowQuestions:
    """The questions of a JSON list of ``{"id", "image", "conversations": [{"from", "value"}]}``.

    Turn ``t`` (from 0) of row ``id`` becomes the question ``<id>#<t>``. ``image`` may be a list.
    Rows without an image, and turns before the first one, are counted in ``skipped`` under
    "text-only". A bad turn ends its conversation; one that ends with an unanswered question is bad
    where labels are needed.

    Args:
        path: the file; its list is read item by item.
        images: where the images are that rows name.
        reading: which rows are taken.

    Raises:
        DataError: the file cannot be read, a row is bad, or none is usable.
    """

    def take(collector: Collector) -> None:
        for number, row in enumerate(_entries(path), start=1):
            if collector.full:
                break
            _take(collector, number, row)

    return collect(
        take,
        kind="llava",
        where=path,
        files=[path, *images.files()],
        images=images,
        reading=reading,
        place=lambda number: f"{path}: entry {number}",
    )


def _entries(path: Path) -> Iterator[object]:
    try:
        yield from json_items(path)
    except TypeError as error:
        raise DataError(
            f"{path}: holds one {error}; expected a JSON list of conversations. "
            "For one object per line use `kind: jsonl`."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error, "one JSON list of conversations") from error


def _take(collector: Collector, number: int, row: object) -> None:
    if isinstance(row, dict) and row.get("image") in (None, "", []):
        collector.leave_out("text-only")
        return
    identity = row.get("id") if isinstance(row, dict) else None
    try:
        names, turns = _image_names(row), _exchanges(row)
        placed = _placed(names, turns)
    except BadRowError as bad:
        collector.add(number, identity, partial(_refuse, bad))
        return
    history: tuple[Turn, ...] = ()
    for index, (asked, answer) in enumerate(turns):
        question = asked if placed else asked.replace(IMAGE_MARKER, " ").strip()
        shown = names[: placed[index]] if placed else names
        fields = {"image": shown, "question": question, "answer": answer}
        name = None if identity is None else f"{identity}#{index}"
        build = partial(build_question, fields, identity=name, history=history)
        if shown:
            collector.add(number, name, build)
        else:
            collector.leave_out("text-only")
        # What follows an empty turn would be asked about a conversation that never took place.
        if answer is None or not answer.strip() or not question.replace(IMAGE_MARKER, "").strip():
            return
        history = (*history, Turn(question=question, answer=answer))


def _refuse(bad: BadRowError) -> Question:
    raise bad


def _exchanges(row: object) -> list[tuple[str, str | None]]:
    """(question, answer) in order; the answer is None where the conversation ends with a question.

    Raises:
        BadRowError: the turns do not alternate between a human and a model.
    """
    turns = row.get("conversations") if isinstance(row, dict) else None
    if not isinstance(turns, list) or not turns:
        raise _bad_turns(f"conversations {str(turns)[:60]!r}")
    said: list[str] = []
    for index, turn in enumerate(turns):
        speaker = turn.get("from") if isinstance(turn, Mapping) else None
        text = turn.get("value") if isinstance(turn, Mapping) else None
        if speaker not in (_MODEL if index % 2 else _HUMAN) or not isinstance(text, str):
            raise _bad_turns(f"turn {index + 1} from {speaker!r}")
        said.append(text if index % 2 else text.strip())
    answers: list[str | None] = [*said[1::2]]
    if len(said) % 2:
        answers.append(None)
    return list(zip(said[::2], answers, strict=True))


def _bad_turns(got: str) -> BadRowError:
    return BadRowError(
        "turns out of order",
        got=got,
        expected='turns {"from", "value"} that alternate, "human" first and "gpt" second',
        remedy="Correct the conversation",
    )


def _image_names(row: object) -> list[object]:
    image = row.get("image") if isinstance(row, dict) else None
    return image if isinstance(image, list) else [image]


def _placed(names: Sequence[object], turns: Sequence[tuple[str, object]]) -> list[int]:
    """How many images have been shown by the end of each turn; empty where all stand first.

    A lone image stands first wherever its marker is, as in LLaVA's own training; several stand
    where their markers are, or first where there are none.

    Raises:
        BadRowError: several images, and not one marker for each.
    """
    shown = list(accumulate(question.count(IMAGE_MARKER) for question, _ in turns))
    if len(names) == 1 or not shown[-1]:
        return []
    if shown[-1] != len(names):
        raise wrong_markers(shown[-1], len(names))
    return shown
