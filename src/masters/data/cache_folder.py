"""The folder for what can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$MASTERS_CACHE``, else ``masters`` in ``$XDG_CACHE_HOME``, else ``~/.cache/masters``."""
    if own := os.environ.get("MASTERS_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path("~/.cache").expanduser()) / "masters"
