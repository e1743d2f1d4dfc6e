"""The tests for a GPU are whole where there is none, and where there is no pydantic."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import environment

ROOT = Path(__file__).parents[2]


def run(code: str, **variables: str) -> str:
    kept = {k: v for k, v in environment().items() if not k.startswith("MASTERS_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, **variables}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_they_need_no_pydantic() -> None:
    code = (
        "import sys; sys.modules['pydantic'] = sys.modules['pyarrow'] = None\n"
        "import pytest\n"
        "sys.exit(pytest.main(['-m', 'gpu', '--collect-only', '-p', 'no:cacheprovider', "
        "'tests/gpu']))"
    )
    found = run(code)
    assert "test_step_on_gpu.py" in found and "test_real_shapes.py" in found


def test_without_a_device_each_says_why_it_is_skipped() -> None:
    code = (
        "import pytest, sys\n"
        "sys.exit(pytest.main(['-m', 'gpu', '-rs', '-p', 'no:cacheprovider', "
        "'tests/gpu/test_step_on_gpu.py']))"
    )
    if os.path.exists("/dev/nvidia0"):
        pytest.skip("there is a CUDA device here")
    found = run(code)
    assert "sees no CUDA device" in found and "passed" not in found
