"""The command itself, its children included, killed again and again: the run ends the same."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.invariant.killing import differences
from tests.running import SMALL, command, environment, folders

KILLS = 8


def start(out: Path) -> subprocess.Popen[str]:
    words = ("masters", "--profile", "tiny", "--jobs", "2", "--out", str(out))
    return subprocess.Popen(
        command("run", *words, sets=SMALL),
        env=environment(), start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        # A shell's background jobs ignore the interrupt, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def check_same(out: Path, whole: Path) -> None:
    expected, found = folders(whole), folders(out)
    assert found.keys() == expected.keys()
    for name, folder in found.items():
        assert folder.name == expected[name].name
        assert differences(folder, expected[name]) == [], name
    assert (out / "report" / "report.html").is_file()


@pytest.mark.slow
def test_a_run_killed_at_random_moments(whole: Path, tmp_path: Path) -> None:
    draw = random.Random("whole run")
    for _ in range(KILLS):
        run = start(tmp_path)
        time.sleep(draw.uniform(2.5, 9))
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
    run = start(tmp_path)
    printed, _ = run.communicate(timeout=300)
    assert run.returncode == 0, printed
    check_same(tmp_path, whole)


@pytest.mark.slow
def test_only_the_parent_is_killed(whole: Path, tmp_path: Path) -> None:
    """Its children must not go on alone: the next run would meet their locks."""
    draw = random.Random("parent")
    for _ in range(2):
        run = start(tmp_path)
        time.sleep(draw.uniform(4, 8))
        run.kill()
        run.communicate()
    run = start(tmp_path)
    printed, _ = run.communicate(timeout=300)
    assert run.returncode == 0, printed
    check_same(tmp_path, whole)


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on(whole: Path, tmp_path: Path) -> None:
    run = start(tmp_path)
    time.sleep(6)
    run.send_signal(signal.SIGINT)
    printed, _ = run.communicate(timeout=60)
    assert run.returncode == 130, printed
    assert "Run the same command again" in printed
    assert "Traceback" not in printed
    run = start(tmp_path)
    printed, _ = run.communicate(timeout=300)
    assert run.returncode == 0, printed
    check_same(tmp_path, whole)
