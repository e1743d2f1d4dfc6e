"""Questions from `datasets` folders: saved by ``save_to_disk``, or holding Parquet files."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masters.data.bad_rows import BadRowError
from masters.data.images import Images, broken_image
from masters.data.rows import Collector, OnBad, RowQuestions, build_question
from masters.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

_ROLES = ("image", "question", "answer", "id", "choices", "kind")
_REQUIRED = ("image", "question", "answer")


class TableImages(Images):
    """Images in a column of a table: encoded bytes, or paths relative to the table's folder.

    Args:
        table: a `datasets.Dataset` whose image column is not decoded.
        column: the image column.
        root: the folder that relative paths start from.
    """

    def __init__(self, table: Any, column: str, root: Path) -> None:
        super().__init__(root)
        self._table, self._column = table.select_columns([column]), column

    def find(self, name: str) -> str:
        """The reference of one of ``names``: ``row:<name>`` or a file's path.

        Raises:
            BadRowError: the row holds neither bytes nor a path of a file that exists.
        """
        row, _, place = name.partition(":")
        data, path = _bytes_and_path(self._cell(row, place))
        if data:
            reference = f"row:{name}"
            self._sizes[reference], self._names[reference] = len(data), reference
            return reference
        if path:
            return super().find(path)
        raise BadRowError(
            "no image",
            got=f"nothing in column {self._column!r}",
            expected="encoded bytes or a path",
            remedy="Remove the row",
        )

    def names(self, row: int) -> list[str]:
        """The names of a row's images: its number, or ``<row>:<place>`` in a column of lists."""
        cell = self._table[row][self._column]
        return [f"{row}:{place}" for place in range(len(cell))] if _several(cell) else [str(row)]

    def _cell(self, row: str, place: str) -> object:
        cell = self._table[int(row)][self._column]
        return cell[int(place)] if place else cell

    def verify(self, reference: str) -> None:
        """Checks that the image can be decoded, once per row.

        Raises:
            BadRowError: it cannot.
        """
        if not reference.startswith("row:"):
            super().verify(reference)
        elif reference not in self._verified:
            self.open(reference)
            self._verified.add(reference)

    def open(self, reference: str) -> Image:
        """The image as RGB.

        Raises:
            BadRowError: it cannot be decoded.
        """
        from PIL import Image as PillowImage

        if not reference.startswith("row:"):
            return super().open(reference)
        _, row, place = (*reference.split(":"), "")[:3]
        data, _ = _bytes_and_path(self._cell(row, place))
        try:
            with PillowImage.open(io.BytesIO(data or b"")) as image:
                return image.convert("RGB")
        except Exception as error:
            raise broken_image(reference, error) from error


def read_folder(
    path: Path,
    *,
    split: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    limit: int | None = None,
    on_bad: OnBad = "error",
    need_label: bool = True,
) -> RowQuestions:
    """The questions of a folder that `datasets` can load, with an image column.

    Args:
        path: a folder written by ``save_to_disk``, or one with Parquet files.
        split: which split, where the folder has several.
        columns: the names of the columns that hold ``image``, ``question``, ``answer``, ``id``,
            ``choices`` and ``kind``; one not mentioned is called like its role, one that is None
            is not read. Without an id column rows are called ``row-<n>``. A whole-number
            answer beside choices is an index into them.
        limit: take the first so many usable questions.
        on_bad: stop at a bad row, or count and skip it.
        need_label: whether a row without answer is bad; if not, the answer column may be absent.

    Raises:
        DataError: the folder or a column is not there, a row is bad, or none is usable.
    """
    table = _load(path, split)
    names = _columns(path, table.column_names, columns or {}, need_label)
    image = names.pop("image")
    table = _undecoded(path, table, image)
    images = TableImages(table, image, path)
    collector = Collector(
        where=path, images=images, limit=limit, on_bad=on_bad, need_label=need_label
    )
    # Only the columns of words are read here: images are looked up one by one.
    for number, row in enumerate(table.select_columns(list(names.values()))):
        if collector.full:
            break
        fields = {role: row[name] for role, name in names.items()} | {"image": images.names(number)}
        identity = fields.pop("id") if "id" in names else f"row-{number}"
        build = partial(
            build_question, fields, identity=identity, images=images, answer_may_index=True
        )
        collector.add(f"{path}: row {number}", identity, build)
    return collector.finish()


def _load(path: Path, split: str | None) -> Any:
    if not path.is_dir():
        raise DataError(
            f"{path}: no such folder; expected one written by `datasets` (`save_to_disk`) or one "
            "with Parquet files. Correct the path in the recipe."
        )
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{path}: reading it needs the package `datasets`, which is not installed ({error}); "
            "expected it for `kind: datasets`. Install it with `pip install datasets`."
        ) from error
    saved = (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()
    try:
        if saved:
            loaded = datasets.load_from_disk(str(path))
        else:
            files = _parquet_files(path, split)
            loaded = datasets.load_dataset("parquet", data_files=files, split="train")
    except DataError:
        raise
    except Exception as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path}: `datasets` cannot load it ({said}); expected a whole folder of "
            "`save_to_disk` or of Parquet files. Write the folder again."
        ) from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        raise _no_split(path, split, sorted(map(str, loaded)))
    return loaded[split]


def _parquet_files(path: Path, split: str | None) -> list[str]:
    """The Parquet files of a split: ``<split>/*.parquet`` or ``<split>-*-of-*.parquet``.

    Where no file's name or folder says which split it is, all belong to any.

    Raises:
        DataError: there is none.
    """
    files = sorted(path.rglob("*.parquet"))
    if not files:
        raise DataError(
            f"{path}: holds neither a saved data set nor Parquet files; expected one of them. "
            "Correct the path, or use `kind: jsonl` or `kind: llava` for other files."
        )
    splits = {file: _split_of(path, file) for file in files}
    chosen = [str(file) for file in files if split is None or splits[file] == split]
    present = sorted(set(splits.values()))
    if present == [""]:
        return [str(file) for file in files]
    if not chosen or (split is None and len(present) > 1):
        raise _no_split(path, split, present)
    return chosen


def _split_of(root: Path, file: Path) -> str:
    folder = file.parent.relative_to(root).name
    if folder not in ("", "data"):
        return folder
    numbered = re.fullmatch(r"(.+?)-\d+(?:-of-\d+.*)?", file.stem)
    name = numbered[1] if numbered else file.stem
    return name if numbered or name in ("train", "validation", "test") else ""


def _no_split(path: Path, split: str | None, present: list[str]) -> DataError:
    return DataError(
        f"{path}: split is {split!r}; expected one of {', '.join(present)}. Set `split`."
    )


def _columns(
    path: Path, present: list[str], named: Mapping[str, str | None], need_label: bool
) -> dict[str, str]:
    """Role -> column, for the roles that have one.

    Raises:
        DataError: an unknown role, or a column that is named or required and not there.
    """
    unknown = sorted(set(named) - set(_ROLES))
    if unknown:
        raise DataError(
            f"{path}: columns names {', '.join(unknown)}; expected only {', '.join(_ROLES)}. "
            "Correct `columns`."
        )
    found: dict[str, str] = {}
    for role in _ROLES:
        column = named.get(role, role)
        if column is None and role not in _REQUIRED:
            continue
        if column is not None and column in present:
            found[role] = column
        elif role in named or (role in _REQUIRED and (role != "answer" or need_label)):
            raise DataError(
                f"{path}: no column {column!r} for the {role}; expected one of "
                f"{', '.join(present)}. Set `columns: {{{role}: <name>}}`."
            )
    return found


def _undecoded(path: Path, table: Any, column: str) -> Any:
    import datasets

    feature = table.features[column]
    several = getattr(feature, "feature", None)  # of a column of lists
    if isinstance(several, datasets.Image):
        return table.cast_column(column, type(feature)(datasets.Image(decode=False)))
    if isinstance(feature, datasets.Image):
        return table.cast_column(column, datasets.Image(decode=False))
    if several is not None:
        feature = several
    kind = getattr(feature, "dtype", None)
    if kind in ("string", "large_string", "binary", "large_binary"):
        return table
    if isinstance(feature, dict) and "bytes" in feature:
        return table
    raise DataError(
        f"{path}: column {column!r} is {feature}; expected images (encoded bytes or paths). "
        "Set `columns: {image: <name>}`, or cast the column to `datasets.Image()`."
    )


def _several(cell: object) -> bool:
    return isinstance(cell, list)


def _bytes_and_path(cell: object) -> tuple[bytes | None, str | None]:
    if isinstance(cell, bytes):
        return cell, None
    if isinstance(cell, str):
        return None, cell
    if isinstance(cell, Mapping):
        return cell.get("bytes"), cell.get("path")
    return None, None
