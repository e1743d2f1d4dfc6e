"""Parquet files as one table: read row group by row group, without `datasets`."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from masters.data.table_images import Part, has_bytes, names_of
from masters.errors import DataError

_BATCH = 4096
_KEPT_BYTES = 1 << 28


class ParquetTable:
    """Rows of several files, one file behind the other.

    A cell is found by reading its row group, the newest of which stay in memory. Files with images
    should have small groups, as those of `datasets` have (100 rows).

    Args:
        files: of the same columns.

    Raises:
        DataError: one cannot be read, or has other columns.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self._metadata: list[pq.FileMetaData] = []
        groups: list[tuple[int, int, int]] = []  # file, its row group, rows
        for number, path in enumerate(files):
            metadata, schema = _read_header(path)
            if number == 0:
                self.schema = schema
            elif not schema.equals(self.schema):
                raise DataError(
                    f"{path}: has columns {_words(schema)}; expected those of {files[0]}: "
                    f"{_words(self.schema)}. Write the files again, or move it away."
                )
            self._metadata.append(metadata)
            rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            groups += [(number, group, count) for group, count in enumerate(rows)]
        self._groups = groups
        self._starts = np.cumsum([0, *(count for _, _, count in groups)])
        self._kept: OrderedDict[tuple[int, str], pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()

    def parts(self, texts: Sequence[str], image: str) -> Iterator[Part]:
        """All rows, in order.

        The sizes of images count by row group: each has the size of its group's column, since
        single ones are known only by reading all.
        """
        for number, (file, group, _) in enumerate(self._groups):
            first = int(self._starts[number])
            whole = self._whole_images(file, group, image)
            size = self._bytes(file, group, image)
            columns = list(texts) if whole else list(dict.fromkeys([*texts, image]))
            with self._open(file) as opened:
                batches = opened.iter_batches(_BATCH, row_groups=[group], columns=columns)
                for batch in batches:
                    table = pa.Table.from_batches([batch])
                    if whole:
                        names: list[list[str | None]] = [
                            [f"row:{first + row}"] for row in range(len(table))
                        ]
                        sizes = {name: size for (name,) in names if name is not None}
                    else:
                        names, sizes = names_of(table.column(image), first, size)
                    yield Part(texts=table.select(list(texts)), names=names, sizes=sizes)
                    first += len(table)

    def cell(self, row: int, column: str) -> object:
        """One cell, as Python values."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        with self._lock:
            values = self._kept.get((number, column))
            if values is None:
                file, group, _ = self._groups[number]
                with self._open(file) as opened:
                    values = opened.read_row_group(group, columns=[column]).column(column)
                self._kept[number, column] = values
                while len(self._kept) > 1 and self._kept_bytes() > _KEPT_BYTES:
                    self._kept.popitem(last=False)
            self._kept.move_to_end((number, column))
        return values[row - int(self._starts[number])].as_py()

    def _kept_bytes(self) -> int:
        return sum(values.nbytes for values in self._kept.values())

    def _open(self, file: int) -> pq.ParquetFile:
        return pq.ParquetFile(self.files[file], metadata=self._metadata[file], memory_map=True)

    def _whole_images(self, file: int, group: int, image: str) -> bool:
        """Whether each row of a group has one image's bytes, as the group's statistics tell."""
        kind = self.schema.field(image).type
        if not has_bytes(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return False
        leaf = f"{image}.bytes" if pa.types.is_struct(kind) else image
        for column in self._columns(file, group, image):
            if column.path_in_schema == leaf:
                known = column.statistics
                return known is not None and known.has_null_count and known.null_count == 0
        return False

    def _bytes(self, file: int, group: int, image: str) -> int:
        return sum(c.total_uncompressed_size for c in self._columns(file, group, image))

    def _columns(self, file: int, group: int, image: str) -> list[pq.ColumnChunkMetaData]:
        """The leaves of a column in a row group."""
        found = self._metadata[file].row_group(group)
        columns = [found.column(number) for number in range(found.num_columns)]
        return [c for c in columns if c.path_in_schema.split(".")[0] == image.split(".")[0]]


def _read_header(path: Path) -> tuple[pq.FileMetaData, pa.Schema]:
    try:
        with pq.ParquetFile(path) as file:
            return file.metadata, file.schema_arrow.remove_metadata()
    except (pa.ArrowException, OSError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path}: cannot be read ({said}); expected a whole Parquet file. Fetch or write it "
            "again."
        ) from error


def _words(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)
