"""benchmarks/mask.py runs and writes what it promises, here on a small model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.families import write_tiny

ROOT = Path(__file__).resolve().parents[2]


def test_what_is_measured(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny", "qwen3_vl", size="student", seed=0)
    command = [sys.executable, str(ROOT / "benchmarks" / "mask.py"), "--repeats", "1"]
    command += ["--config", str(tmp_path / "tiny" / "config.json")]
    command += ["--json", str(tmp_path / "out.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    found = json.loads((tmp_path / "out.json").read_text())
    assert {"megabytes_per_second", "peak_rss_gb", "bytes"} <= found.keys()
    assert found["bytes"] > 10_000 and 0 < found["peak_rss_gb"] < 1.5
