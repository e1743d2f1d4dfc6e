"""Records, locks and whole-or-nothing writes of a stage folder."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from masters import artifacts
from masters.errors import StageError


def record(folder: Path) -> None:
    artifacts.write_record(
        folder,
        kind="mask",
        spec={"ratios": [1000]},
        fingerprint="abc",
        inputs={"teacher": "def"},
        runtime={"threads": 1},
        start=10.0,
        end=12.5,
        metrics={"layers": 3},
    )


def test_record_makes_a_stage_done(tmp_path: Path) -> None:
    assert not artifacts.is_done(tmp_path)
    record(tmp_path)
    assert artifacts.is_done(tmp_path)
    found = artifacts.read_record(tmp_path)
    assert found["seconds"] == 2.5
    assert found["inputs"] == {"teacher": "def"}
    assert found["versions"]["python"]
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize("content", ["", '{"fingerprint": "ab', "[]", "{}"])
def test_torn_record_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(StageError, match=r"is damaged.*Delete"):
        artifacts.read_record(tmp_path)


def test_missing_record(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="not done"):
        artifacts.read_record(tmp_path)


def test_fingerprint_ignores_order_only() -> None:
    assert artifacts.fingerprint({"a": 1, "b": [1, 2]}) == artifacts.fingerprint(
        {"b": [1, 2], "a": 1}
    )
    assert artifacts.fingerprint({"a": [1, 2]}) != artifacts.fingerprint({"a": [2, 1]})
    assert artifacts.canonical_json({"b": 1, "a": "ä"}) == '{"a":"ä","b":1}'


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    artifacts.atomic_write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        artifacts.atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_lock_names_its_owner_and_dies_with_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from masters.artifacts import lock\n"
        "with lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    with (
        pytest.raises(StageError, match=f"process {owner.pid} on "),
        artifacts.lock(tmp_path),
    ):
        pass
    owner.kill()
    owner.wait()
    with artifacts.lock(tmp_path):
        pass


def test_disk_full_is_recognised_through_causes(tmp_path: Path) -> None:
    inner = OSError(errno.ENOSPC, "No space left on device")
    outer = RuntimeError("save failed")
    outer.__cause__ = inner
    assert artifacts.is_disk_full(inner)
    assert artifacts.is_disk_full(outer)
    assert not artifacts.is_disk_full(OSError(errno.EACCES, "denied"))
    assert str(tmp_path) in str(artifacts.disk_full_error(tmp_path))


def test_record_survives_json_round_trip(tmp_path: Path) -> None:
    record(tmp_path)
    assert json.loads((tmp_path / "record.json").read_text()) == artifacts.read_record(tmp_path)
