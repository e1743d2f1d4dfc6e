"""Where indices of large data sets are kept: they are checked once, not by every stage."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from masters.data.cache_folder import cache_folder
from masters.data.images import Images
from masters.data.index import VERSION, DamagedIndexError, Index

_LOG = logging.getLogger(__name__)
_ABANDONED_S = 3600.0

Stamp = tuple[str, int, int, int]


def stamps(files: Sequence[Path]) -> list[Stamp]:
    """(path, bytes, modified, changed) of the files a data set is read from, times in ns.

    Raises:
        OSError: one is not there.
    """
    found = [(file.absolute(), file.stat()) for file in files]
    return [(str(path), s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in found]


class CacheEntry:
    """The place of one data set's index.

    Args:
        settings: everything beside the files' content that decides which rows there are.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        content = json.dumps([VERSION, settings], sort_keys=True, default=str)
        self.name = hashlib.sha256(content.encode()).hexdigest()[:32]
        self.path = cache_folder() / "data" / f"{self.name}.rows"

    def load(self, now: Sequence[Stamp], images: Images) -> Index | None:
        """The index, if there is one that is whole and still says what is on disk.

        Args:
            now: the data files' stamps.
            images: looks up the size of every image file again.
        """
        try:
            index = Index.load(self.path)
        except OSError:
            return None
        except DamagedIndexError as error:
            _LOG.warning("%s: damaged (%s), made anew", self.path, error)
            return None
        if index.about["stamps"] != [list(stamp) for stamp in now]:
            return None
        if not images.unchanged(index.files()):
            return None
        return index

    def begin(self) -> BinaryIO | None:
        """A new file beside the entry; None where nothing can be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._clear()
            handle, path = tempfile.mkstemp(prefix=f".{self.name}.", dir=self.path.parent)
            os.close(handle)
            return open(path, "w+b")
        except OSError as error:
            _LOG.warning(
                "%s: cannot be written (%s), so this data set is checked again each time it is "
                "opened; set MASTERS_CACHE to a folder that can", self.path.parent, error
            )  # fmt: skip
            return None

    def publish(self, file: BinaryIO) -> Index:
        """Puts a finished file in the entry's place, whoever else does the same, and opens it."""
        file.close()
        os.replace(file.name, self.path)
        return Index.load(self.path)

    def _clear(self) -> None:
        """Removes what a killed process left of this entry."""
        for path in self.path.parent.glob(f".{self.name}.*"):
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink(missing_ok=True)
