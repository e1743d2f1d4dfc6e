"""Where a judge gave no verdict: how often, and why, by judge stage and by evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from masters.data.tables import ANSWERS, REWARDS, read_shards
from masters.evaluation.evaluated import Evaluated
from masters.evaluation.readings import Row

if TYPE_CHECKING:
    from masters.artifacts import RunInfo


def judged_verdicts(runs: Sequence[RunInfo]) -> list[Row]:
    """One row for each judge stage, shared ones once.

    Returns:
        ``stage``, ``judges`` (name -> responses), ``responses``, ``missing``, ``share`` of them,
        ``reasons`` (reason -> missing ones).
    """
    rows: dict[Path, Row] = {}
    for run in runs:
        for name, stage in run.stages.items():
            if not name.startswith("judge/") or stage.folder in rows:
                continue
            columns = ["reward", "reason", "judge"]
            table = read_shards(stage.folder / "rewards", REWARDS, columns)
            lacking = table.filter(table.column("reward").is_null())
            rows[stage.folder] = {
                "stage": name.removeprefix("judge/"),
                "judges": _counts(table.column("judge")),
                "responses": table.num_rows,
                "missing": lacking.num_rows,
                "share": lacking.num_rows / table.num_rows if table.num_rows else 0.0,
                "reasons": _counts(lacking.column("reason")),
            }
    return list(rows.values())


def evaluated_verdicts(found: Sequence[Evaluated]) -> list[Row]:
    """One row for each evaluation, shared ones once; answers under every mask count.

    Returns:
        ``run``, ``seed``, ``answers``, ``missing``, ``share`` of them, ``cut``: how many of the
        missing were cut at the limit. A table of answers keeps no reasons.
    """
    rows: dict[Path, Row] = {}
    for item in found:
        if item.folder in rows:
            continue
        table = read_shards(item.folder / "answers", ANSWERS, ["score", "finish"])
        lacking = table.filter(table.column("score").is_null())
        rows[item.folder] = {
            "run": item.run,
            "seed": item.seed,
            "answers": table.num_rows,
            "missing": lacking.num_rows,
            "share": lacking.num_rows / table.num_rows if table.num_rows else 0.0,
            "cut": _counts(lacking.column("finish")).get("length", 0),
        }
    return list(rows.values())


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    """Value -> how often, the most frequent first."""
    found = {row["values"]: row["counts"] for row in column.value_counts().to_pylist()}
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))
