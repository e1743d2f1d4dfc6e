"""One run of the whole method that every test of finished output reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.running import SMALL, succeeds


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of `masters` on the tiny profile; for reading only."""
    out = tmp_path_factory.mktemp("whole")
    succeeds("run", "masters", "--profile", "tiny", "--out", str(out), sets=SMALL)
    return out
