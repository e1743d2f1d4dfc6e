"""Opens any data source a recipe can name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from masters.data.decode import ImageLimits
from masters.data.images import Images
from masters.data.questions import Questions
from masters.errors import DataError

if TYPE_CHECKING:
    from masters.data.collector import Reading
    from masters.data.rows import RowQuestions

KINDS = ("jsonl", "llava", "datasets", "webdataset", "scenes")


class Source(Protocol):
    """What every source says of itself; the other fields depend on ``kind``.

    ``jsonl`` and ``llava`` have ``path``, ``images`` (a folder, or tar files) and ``allow_urls``
    (whether images may be URLs, which are then fetched); ``datasets`` has
    ``path``, ``split`` and ``columns``; ``webdataset`` has ``path`` and ``columns``; ``scenes`` has
    ``count``, ``seed``, ``wording``, ``kinds`` and ``image``. All may have ``limit`` (the first so
    many questions), and those read from files ``offset`` (how many to leave out before them),
    ``on_bad`` ("error" or "skip"), ``max_image_pixels`` and ``max_image_bytes``.
    """

    @property
    def kind(self) -> str: ...


def open_questions(source: Source, *, need_label: bool = True) -> Questions:
    """The questions of a source, checked row by row; large ones once, see `cache`.

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
    if source.kind == "scenes":
        return _open_scenes(source, limit)
    from masters.data.collector import Reading  # it loads Arrow, which scenes do without

    offset = _get(source, "offset", 0)
    reading = Reading(
        limit=None if limit is None else limit + offset,
        on_bad=_get(source, "on_bad", "error"),
        need_label=need_label,
    )
    found = _open_files(source, reading)
    return found.after(offset) if offset else found


def verify_images(questions: Questions, at_most: int | None = None) -> None:
    """Checks that the images of a data set can be decoded; each file is looked at once.

    Stages call it before hours are spent. Rendered scenes have no files and need no check.

    Args:
        at_most: where there are more images, look at those of so many questions, spread over the
            data; the others are decoded when their turn comes. None: look at all.

    Raises:
        DataError: naming the question and the file of the first image that cannot.
    """
    from masters.data.rows import RowQuestions

    if isinstance(questions, RowQuestions):
        questions.verify(at_most)


def _open_files(source: Source, reading: Reading) -> RowQuestions:
    path = _path(source)
    default = ImageLimits()
    limits = ImageLimits(
        bytes=_get(source, "max_image_bytes", default.bytes),
        pixels=_get(source, "max_image_pixels", default.pixels),
    )
    columns = dict(_get(source, "columns", None) or {})
    match source.kind:
        case "jsonl":
            from masters.data.jsonl import read_jsonl

            return read_jsonl(path, images=_images(source, path, limits), reading=reading)
        case "llava":
            from masters.data.llava import read_llava

            return read_llava(path, images=_images(source, path, limits), reading=reading)
        case "datasets":
            from masters.data.hub import read_folder

            split = _get(source, "split", None)
            return read_folder(path, split=split, columns=columns, limits=limits, reading=reading)
        case "webdataset":
            from masters.data.tar import TarImages, tar_files
            from masters.data.webdataset import read_webdataset

            images = TarImages(tar_files(path), limits)
            return read_webdataset(path, images=images, columns=columns, reading=reading)
        case other:
            raise DataError(
                f"data: kind is {other!r}; expected one of {', '.join(KINDS)}. Correct `kind`."
            )


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


def _images(source: Source, path: Path, limits: ImageLimits) -> Images:
    named, urls = _get(source, "images", None), _get(source, "allow_urls", False)
    if named is None:
        return Images(path.parent, limits, urls=urls)
    folder = Path(named).expanduser()
    if folder.suffix == ".tar":
        from masters.data.tar import NamedTarImages, tar_files

        return NamedTarImages(tar_files(folder), limits)
    return Images(folder, limits, urls=urls)


def _get(source: Source, name: str, default: Any) -> Any:
    value = getattr(source, name, default)
    return default if value is None else value
