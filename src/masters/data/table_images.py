"""Images in a column of a table: encoded bytes, or paths; one in each cell, or a list of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from masters.data.decode import ImageLimits, broken_image, check_size
from masters.data.images import Images

_ROW = "row:"


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some rows of a table, one behind the other.

    Args:
        texts: the columns of words.
        names: for each row what its images are called: ``row:<n>`` (``row:<n>:<k>`` in a list) for
            bytes in the table, a path otherwise, None for nothing.
        sizes: of those in the table, in bytes.
    """

    texts: pa.Table
    names: Sequence[Sequence[str | None]]
    sizes: Mapping[str, int]


class Table(Protocol):
    """A table on disk that is read in parts and by cell."""

    @property
    def schema(self) -> pa.Schema: ...

    @property
    def files(self) -> list[Path]: ...

    def parts(self, texts: Sequence[str], image: str) -> Iterator[Part]:
        """All rows, in order."""
        ...

    def cell(self, row: int, column: str) -> object:
        """One cell, as Python values."""
        ...


class TableImages(Images):
    """Images of a table's column; paths are relative to the table's folder.

    Args:
        table: where the bytes are.
        column: the image column.
        root: the folder that relative paths start from.
        limits: the largest image that is opened.
    """

    def __init__(
        self, table: Table, column: str, root: Path, limits: ImageLimits | None = None
    ) -> None:
        super().__init__(root, limits)
        self._table, self._column = table, column
        self._offered: Mapping[str, int] = {}

    def files(self) -> list[Path]:
        """The table's files."""
        return self._table.files

    def offer(self, part: Part) -> list[list[str | None]]:
        """The image names of a part's rows, which can then be found."""
        self._offered = part.sizes
        return [list(names) for names in part.names]

    def find(self, name: str) -> tuple[str, int]:
        """The stored name of an image and its size in bytes.

        Raises:
            BadRowError: a path of no file, or one that may not be opened.
        """
        size = self._offered.get(name)
        return super().find(name) if size is None else (name, size)

    def reference(self, stored: str) -> str:
        """What ``Question.images`` says for a stored name."""
        return stored if stored.startswith(_ROW) else super().reference(stored)

    def read(self, reference: str) -> bytes:
        """The encoded image.

        Raises:
            BadRowError: it cannot be read.
        """
        if not reference.startswith(_ROW):
            return super().read(reference)
        row, _, place = reference.removeprefix(_ROW).partition(":")
        try:
            cell = self._table.cell(int(row), self._column)
        except (OSError, pa.ArrowException) as error:
            raise broken_image(reference, error) from error
        if isinstance(cell, list):
            cell = cell[int(place)]
        data = cell.get("bytes") if isinstance(cell, Mapping) else cell
        if not isinstance(data, bytes):
            raise broken_image(reference, ValueError("no bytes"))
        check_size(len(data), reference, self._limits)
        return data


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type can be one of images."""
    if _is_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 or kind.get_field_index("path") >= 0
    return _is_text(kind) or _is_binary(kind)


def has_bytes(kind: pa.DataType) -> bool:
    """Whether a column of images can hold encoded bytes, beside or instead of paths."""
    if _is_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return _is_binary(kind)


def names_of(
    column: pa.ChunkedArray, first: int, size: int | None = None
) -> tuple[list[list[str | None]], dict[str, int]]:
    """What the images of a column are called, and the sizes of those that are bytes.

    Only lengths are looked at: the bytes of a mapped file stay on disk.

    Args:
        first: the number of the column's first row.
        size: stands for the size of each, where sizes are not known.
    """
    found: list[list[str | None]] = []
    sizes: dict[str, int] = {}
    row = first
    for chunk in column.chunks:
        listed = _is_list(chunk.type)
        counts = _lengths(chunk, "list_value_length") if listed else None
        cells = _cells(chunk.flatten() if listed else chunk)
        for count in [None] * len(chunk) if counts is None else counts:
            names: list[str | None] = []
            for place in range(1 if counts is None else count or 0):
                length, path = next(cells)
                name = f"{_ROW}{row}" if counts is None else f"{_ROW}{row}:{place}"
                names.append(name if length else path)
                if length:
                    sizes[name] = length if size is None else size
            found.append(names)
            row += 1
    return found, sizes


def _cells(cells: pa.Array) -> Iterator[tuple[int | None, str | None]]:
    """(bytes of the image, path) of each cell."""
    nothing = [None] * len(cells)
    if _is_text(cells.type):
        return iter(zip(nothing, cells.to_pylist(), strict=True))
    if not pa.types.is_struct(cells.type):
        return iter(zip(_lengths(cells, "binary_length"), nothing, strict=True))
    lengths, paths = nothing, nothing
    fields = cells.flatten()  # where the cell is null, so are its fields
    if (at := cells.type.get_field_index("bytes")) >= 0:
        lengths = _lengths(fields[at], "binary_length")
    if (at := cells.type.get_field_index("path")) >= 0:
        paths = fields[at].to_pylist()
    return iter(zip(lengths, paths, strict=True))


def _lengths(values: pa.Array, function: str) -> list[int | None]:
    return pc.call_function(function, [values]).to_pylist()


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
