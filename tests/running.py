"""The command line run in a process of its own, with settings that take seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import masters

SMALL = (
    "models.student.sft.steps=12",
    "models.student.sft.questions_per_step=16",
    "models.student.sft.data.count=256",
    "models.student.sft.validate_every=4",
    "models.teachers.0.sft.steps=12",
    "models.teachers.0.sft.questions_per_step=16",
    "models.teachers.0.sft.data.count=256",
    "models.teachers.0.sft.validate_every=4",
    "data.train.count=96",
    "data.validation.count=16",
    "data.test.count=32",
    "validation.every=2",
    "runtime.checkpoint_every=2",
    "method.optimiser.questions_per_step=16",
    "method.responses.max_new_tokens=8",
)
"""A run of the whole method on the tiny profile in about 15 seconds."""


def environment() -> dict[str, str]:
    """One thread, and the package under test found wherever it lies."""
    source = str(Path(masters.__file__).parents[1])
    path = os.pathsep.join(part for part in (source, os.environ.get("PYTHONPATH")) if part)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def command(verb: str, *words: str, sets: Sequence[str] = ()) -> list[str]:
    """The argument list of ``masters VERB WORDS --set ...``."""
    pairs = [part for value in sets for part in ("--set", value)]
    return [sys.executable, "-m", "masters", verb, *words, *pairs]


def cli(verb: str, *words: str, sets: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """What ``masters`` answers; it is not checked."""
    return subprocess.run(
        command(verb, *words, sets=sets),
        env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def succeeds(verb: str, *words: str, sets: Sequence[str] = ()) -> str:
    """The standard output of a command that must succeed."""
    done = cli(verb, *words, sets=sets)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fails(verb: str, *words: str, sets: Sequence[str] = ()) -> str:
    """The message of a command that must fail as a user's mistake does: code 1, no traceback."""
    done = cli(verb, *words, sets=sets)
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    lines = done.stderr.splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1, done.stderr
    return done.stderr[done.stderr.index("error: ") :]


def folders(out: Path, recipe: str = "masters") -> dict[str, Path]:
    """Stage name -> folder of a recipe that was run in ``out``."""
    stages = read(out / f"{recipe}.plan.json")["stages"]
    return {name: out / stage["folder"] for name, stage in stages.items()}


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def lines(path: Path) -> list[Mapping[str, Any]]:
    """A JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
