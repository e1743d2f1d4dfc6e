"""Tar files read in place: where each member's bytes are, and images taken from there."""

from __future__ import annotations

import glob
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masters.data.bad_rows import BadRowError
from masters.data.decode import ImageLimits, broken_image, check_size
from masters.data.images import Images
from masters.data.index import id_hash
from masters.errors import DataError

_BLOCK = 512
_LONGEST_NAME = 1 << 16
_REGULAR = frozenset((b"0", b"\0", b"7"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A regular file in a tar file: its name and which bytes it is."""

    name: str
    offset: int
    size: int


def members(path: Path) -> Iterator[Member]:
    """The regular files of an uncompressed tar file, in order; no contents are read.

    Links, folders and devices are left out. Much quicker than `tarfile`, which keeps an object for
    each member.

    Raises:
        DataError: it cannot be read, is compressed, cut short or no tar file.
    """
    try:
        with open(path, "rb") as file:
            yield from _members(path, file.fileno(), os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error}); expected a tar file. Correct the path."
        ) from error


def _members(path: Path, file: int, end: int) -> Iterator[Member]:
    at, name, long_size = 0, "", None
    while True:
        header = os.pread(file, _BLOCK, at)
        if not header.strip(b"\0"):
            if header or at == end > 0:
                return  # the end's zeros, or a file that was written without them
            raise _no_tar(path, at, "it is empty")
        size = _number(header[124:136])
        if len(header) < _BLOCK or size is None or _number(header[148:156]) != _checksum(header):
            said = "this is no header"
            if len(header) < _BLOCK:
                said = "it is cut short"
            elif header[:2] == b"\x1f\x8b":
                said = "it is compressed"
            raise _no_tar(path, at, said)
        kind, offset = header[156:157], at + _BLOCK
        if kind in _REGULAR:
            size = size if long_size is None else long_size
        if offset + size > end:
            raise _no_tar(path, at, "it is cut short")
        at = offset + -(-size // _BLOCK) * _BLOCK
        if kind in b"xLgK":
            content = os.pread(file, min(size, _LONGEST_NAME), offset)
            if kind == b"L":
                name = _text(content)
            elif kind == b"x":
                fields = _pax(content)
                name = _text(fields.get(b"path", b"")) or name
                long_size = int(fields[b"size"]) if b"size" in fields else None
            continue
        if kind in _REGULAR:
            yield Member(name=name or _plain_name(header), offset=offset, size=size)
        name, long_size = "", None


def _no_tar(path: Path, at: int, said: str) -> DataError:
    return DataError(
        f"{path}: at byte {at:,}: {said}; expected a whole, uncompressed tar file. Fetch it again, "
        "or unpack the compression (images gain nothing from it)."
    )


def _number(field: bytes) -> int | None:
    """A header's number: octal digits, or binary where its first bit says so."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return None


def _checksum(header: bytes) -> int:
    return sum(header) - sum(header[148:156]) + 8 * 32


def _plain_name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")


def _pax(content: bytes) -> dict[bytes, bytes]:
    """The fields of an extended header: lines of ``<length> <key>=<value>``."""
    found: dict[bytes, bytes] = {}
    while content:
        digits, _, _ = content.partition(b" ")
        if not digits.isdigit() or not 0 < int(digits) <= len(content):
            break
        key, _, value = content[len(digits) + 1 : int(digits) - 1].partition(b"=")
        found[key] = value
        content = content[int(digits) :]
    return found


def tar_files(pattern: Path) -> list[Path]:
    """The tar files of a folder, of a pattern such as ``shards/*.tar``, or the file itself.

    Raises:
        DataError: there is none.
    """
    if pattern.is_dir():
        found = sorted(pattern.glob("*.tar"))
    else:
        found = sorted(Path(path) for path in glob.glob(str(pattern)) if path.endswith(".tar"))
    if not found:
        raise DataError(
            f"{pattern}: no tar file there; expected one, a folder of some, or a pattern such as "
            "shards/*.tar. Correct the path."
        )
    return found


class TarImages(Images):
    """Images inside of tar files, named by their place (``stored``).

    Args:
        shards: the tar files; the first one's folder is the root, which stored names start from.
        limits: the largest image that is opened.
    """

    def __init__(self, shards: Sequence[Path], limits: ImageLimits | None = None) -> None:
        super().__init__(shards[0].parent, limits)
        self._shards = list(shards)
        self._where = {shard: os.path.relpath(shard, self._root) for shard in shards}

    def settings(self) -> dict[str, object]:
        """What decides where images are found and which are refused."""
        return {**super().settings(), "shards": [str(shard.absolute()) for shard in self._shards]}

    def files(self) -> list[Path]:
        """The tar files."""
        return self._shards

    def stored(self, shard: Path, member: Member) -> str:
        """The name a member is stored under: which bytes of which file."""
        return f"{self._where[shard]}@{member.offset}+{member.size}/{member.name}"

    def find(self, name: str) -> tuple[str, int]:
        """A stored name as it is, and the image's size in bytes.

        Raises:
            BadRowError: the image is empty or over the limit.
        """
        _, _, size = _place(name)
        check_size(size, name, self._limits)
        return name, size

    def read(self, reference: str) -> bytes:
        """The encoded image.

        Raises:
            BadRowError: it cannot be read.
        """
        shard, offset, size = _place(reference.removeprefix(f"{self._root}/"))
        try:
            with open(self._root / shard, "rb") as file:
                return os.pread(file.fileno(), min(size, self._limits.bytes + 1), offset)
        except OSError as error:
            raise broken_image(reference, error) from error


class NamedTarImages(TarImages):
    """Images inside of tar files; rows name them as their members are called."""

    def __init__(self, shards: Sequence[Path], limits: ImageLimits | None = None) -> None:
        super().__init__(shards, limits)
        self._table: list[np.ndarray] = []

    def settings(self) -> dict[str, object]:
        """What decides where images are found and which are refused."""
        return {**super().settings(), "named": True}

    def find(self, name: str) -> tuple[str, int]:
        """The stored name of the member called ``name`` and its size in bytes.

        Raises:
            BadRowError: no member, or several, are called so, or it is over the limit.
        """
        if not self._table:
            self._table = self._read_table()
        hashes, shards, offsets, sizes = self._table
        wanted = np.uint64(id_hash(name))
        at, stop = (int(np.searchsorted(hashes, wanted, side)) for side in ("left", "right"))
        if stop - at != 1:
            several = f"which {stop - at} members are called"
            raise BadRowError(
                "image in several places" if stop > at else "missing image",
                got=f"image {name!r}, {several if stop > at else 'but there is no such member'}",
                expected=f"one member of {len(self._shards)} tar files ({self._shards[0]} ...)",
                remedy="Correct the path or the tar files",
            )
        member = Member(name=name, offset=int(offsets[at]), size=int(sizes[at]))
        return super().find(self.stored(self._shards[int(shards[at])], member))

    def _read_table(self) -> list[np.ndarray]:
        """Of all members: the names' hashes, sorted, and for each its shard, offset and size."""
        columns = [array("Q") for _ in range(4)]
        for number, shard in enumerate(self._shards):
            for member in members(shard):
                row = (id_hash(member.name), number, member.offset, member.size)
                for column, value in zip(columns, row, strict=True):
                    column.append(value)
        table = [np.array(column, dtype=np.uint64) for column in columns]
        order = np.argsort(table[0], kind="stable")
        return [column[order] for column in table]


def _place(stored: str) -> tuple[str, int, int]:
    """Shard, offset and size of a stored name."""
    # A member's own name may hold any of these characters: the first ones are the shard's.
    shard, _, rest = stored.partition(".tar@")
    numbers, _, _ = rest.partition("/")
    offset, _, size = numbers.partition("+")
    return f"{shard}.tar", int(offset), int(size)
