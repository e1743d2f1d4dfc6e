"""What lies beside a run's stages and belongs into its report: public benchmarks and speed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masters.errors import MastersError
from masters.evaluation.evaluated import rank
from masters.evaluation.speed import SPEED, Speeds, read_speed

BENCHMARKS = "benchmarks"
"""The folder of OUT with a folder for each model of the table of public benchmarks."""


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What a report shows beside the runs.

    A file that cannot be read costs its section, not the report: ``unread`` says why.

    Args:
        benchmarks: the table as numbers; None where there is none.
        speeds: None where nothing was measured.
        unread: one sentence for each thing that could not be read.
    """

    benchmarks: dict[str, Any] | None = None
    speeds: Speeds | None = None
    unread: tuple[str, ...] = ()


def read_beside(out: Path, runs: Sequence[str]) -> Beside:
    """The table of OUT/benchmarks, and OUT/speed.json.

    Args:
        out: the output folder; in its ``benchmarks`` each model has a folder (or a link to one)
            that is called as its row is to be.
        runs: the report's names of models: rows follow their order, ``start`` first.
    """
    unread: list[str] = []
    table = _table(out / BENCHMARKS, runs, unread)
    speeds = None
    try:
        speeds = read_speed(out)
    except MastersError as error:
        unread.append(str(error))
    return Beside(benchmarks=table, speeds=speeds, unread=tuple(unread))


def stamp(out: Path) -> str:
    """A digest of names, sizes and times of what ``read_beside`` would read."""
    files = [out / SPEED] if (out / SPEED).is_file() else []
    for folder, _, names in os.walk(out / BENCHMARKS, followlinks=True):
        files += [Path(folder) / name for name in names if ".json" in name]
    said = []
    for path in sorted(files):
        status = path.stat()
        said.append(f"{path.relative_to(out)}\0{status.st_size}\0{status.st_mtime_ns}")
    return hashlib.sha256("\n".join(said).encode()).hexdigest()


def _table(folder: Path, runs: Sequence[str], unread: list[str]) -> dict[str, Any] | None:
    from masters.evaluation.benchmarks.reading import read_row
    from masters.evaluation.benchmarks.table import table_json

    if not folder.is_dir():
        return None
    rows = []
    for name in _ordered([path.name for path in folder.iterdir() if path.is_dir()], runs):
        try:
            rows.append(read_row(f"{name}={folder / name}"))
        except MastersError as error:
            unread.append(str(error))
    try:
        return table_json(rows) if rows else None
    except MastersError as error:
        unread.append(str(error))
        return None


def _ordered(names: Sequence[str], runs: Sequence[str]) -> list[str]:
    """The start, what the report does not know, what it knows in its order, then the teachers."""
    place = {run: index for index, run in enumerate(runs)}
    return sorted(names, key=lambda name: (rank(name), place.get(name, -1), name))
