"""The Parquet tables of responses, rewards, scores and answers, in whole shards."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from masters.errors import DataError
from masters.shares import neighbour


def _field(name: str, kind: pa.DataType, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable)


KEY = (
    _field("question_id", pa.string()),
    _field("source", pa.string()),  # "teacher" or "student"
    _field("ratio", pa.int16()),  # masking ratio per 10,000; 0 for the student
    _field("round", pa.int8()),
    _field("sample", pa.int16()),
)
KEY_COLUMNS = tuple(field.name for field in KEY)

RESPONSES = pa.schema(
    [
        *KEY,
        _field("model", pa.string()),
        _field("text", pa.string()),
        _field("token_ids", pa.list_(pa.int32())),
        _field("logprobs", pa.list_(pa.float32()), nullable=True),
        _field("finish", pa.string()),  # "stop" or "length"
        _field("seed", pa.int64()),
    ]
)
REWARDS = pa.schema(
    [
        *KEY,
        _field("reward", pa.float32(), nullable=True),  # null: the verdict is missing
        _field("reason", pa.string()),
        _field("judge", pa.string()),
    ]
)
SCORES = pa.schema([*KEY, _field("reference_logprobs", pa.list_(pa.float32()))])
SIGNALS = pa.schema(
    [
        _field("question_id", pa.string()),
        _field("ratio", pa.int16()),  # masking ratio of the teacher that read the sequence
        _field("key", pa.int64()),  # of question, ratio and token ids
        _field("shard", pa.int32()),  # which file holds its tokens, and which rows of it
        _field("start", pa.int64()),
        _field("stop", pa.int64()),
    ]
)
ANSWERS = pa.schema(
    [
        _field("question_id", pa.string()),
        _field("ratio", pa.int16()),
        _field("text", pa.string()),
        _field("correct", pa.bool_()),  # the full score
        _field("score", pa.float64(), nullable=True),  # 0 to 1; null: the verdict is missing
        _field("kind", pa.string()),
        _field("label", pa.string()),
        _field("fields", pa.string()),  # the question's further fields, as a JSON object of texts
        _field("finish", pa.string()),
    ]
)

_SHARD = re.compile(r"shard-(\d{5,})\.parquet")


def shard_name(index: int) -> str:
    """The file name of a folder's shard ``index``, counted from 0."""
    return f"shard-{index:05d}.parquet"


def list_shards(folder: Path) -> list[Path]:
    """The whole shards of a folder in order; empty when there is none or no folder."""
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _SHARD.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=lambda pair: int(pair[0][1]))]


def write_shard(
    path: Path, rows: Sequence[Mapping[str, object]] | pa.Table, schema: pa.Schema
) -> None:
    """Writes a whole shard, or nothing: a temporary file beside it is flushed, then renamed.

    One that is there stays: another worker made it, of the same plan, and it may be read by now.

    Args:
        path: the shard; its folder is made when missing.
        rows: one mapping per row with exactly the schema's columns, or a table of that schema.
        schema: one of this module's schemas.

    Raises:
        ValueError: the rows do not fit the schema (a mistake in the calling code).
        DataError: the file cannot be written, for instance because the disk is full.
    """
    table = _as_table(path, rows, schema)
    partial = neighbour(path, "partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            pq.write_table(table, file, compression="zstd", write_page_checksum=True)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            partial.unlink(missing_ok=True)
        else:
            os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(
            f"{path}: could not be written ({error.strerror or error}); expected room for about "
            f"{table.nbytes:,} bytes and permission to write. Shards written before are kept: "
            "free space or correct the permissions and run again."
        ) from error


def read_shard(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """One shard as a table of ``schema`` (or of some of its columns).

    Raises:
        DataError: the file is missing, cut short, corrupt, or holds another table.
    """
    with _opened(path) as file:
        found = file.schema_arrow
        if not found.equals(schema):
            raise DataError(
                f"{path}: has columns {_describe(found)}; expected {_describe(schema)}. "
                f"It belongs to another table or version: {_remedy(path)}"
            )
        return file.read(columns=None if columns is None else list(columns))


def count_rows(path: Path) -> int:
    """How many rows a shard has, by its footer.

    Raises:
        DataError: the file is missing, cut short or corrupt.
    """
    with _opened(path) as file:
        return file.metadata.num_rows


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """The file, for reading; what is wrong with it becomes a DataError."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; expected a shard. {_rerun(path)}") from error
    except (pa.ArrowException, OSError) as error:
        size = path.stat().st_size if path.exists() else 0
        raise DataError(
            f"{path}: not a readable Parquet file of {size:,} bytes ({_first_line(error)}); "
            f"expected a whole shard, so it was cut short or damaged. {_remedy(path)}"
        ) from error


def read_shards(folder: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """All shards of a folder, in order, as one table.

    Raises:
        DataError: there is no shard, one is missing in between, or one cannot be read.
    """
    shards = list_shards(folder)
    if not shards:
        raise DataError(
            f"{folder}: holds no shard; expected {shard_name(0)} and so on. Run the stage that "
            "writes this folder first."
        )
    for index, path in enumerate(shards):
        if path.name != shard_name(index):
            missing = folder / shard_name(index)
            raise DataError(
                f"{missing}: missing although later shards exist; expected shards 0 to "
                f"{len(shards)} without a gap. {_rerun(missing)}"
            )
    return pa.concat_tables([read_shard(path, schema, columns) for path in shards])


def _as_table(
    path: Path, rows: Sequence[Mapping[str, object]] | pa.Table, schema: pa.Schema
) -> pa.Table:
    names = set(schema.names)
    if isinstance(rows, Sequence):
        for row in rows:
            if row.keys() != names:
                raise ValueError(f"{path}: a row has {sorted(row)}; expected {schema.names}")
        table = pa.Table.from_pylist(list(rows), schema=schema)
    else:
        if set(rows.schema.names) != names:
            raise ValueError(f"{path}: table has {rows.schema.names}; expected {schema.names}")
        table = rows.select(schema.names).cast(schema)
    for field in schema:
        if not field.nullable and table.column(field.name).null_count:
            raise ValueError(f"{path}: column {field.name!r} has empty values; expected none")
    return table


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remedy(path: Path) -> str:
    return f"Delete it and run again: only what is missing is made anew.{_also_record(path)}"


def _rerun(path: Path) -> str:
    return f"Run the stage that writes it again.{_also_record(path)}"


def _also_record(path: Path) -> str:
    record = path.parent.parent / "record.json"
    if not record.exists():
        return ""
    return f" Delete {record} too, which says that the stage is done."


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
