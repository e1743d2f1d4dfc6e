"""Images of a data set: found when it is opened, read and decoded when they are needed."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from masters.data.bad_rows import BadRowError
from masters.data.decode import ImageLimits, broken_image, check_image, check_size, decode_image
from masters.data.urls import fetch, local_copy

if TYPE_CHECKING:
    from PIL.Image import Image

ABSENT = -1
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# Names remembered at a time, so that questions that share an image ask the disk once.
_REMEMBERED = 100_000


class Images:
    """Image files below a folder, and what every other kind of store has in common with them.

    Three words: a row gives an image a *name*; the store *finds* it under a name that says where it
    is (``stored``), which is kept and fingerprinted; a *reference* is what ``Question.images`` has.

    Args:
        root: what relative paths in the rows are relative to. Nothing outside of it is opened.
        limits: the largest image that is opened.
        urls: whether names may be URLs (http and https), which are fetched when they are found.
    """

    def __init__(
        self, root: Path, limits: ImageLimits | None = None, *, urls: bool = False
    ) -> None:
        self._root, self._urls = root, urls
        self._limits = limits or ImageLimits()
        self._real = os.path.realpath(root)
        self._folders: dict[str, bool] = {}
        self._sizes: dict[str, int] = {}
        self._news: list[tuple[str, int]] = []
        self._verified: set[str] = set()

    def settings(self) -> dict[str, object]:
        """What decides where images are found and which are refused."""
        return {"root": self._real, "limits": vars(self._limits), "urls": self._urls}

    def files(self) -> list[Path]:
        """The files that hold several images each."""
        return []

    def find(self, name: str) -> tuple[str, int]:
        """The stored name of an image and its size in bytes.

        Raises:
            BadRowError: there is no such file, or it may not be opened.
        """
        size = self._sizes.get(name)
        if size is None:
            if self._is_url(name):
                fetch(name, self._limits)
            size = self.size_of(name)
            if len(self._sizes) >= _REMEMBERED:
                self._sizes.clear()
            self._sizes[name] = size
            self._news.append((name, size))
        if size == ABSENT:
            raise self._refused(name)
        check_size(size, name, self._limits)
        return name, size

    def news(self) -> list[tuple[str, int]]:
        """Names asked for since the last call with their sizes (``ABSENT`` for none)."""
        news, self._news = self._news, []
        return news

    def size_of(self, name: str) -> int:
        """The size of a file on disk now; ``ABSENT`` when there is none that may be opened."""
        is_url = self._is_url(name)
        if not is_url and not self._inside(name):
            return ABSENT
        try:
            found = os.stat(local_copy(name) if is_url else f"{self._root}/{name}")
        except (OSError, ValueError):  # ValueError: a name with a zero byte
            return ABSENT
        return found.st_size if stat.S_ISREG(found.st_mode) else ABSENT

    def unchanged(self, files: Iterable[tuple[str, int]]) -> bool:
        """Whether all files have the sizes they had."""
        return all(self.size_of(name) == size for name, size in files)

    def reference(self, stored: str) -> str:
        """What ``Question.images`` says for a stored name."""
        return str(local_copy(stored) if self._is_url(stored) else self._root / stored)

    def read(self, reference: str) -> bytes:
        """The encoded image.

        Raises:
            BadRowError: it cannot be read.
        """
        try:
            with open(reference, "rb") as file:
                # One byte more than is allowed tells a file that has grown too large.
                return file.read(self._limits.bytes + 1)
        except OSError as error:
            raise broken_image(reference, error) from error

    def verify(self, reference: str) -> None:
        """Checks that the image can be decoded; while it is remembered, once.

        Raises:
            BadRowError: it cannot, or is over a limit.
        """
        if reference not in self._verified:
            check_image(self.read(reference), reference, self._limits)
            if len(self._verified) >= _REMEMBERED:
                self._verified.clear()
            self._verified.add(reference)

    def open(self, reference: str) -> Image:
        """The image as RGB; see ``decode_image``.

        Raises:
            BadRowError: it cannot be decoded, or is over a limit.
        """
        return decode_image(self.read(reference), reference, self._limits)

    def _is_url(self, name: str) -> bool:
        """Whether this is a URL that may be fetched."""
        return self._urls and name[:8].lower().startswith(("http://", "https://"))

    def _inside(self, name: str) -> bool:
        """Whether a path stays below the root, links followed."""
        if os.path.isabs(name):
            return False
        folder, _, last = name.rpartition("/")
        inside = self._folders.get(folder)
        if inside is None:
            if len(self._folders) >= _REMEMBERED:
                self._folders.clear()
            inside = self._folders[folder] = self._below(folder)
        if inside and (last == ".." or os.path.islink(f"{self._root}/{name}")):
            return self._below(name)
        return inside

    def _below(self, name: str) -> bool:
        try:
            real = os.path.realpath(f"{self._root}/{name}")
        except ValueError:  # a name with a zero byte
            return False
        return os.path.commonpath([real, self._real]) == self._real

    def _refused(self, name: str) -> BadRowError:
        if _URL.match(name):
            return BadRowError(
                "image on the web",
                got=f"image {name!r}",
                expected="a file: nothing is fetched unless the source says so",
                remedy="Fetch it first and name the file, or set `allow_urls: true` (for http)",
            )
        if not self._inside(name):
            return BadRowError(
                "image outside of its folder",
                got=f"image {name!r}, which leads outside of {self._root}",
                expected="a path below it, links followed",
                remedy="Move the file there, or set `images` to a folder that holds all of them",
            )
        return BadRowError(
            "missing image",
            got=f"image {name!r}, but there is no file {self._root / name}",
            expected=f"a path relative to {self._root}",
            remedy="Correct the path or put the file there",
        )
