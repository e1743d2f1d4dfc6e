"""Opens any data source a recipe can name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from masters.data.questions import Questions
from masters.errors import DataError

KINDS = ("jsonl", "llava", "datasets", "scenes")


class Source(Protocol):
    """What every source says of itself; the other fields depend on ``kind``.

    ``jsonl`` and ``llava`` have ``path`` and ``images`` (a folder); ``datasets`` has ``path``,
    ``split`` and ``columns``; ``scenes`` has ``count``, ``seed``, ``wording``, ``kinds`` and
    ``image``. All may have ``limit`` (the first so many questions), and those read from files
    ``offset`` (how many to leave out before them) and ``on_bad`` ("error" or "skip").
    """

    @property
    def kind(self) -> str: ...


def open_questions(source: Source, *, need_label: bool = True) -> Questions:
    """The questions of a source, checked row by row.

    That every image exists is checked here; that it can be decoded, by ``verify_images``.

    Args:
        source: see ``Source``; optional fields may be absent.
        need_label: whether a question without label is an error (or a skipped row).

    Raises:
        DataError: the source cannot be read, or has a bad row and ``on_bad`` is not "skip".
    """
    limit = _get(source, "limit", None)
    if limit is not None and limit < 1:
        raise DataError(f"data ({source.kind}): limit is {limit}; expected 1 or more. Raise it.")
    offset = _get(source, "offset", 0)
    shared = {
        "limit": None if limit is None else limit + offset,
        "on_bad": _get(source, "on_bad", "error"),
        "need_label": need_label,
    }
    match source.kind:
        case "jsonl":
            from masters.data.jsonl import read_jsonl

            found = read_jsonl(_path(source), images=_images(source), **shared)
        case "llava":
            from masters.data.llava import read_llava

            found = read_llava(_path(source), images=_images(source), **shared)
        case "datasets":
            from masters.data.hub import read_folder

            split, columns = _get(source, "split", None), _get(source, "columns", None)
            found = read_folder(_path(source), split=split, columns=dict(columns or {}), **shared)
        case "scenes":
            return _open_scenes(source, limit)
        case other:
            raise DataError(
                f"data: kind is {other!r}; expected one of {', '.join(KINDS)}. Correct `kind`."
            )
    return found.after(offset) if offset else found


def verify_images(questions: Questions) -> None:
    """Checks that every image of a data set can be decoded; each file is looked at once.

    Stages call it before hours are spent. Rendered scenes have no files and need no check.

    Raises:
        DataError: naming the question and the file of the first image that cannot.
    """
    from masters.data.rows import RowQuestions

    if isinstance(questions, RowQuestions):
        questions.verify()


def _open_scenes(source: Source, limit: int | None) -> Questions:
    from masters.data.scenes import SceneQuestions

    count = _get(source, "count", None)
    if count is None:
        raise DataError("data (scenes): no count; expected how many scenes to draw. Set `count`.")
    return SceneQuestions(
        count=count if limit is None else min(count, limit),
        seed=_get(source, "seed", 0),
        wording=_get(source, "wording", "word"),
        kinds=_get(source, "kinds", None),
        image=_get(source, "image", 48),
    )


def _path(source: Source) -> Path:
    path = _get(source, "path", None)
    if not path:
        raise DataError(f"data ({source.kind}): no path; expected where the data is. Set `path`.")
    return Path(path).expanduser()


def _images(source: Source) -> Path | None:
    folder = _get(source, "images", None)
    return None if folder is None else Path(folder).expanduser()


def _get(source: Source, name: str, default: Any) -> Any:
    value = getattr(source, name, default)
    return default if value is None else value
