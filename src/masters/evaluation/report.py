"""The report of one or several runs: report.json, report.html, its pictures, the closing table."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from masters.artifacts import atomic_write_bytes
from masters.errors import StageError
from masters.evaluation.evaluated import Evaluated, evaluations, rank
from masters.evaluation.readings import (
    FULL,
    METRICS,
    Row,
    difference_of,
    last_third_gain,
    measure,
    model_curves,
    read_answers,
    read_json,
)
from masters.evaluation.statistics import paired_difference, t_interval

if TYPE_CHECKING:
    from masters.artifacts import RunInfo

SCHEMA = 1
HEADLINE = "held_out"
Report = dict[str, Any]


def write_report(out: Path, runs: Sequence[RunInfo]) -> Report:
    """The content of report.json, after writing it, report.html and the pictures into ``out``.

    Every file is written under a temporary name and renamed.

    Args:
        out: the report's folder; made if missing.
        runs: the recipes to report on, one entry per recipe and seed.

    Returns:
        {"schema", "seed", "seeds", "models", "results", "masking", "stages", "summary", "inputs"}.
        With several seeds a run has one row of ``results`` per seed and one with seed None: the
        mean over seeds with a t-interval, n the number of seeds. A model that all seeds share
        (the start, the teacher) keeps its own interval and n in the row with seed None.

    Raises:
        StageError: there is no run, or a stage folder cannot be read.
        DataError: a table in one is missing or damaged.
    """
    from masters.evaluation.page import render_page

    report = build_report(runs)
    page, pictures = render_page(report, runs)
    out.mkdir(parents=True, exist_ok=True)
    for name, png in pictures.items():
        atomic_write_bytes(out / name, png)
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write_bytes(out / "report.html", page.encode())
    atomic_write_bytes(out / "report.json", text.encode())  # last: it says that the report is done
    return report


def build_report(runs: Sequence[RunInfo]) -> Report:
    """The content of report.json; see ``write_report``."""
    if not runs:
        raise StageError("report: no runs; expected at least one. Name a recipe that was run.")
    found = evaluations(runs)
    seeds = list(dict.fromkeys(run.seed for run in runs))
    results = _result_rows(found, seeds)
    masking = _masking(found)
    return {
        "schema": SCHEMA,
        "seed": seeds[0],
        "seeds": seeds,
        "models": _models(found),
        "results": results,
        "masking": [
            {key: row[key] for key in ("ratio", "zeros", "accuracy")}
            for row in masking.get("teacher", [])
        ],
        "stages": _stages(runs),
        "summary": {
            "runs": _summary(results, seeds),
            "differences": _differences(found, seeds),
            "masking": masking,
            "student_sft": _student_sft(runs),
        },
        "inputs": _fingerprints(runs),
    }


def terminal_table(report: Report) -> Table:
    """The closing table of a run: accuracy, interval, gain over the start, share of the gap."""
    lines = report["summary"]["runs"]
    several = len(report["seeds"]) > 1
    has_sft = any(line["run"] == "sft" for line in lines)
    title = f"{measure(lines).capitalize()} on {lines[0]['benchmark']}" if lines else "No results"
    table = Table(
        title=title,
        caption="95 % intervals" + (f"; {len(report['seeds'])} seeds" if several else ""),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("run", no_wrap=True)
    for heading in (measure(lines), "interval", "over start", *(["over sft"] if has_sft else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("gap closed", justify="right")
    for line in lines:
        own = rank(line["run"]) == 1
        cells = [
            percent(line["value"]),
            f"{100 * line['low']:.1f} - {100 * line['high']:.1f}",
            _signed(difference_of(report, line["run"], "start")),
            *([_signed(difference_of(report, line["run"], "sft"))] if has_sft else []),
            "" if line["gap_closed"] is None or not own else f"{100 * line['gap_closed']:.0f} %",
        ]
        table.add_row(Text(line["run"], style="bold" if own else "dim"), *cells)
    return table


def percent(value: float) -> str:
    """An accuracy in 0..1 as a percentage with one decimal."""
    return f"{100 * value:.1f} %"


def _signed(row: Row | None) -> str:
    return "" if row is None else f"{100 * row['difference']:+.1f}"


def _result_rows(found: Sequence[Evaluated], seeds: Sequence[int]) -> list[Row]:
    """One row per model, seed, benchmark, kind and metric; plus rows over seeds if several."""
    rows: list[Row] = []
    for run in dict.fromkeys(item.run for item in found):
        per_seed = [item for item in found if item.run == run]
        for item in per_seed:
            rows += [_result_row(item, row, item.seed) for row in item.unmasked]
        if len(seeds) > 1:
            rows += _over_seeds(per_seed)
    return rows


def _result_row(item: Evaluated, row: Row, seed: int | None) -> Row:
    kept = {key: row[key] for key in ("benchmark", "kind", "metric", "value", "low", "high", "n")}
    return {"run": item.run, "model": _model_of(item.run), "seed": seed, **kept}


def _model_of(run: str) -> str:
    return "teacher" if rank(run) == 2 else "student"


def _over_seeds(per_seed: Sequence[Evaluated]) -> list[Row]:
    distinct = list({item.folder: item for item in per_seed}.values())
    if len(distinct) == 1:
        return [_result_row(distinct[0], row, None) for row in distinct[0].unmasked]
    grouped: dict[tuple[str, str, str], list[float]] = {}
    for item in distinct:
        for row in item.unmasked:
            key = (row["benchmark"], row["kind"], row["metric"])
            grouped.setdefault(key, []).append(row["value"])
    rows = []
    for (benchmark, kind, metric), values in grouped.items():
        if len(values) < 2:
            continue
        mean, low, high = t_interval(values)
        fresh = {"benchmark": benchmark, "kind": kind, "metric": metric, "value": mean}
        fresh |= {"low": max(0.0, low), "high": min(1.0, high), "n": len(values)}
        rows.append(_result_row(distinct[0], fresh, None))
    return rows


def _models(found: Sequence[Evaluated]) -> Report:
    models: Report = {}
    for item in found:
        role = _model_of(item.run)
        if role == "student" or item.run == "teacher":
            models.setdefault(role, {"parameters": item.parameters})
    return models


def _masking(found: Sequence[Evaluated]) -> dict[str, list[Row]]:
    """Accuracy and share of zeros by ratio, by teacher; only where a mask was evaluated."""
    curves: dict[str, list[Row]] = {}
    for item in found:
        if rank(item.run) != 2 or item.run in curves:
            continue
        rows = [row for row in item.rows if row["kind"] == "all" and row.get("ratio") is not None]
        rows = [row for row in rows if row["benchmark"] == rows[0]["benchmark"]]
        if not any(row["ratio"] for row in rows):
            continue
        curves[item.run] = [
            {
                "ratio": row["ratio"] / FULL,
                "zeros": row.get("zeros"),
                "accuracy": row["value"],
                "low": row["low"],
                "high": row["high"],
                "n": row["n"],
            }
            for row in sorted(rows, key=lambda row: row["ratio"])
        ]
    return curves


def _summary(results: Sequence[Row], seeds: Sequence[int]) -> list[Row]:
    """The headline row of every model, with the share of the gap to the teacher it closed.

    gap_closed = (value - start) / (teacher - start); None where either is missing or the teacher
    isn't better than the start.
    """
    seed = None if len(seeds) > 1 else seeds[0]
    rows = [row for row in results if row["kind"] == "all" and row["metric"] in METRICS]
    names = [row["benchmark"] for row in rows]
    benchmark = HEADLINE if HEADLINE in names else (names[0] if names else HEADLINE)
    rows = [row for row in rows if row["benchmark"] == benchmark]
    chosen: dict[str, Row] = {}
    for row in rows:
        if row["seed"] == seed or row["run"] not in chosen:
            chosen[row["run"]] = row
    start, teacher = chosen.get("start"), chosen.get("teacher")
    gap = teacher["value"] - start["value"] if start and teacher else 0.0
    return [
        {**row, "gap_closed": (row["value"] - start["value"]) / gap if start and gap > 0 else None}
        for row in chosen.values()
    ]


def _differences(found: Sequence[Evaluated], seeds: Sequence[int]) -> list[Row]:
    """Paired differences in accuracy of each run to ``start`` and ``sft``, question by question."""
    answers = {item.folder: read_answers(item.folder) for item in found if rank(item.run) < 2}
    by_key = {(item.run, item.seed): item for item in found}
    rows: list[Row] = []
    for run in dict.fromkeys(item.run for item in found if rank(item.run) == 1):
        for against in ("start", "sft"):
            if run == against:
                continue
            per_seed: list[Row] = []
            for seed in seeds:
                one, two = by_key.get((run, seed)), by_key.get((against, seed))
                if one is not None and two is not None:
                    per_seed += _paired(one, two, answers)
            rows += per_seed
            if len(seeds) > 1 and len(per_seed) > 1:
                mean, low, high = t_interval([row["difference"] for row in per_seed])
                rows.append(
                    {**per_seed[0], "seed": None, "difference": mean, "low": low, "high": high}
                    | {"n": len(per_seed)}
                )
    return rows


def _paired(one: Evaluated, two: Evaluated, answers: dict[Path, dict[str, Row]]) -> list[Row]:
    left, right = answers[one.folder], answers[two.folder]
    judged = {key for key, row in left.items() if row["score"] is not None}
    judged &= {key for key, row in right.items() if row["score"] is not None}
    shared = [key for key in left if key in judged]
    if not shared:
        return []
    difference, low, high = paired_difference(
        [left[key]["score"] for key in shared],
        [right[key]["score"] for key in shared],
    )
    if math.isnan(low):  # one question only: nothing narrower is known
        low, high = -1.0, 1.0
    return [
        {"run": one.run, "against": two.run, "seed": one.seed, "difference": difference}
        | {"low": low, "high": high, "n": len(shared)}
    ]


def _student_sft(runs: Sequence[RunInfo]) -> Row | None:
    rows = model_curves(runs).get("student")
    if rows is None:
        return None
    return {"last_third_gain": last_third_gain(rows), "accuracy": rows[-1]["accuracy"]}


def _stages(runs: Sequence[RunInfo]) -> list[Row]:
    """Every stage folder once; a name that several folders bear gets its recipe before it."""
    folders: dict[str, set[Path]] = {}
    for run in runs:
        for name, stage in run.stages.items():
            folders.setdefault(name, set()).add(stage.folder)
    several = len({run.seed for run in runs}) > 1
    rows: dict[Path, Row] = {}
    for run in runs:
        prefix = f"{run.name}@{run.seed}" if several else run.name
        for name, stage in run.stages.items():
            shown = name if len(folders[name]) == 1 else f"{prefix}/{name}"
            fresh = {"name": shown, "kind": stage.kind, "seconds": round(stage.seconds, 3)}
            rows.setdefault(stage.folder, fresh)
    return list(rows.values())


def _fingerprints(runs: Sequence[RunInfo]) -> list[str]:
    found = []
    for folder in dict.fromkeys(stage.folder for run in runs for stage in run.stages.values()):
        record = folder / "record.json"
        if record.exists():
            found.append(read_json(record).get("fingerprint"))
    return sorted({fingerprint for fingerprint in found if fingerprint})
