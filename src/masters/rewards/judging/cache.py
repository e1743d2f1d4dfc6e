"""Verdicts kept in one SQLite file."""

from __future__ import annotations

from pathlib import Path


class VerdictCache:
    """Verdicts kept in one SQLite file, so that judging again costs no call."""

    def __init__(self, path: Path) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> VerdictCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
