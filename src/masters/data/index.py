"""The checked rows of a data set in one Arrow file: memory-mapped, found by place or by id.

Layout: Arrow streams one behind the other, then a JSON footer that says where they are, its length
and a magic word. The footer holds a digest of everything before it.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

VERSION = 1
_MAGIC = b"MSTRROWS"
_BATCH = 8192
_BATCH_BYTES = 1 << 26
_ROWS = pa.schema([("id", pa.string()), ("row", pa.binary())])
_FILES = pa.schema([("name", pa.string()), ("size", pa.int64())])
_LOOKUP = pa.schema([("hash", pa.uint64()), ("place", pa.int64())])


class DamagedIndexError(Exception):
    """A file that is no whole index."""


def id_hash(identity: str) -> int:
    """64 bits that stand for an id, the same in every process."""
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "little")


class Index:
    """The rows, read from a buffer that nothing is copied out of until a row is asked for."""

    def __init__(self, buffer: pa.Buffer) -> None:
        """Raises DamagedIndexError for a buffer that ``IndexWriter`` did not finish."""
        self.about = _footer(buffer)
        rows = self._section(buffer, "rows")
        self.ids: pa.ChunkedArray = rows.column("id")
        self._rows: pa.ChunkedArray = rows.column("row")
        lookup = self._section(buffer, "lookup")
        self._hash = _whole(lookup.column("hash"))
        self._place = _whole(lookup.column("place"))
        self._files = self._section(buffer, "files")

    @classmethod
    def load(cls, path: Path) -> Index:
        """Maps the file of an index, after comparing it with its digest.

        Raises:
            DamagedIndexError: it is no whole index.
            OSError: it cannot be read.
        """
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise DamagedIndexError("empty")
            index = cls(pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
            digest, left = hashlib.blake2b(), index.about["length"]
            while left and (block := file.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
        if digest.hexdigest() != index.about["digest"]:
            raise DamagedIndexError("another digest")
        return index

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, place: int) -> list[Any]:
        """The canonical row at a place."""
        return json.loads(self._rows[place].as_py())

    def find(self, identity: str) -> int | None:
        """The place of an id; None for an unknown one."""
        try:
            wanted = np.uint64(id_hash(identity))
        except UnicodeEncodeError:
            return None
        at = int(np.searchsorted(self._hash, wanted))
        while at < len(self._hash) and self._hash[at] == wanted:
            place = int(self._place[at])
            if self.ids[place].as_py() == identity:
                return place
            at += 1
        return None

    def files(self) -> Iterator[tuple[str, int]]:
        """(name, size) of the image files that the rows were checked against."""
        for batch in self._files.to_batches():
            yield from zip(
                batch.column("name").to_pylist(), batch.column("size").to_pylist(), strict=True
            )

    @property
    def n_files(self) -> int:
        """How many image files that are."""
        return self._files.num_rows

    def digest(self, first: int) -> str:
        """Hex digest of the canonical rows from ``first`` on."""
        digest = hashlib.sha256(b"rows")
        for chunk in self._rows.slice(first).chunks:
            digest.update(_values(chunk))
        return digest.hexdigest()

    def _section(self, buffer: pa.Buffer, name: str) -> pa.Table:
        start, length = self.about["sections"][name]
        try:
            return pa.ipc.open_stream(buffer.slice(start, length)).read_all()
        except (pa.ArrowException, OSError) as error:
            raise DamagedIndexError(str(error)) from error


class IndexWriter:
    """Writes rows as they come; only the ids' hashes stay in memory.

    Args:
        sink: an empty file that can be written and read; memory by default.
    """

    def __init__(self, sink: BinaryIO | None = None) -> None:
        self.sink: BinaryIO = io.BytesIO() if sink is None else sink
        self.hashes = array("Q")
        self._rows: list[tuple[str, bytes]] = []
        self._waiting = 0
        self._files: list[tuple[str, int]] = []
        self._file_batches: list[pa.RecordBatch] = []
        self._sections: dict[str, tuple[int, int]] = {}
        self._stream = pa.ipc.new_stream(self.sink, _ROWS)

    def __len__(self) -> int:
        return len(self.hashes)

    def move_to(self, sink: BinaryIO) -> None:
        """Goes on in another file, with what has been written so far."""
        self._flush()
        # Arrow keeps to the file it began with: the written batches are read back and written.
        self._stream.close()
        written = pa.ipc.open_stream(self.content())
        self.sink, self._stream = sink, pa.ipc.new_stream(sink, _ROWS)
        for batch in written:
            self._stream.write_batch(batch)

    def add(self, identity: str, hashed: int, row: bytes) -> None:
        """Takes a row: its id, ``id_hash`` of it and its canonical JSON."""
        self.hashes.append(hashed)
        self._rows.append((identity, row))
        self._waiting += len(row)
        if len(self._rows) >= _BATCH or self._waiting >= _BATCH_BYTES:
            self._flush()

    def add_files(self, files: Sequence[tuple[str, int]]) -> None:
        """Takes image files that rows were checked against."""
        self._files += files
        if len(self._files) >= _BATCH:
            self._flush_files()

    def content(self) -> bytes:
        """What has been written to memory."""
        assert isinstance(self.sink, io.BytesIO)
        return self.sink.getvalue()

    def finish(self, about: Mapping[str, Any]) -> None:
        """Writes what remains and the footer, with ``about`` in it."""
        self._flush()
        self._stream.close()
        self._sections["rows"] = (0, self.sink.tell())
        hashes = np.frombuffer(self.hashes, dtype=np.uint64) if self.hashes else np.empty(0, "u8")
        order = np.argsort(hashes, kind="stable")
        lookup = pa.record_batch([pa.array(hashes[order]), pa.array(order)], schema=_LOOKUP)
        self._write("lookup", _LOOKUP, [lookup])
        self._flush_files()
        self._write("files", _FILES, self._file_batches)
        length = self.sink.tell()
        self.sink.seek(0)
        digest = hashlib.blake2b()
        while block := self.sink.read(1 << 20):
            digest.update(block)
        footer = {
            **about,
            "version": VERSION,
            "sections": self._sections,
            "length": length,
            "digest": digest.hexdigest(),
        }
        content = json.dumps(footer).encode()
        self.sink.write(content + len(content).to_bytes(8, "little") + _MAGIC)
        self.sink.flush()

    def _flush(self) -> None:
        if self._rows:
            ids, rows = zip(*self._rows, strict=True)
            columns = [pa.array(ids, pa.string()), pa.array(rows, pa.binary())]
            self._stream.write_batch(pa.record_batch(columns, schema=_ROWS))
            self._rows, self._waiting = [], 0

    def _flush_files(self) -> None:
        if self._files:
            names, sizes = zip(*self._files, strict=True)
            columns = [pa.array(names, pa.string()), pa.array(sizes, pa.int64())]
            self._file_batches.append(pa.record_batch(columns, schema=_FILES))
            self._files = []

    def _write(self, name: str, schema: pa.Schema, batches: Sequence[pa.RecordBatch]) -> None:
        self.sink.write(b"\0" * (-self.sink.tell() % 64))  # Arrow reads aligned buffers in place
        start = self.sink.tell()
        with pa.ipc.new_stream(self.sink, schema) as stream:
            for batch in batches:
                stream.write_batch(batch)
        self._sections[name] = (start, self.sink.tell() - start)


def _footer(buffer: pa.Buffer) -> dict[str, Any]:
    tail = buffer.slice(max(0, buffer.size - 16)).to_pybytes()
    length = int.from_bytes(tail[:8], "little")
    if len(tail) < 16 or tail[8:] != _MAGIC or length + 16 > buffer.size:
        raise DamagedIndexError("cut short")
    try:
        about = json.loads(buffer.slice(buffer.size - 16 - length, length).to_pybytes())
    except ValueError as error:
        raise DamagedIndexError(str(error)) from error
    if about.get("version") != VERSION:
        raise DamagedIndexError("another version")
    return about


def _whole(column: pa.ChunkedArray) -> np.ndarray:
    """A column of one chunk as an array on the same memory."""
    return column.chunk(0).to_numpy(zero_copy_only=True)


def _values(chunk: pa.Array) -> memoryview:
    """The bytes of a binary array's values, one behind the other, without a copy."""
    _, offsets, values = chunk.buffers()
    places = np.frombuffer(offsets, dtype=np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    return memoryview(values)[int(places[0]) : int(places[-1])]
