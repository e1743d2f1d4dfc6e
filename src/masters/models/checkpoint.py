"""Safetensors files read tensor by tensor, without torch, the rest of the file untouched."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masters.errors import ModelError

HEADER_LIMIT = 100_000_000
#: Of one read. A multiple of every dtype's size; small enough to stay in a core's cache.
CHUNK_BYTES = 1 << 19
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "F8_E4M3": 1, "F8_E5M2": 1}
BYTES |= {"I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Where one tensor lies: file, byte range, dtype as safetensors spells it, shape."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    def span(self, matrix: int | None, rows: range | None = None) -> tuple[int, int]:
        """Byte range [start, stop) of the whole tensor, or of one matrix along its first axis.

        Args:
            rows: only these along the first axis (of the matrix, where one is named).
        """
        start, stop, shape = self.start, self.stop, self.shape
        for part in (None if matrix is None else range(matrix, matrix + 1), rows):
            if part is not None:
                stride = (stop - start) // shape[0]
                start, stop = start + part.start * stride, start + part.stop * stride
                shape = shape[1:]
        return start, stop


def checkpoint_tensors(folder: Path) -> dict[str, TensorEntry]:
    """Every tensor of a (possibly sharded) safetensors checkpoint, by name.

    Raises:
        ModelError: no safetensors files, a header that does not parse, or a file cut short.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"{folder}: no .safetensors files; expected a transformers checkpoint saved as "
            "safetensors (convert it with model.save_pretrained)"
        )
    entries: dict[str, TensorEntry] = {}
    for file in files:
        for entry in _file_tensors(file):
            entries[entry.name] = entry
    return entries


def _file_tensors(file: Path) -> list[TensorEntry]:
    size = file.stat().st_size
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if not 0 < length <= min(HEADER_LIMIT, size - 8):
            raise ModelError(f"{file}: not a safetensors file (header of {length} bytes)")
        try:
            header = json.loads(handle.read(length))
        except ValueError as error:
            raise ModelError(f"{file}: its safetensors header does not parse: {error}") from error
    base = 8 + length
    entries = []
    for name, item in header.items():
        if name == "__metadata__":
            continue
        start, stop = item["data_offsets"]
        entries.append(
            TensorEntry(
                name=name,
                file=file,
                dtype=item["dtype"],
                shape=tuple(item["shape"]),
                start=base + start,
                stop=base + stop,
            )
        )
    end = max((entry.stop for entry in entries), default=base)
    if end != size:
        raise ModelError(
            f"{file}: {size} bytes, its header says {end}; the file is cut. Copy it again"
        )
    return entries


def read_bytes(
    entry: TensorEntry, *, matrix: int | None = None, rows: range | None = None
) -> np.ndarray:
    """The tensor's raw bytes, uint8, read by pread into one fresh buffer.

    Args:
        matrix: only this one of a stack of matrices (an expert's), counted along the first axis.
        rows: only these of the tensor's rows, or of the matrix's; nothing else is read.
    """
    start, stop = entry.span(matrix, rows)
    buffer = np.empty(stop - start, dtype=np.uint8)
    with _opened(entry) as handle:
        _read_into(memoryview(buffer.data), handle, start, entry)
    return buffer


def read_chunks(entry: TensorEntry, *, matrix: int | None = None) -> Iterator[np.ndarray]:
    """The same bytes in pieces of at most ``CHUNK_BYTES``; a piece is overwritten by the next one.

    One buffer, and never a mapped page: the memory it takes does not depend on the tensor.
    """
    start, stop = entry.span(matrix)
    buffer = np.empty(min(CHUNK_BYTES, stop - start), dtype=np.uint8)
    with _opened(entry) as handle:
        for at in range(start, stop, CHUNK_BYTES):
            piece = buffer[: min(CHUNK_BYTES, stop - at)]
            _read_into(memoryview(piece.data), handle, at, entry)
            yield piece


@contextmanager
def _opened(entry: TensorEntry) -> Iterator[int]:
    handle = os.open(entry.file, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def _read_into(view: memoryview, handle: int, start: int, entry: TensorEntry) -> None:
    done = 0
    while done < len(view):
        got = os.preadv(handle, [view[done:]], start + done)
        if got <= 0:
            raise ModelError(f"{entry.file}: ends inside tensor {entry.name}; copy it again")
        done += got
