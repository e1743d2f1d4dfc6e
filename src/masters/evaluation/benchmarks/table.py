"""The paper's table: a row for each model, a column for each benchmark, their mean at the end."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from masters.errors import DataError
from masters.evaluation.benchmarks.catalogue import BENCHMARKS, Benchmark
from masters.evaluation.benchmarks.reading import Row
from masters.evaluation.benchmarks.scores import Score, difference_of
from masters.evaluation.markup import text
from masters.evaluation.statistics import Interval
from masters.shown import markdown, shown

SCHEMA = 1
_UP, _DOWN = "▲", "▼"
_Cells = list[list[str]]


def table_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The table as numbers.

    The first row is the one the others are compared with, question by question. The mean is over
    the benchmarks that every row has, whole; it is there where there are two of them or more.

    Args:
        rows: the start first, then each step, Masters, the teacher.

    Returns:
        {"schema", "benchmarks": columns, "averaged": those in the mean, "rows": for each model
        {"label", "scores": by benchmark, "average", "differences": to the first row by benchmark}}.
        Values are shares; an interval that is not known is null.

    Raises:
        DataError: two rows have one label, or were not asked the same questions.
    """
    labels = [row.label for row in rows]
    if len(set(labels)) < len(labels):
        raise DataError(f"two rows share a label: {', '.join(labels)}; expected LABEL=FOLDER")
    columns = [b for b in BENCHMARKS if any(b.name in row.scores for row in rows)]
    averaged = [b for b in columns if all(_whole(row, b) for row in rows)]
    return {
        "schema": SCHEMA,
        "benchmarks": [{"name": b.name, "title": b.title, "counting": b.counting} for b in columns],
        "averaged": [benchmark.name for benchmark in averaged],
        "rows": [
            {
                "label": row.label,
                "scores": {name: _score_json(score) for name, score in row.scores.items()},
                "average": _average(row, averaged),
                "differences": _differences(row, rows[0], columns),
            }
            for row in rows
        ],
    }


def print_table(content: dict[str, Any], console: Console) -> None:
    """For a terminal; turned on its side where that is too narrow. Notes stand below."""
    cells = _cells(content, lambda score: _percent(score["value"]))
    needed = sum(3 + max(len(cell) for cell in column) for column in zip(*cells, strict=True))
    if needed >= console.width:
        cells = [list(column) for column in zip(*cells, strict=True)]
    table = Table(title="Benchmarks (%)", title_justify="left")
    for index, heading in enumerate(cells[0]):
        table.add_column(Text(shown(heading)), justify="right" if index else "left", no_wrap=True)
    for line in cells[1:]:
        table.add_row(*(Text(shown(cell)) for cell in line))
    console.print(table)
    for note in notes(content):
        console.print(shown(note), style="dim", markup=False, highlight=False)


def markdown_table(content: dict[str, Any]) -> str:
    """For a document; intervals stand beside the values."""
    cells = _cells(content, _with_interval)
    ruler = ["---", *("---:" for _ in cells[0][1:])]
    plain = [[markdown(cell) for cell in line] for line in cells]
    lines = [f"| {' | '.join(line)} |" for line in (plain[0], ruler, *plain[1:])]
    return "\n".join([*lines, "", *(f"- {markdown(note)}" for note in notes(content))]) + "\n"


def html_table(content: dict[str, Any]) -> str:
    """A fragment for the report's page; intervals stand beneath the values."""
    cells = _cells(content, _with_interval)
    head = "".join(f"<th>{text(cell)}</th>" for cell in cells[0])
    body = "\n".join(
        f"<tr><th>{text(line[0])}</th>" + "".join(f"<td>{text(cell)}</td>" for cell in line[1:])
        + "</tr>"
        for line in cells[1:]
    )  # fmt: skip
    below = "".join(f"<li>{text(note)}</li>" for note in notes(content))
    return (
        f'<table class="benchmarks">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n'
        f"</table>\n<ul>{below}</ul>\n"
    )


def json_text(content: dict[str, Any]) -> str:
    """The table as JSON."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def notes(content: dict[str, Any]) -> list[str]:
    """What must be said beside the numbers: marks, judges, failures, parts, harnesses."""
    rows, titles = content["rows"], {b["name"]: b["title"] for b in content["benchmarks"]}
    found = []
    if len(rows) > 1:
        found.append(
            f"{_UP} {_DOWN}: better or worse than {rows[0]['label']} on the same questions, at 95 "
            "% for that benchmark alone"
        )
    harnesses = {score["harness"] for row in rows for score in row["scores"].values()}
    found.append(f"harness: {', '.join(sorted(harnesses))}")
    if len(harnesses) > 1:
        found.append("harnesses or versions differ: these rows are not comparable")
    for name, title in titles.items():
        scores = {row["label"]: row["scores"].get(name) for row in rows}
        present = {label: score for label, score in scores.items() if score is not None}
        judges = {score["judge"] or "not recorded" for score in present.values()}
        if judges != {"not recorded"} or any(s["judge"] is None for s in present.values()):
            differ = "; they differ, so the rows are not comparable" if len(judges) > 1 else ""
            found.append(f"{title}: judge {', '.join(sorted(judges))}{differ}")
        for label, score in present.items():
            if score["judge_failed"]:
                found.append(
                    f"{title}, {label}: the judge gave no verdict on {score['judge_failed']} of "
                    f"{score['n']} questions, which the harness scored all the same"
                )
            if score["partial"]:
                found.append(
                    f"{title}, {label}: * only {score['n'] or 'some'} questions were asked"
                )
    return found


def _cells(content: dict[str, Any], shown: Callable[[dict[str, Any]], str]) -> _Cells:
    """The table as words, headings first."""
    names = [benchmark["name"] for benchmark in content["benchmarks"]]
    count = len(content["averaged"])
    heading = ["model", *(b["title"] for b in content["benchmarks"])]
    lines = [[*heading, *([f"mean of {count}"] if count > 1 else [])]]
    for row in content["rows"]:
        line = [row["label"]]
        for name in names:
            score = row["scores"].get(name)
            if score is None:
                line.append("")
                continue
            mark = "*" if score["partial"] else ""
            line.append(shown(score) + mark + _mark(row["differences"].get(name)))
        if count > 1:
            line.append(shown(row["average"]))
        lines.append(line)
    return lines


def _mark(difference: dict[str, Any] | None) -> str:
    if difference is None or difference["low"] <= 0 <= difference["high"]:
        return ""
    return f" {_UP if difference['difference'] > 0 else _DOWN}"


def _with_interval(score: dict[str, Any]) -> str:
    if score["low"] is None:
        return _percent(score["value"])
    return f"{_percent(score['value'])} ({_percent(score['low'])} to {_percent(score['high'])})"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _whole(row: Row, benchmark: Benchmark) -> bool:
    score = row.scores.get(benchmark.name)
    return score is not None and not score.partial


def _score_json(score: Score) -> dict[str, Any]:
    return {
        "value": score.value, "low": score.low, "high": score.high, "n": score.n,
        "partial": score.partial, "judge": score.judge, "judge_failed": score.judge_failed,
        "harness": score.harness,
    }  # fmt: skip


def _average(row: Row, averaged: Sequence[Benchmark]) -> dict[str, Any] | None:
    """The mean with weight one each; benchmarks are independent, so half widths add as squares."""
    if len(averaged) < 2:
        return None
    scores = [row.scores[benchmark.name] for benchmark in averaged]
    value = math.fsum(score.value for score in scores) / len(scores)
    squares = 0.0
    for score in scores:
        if score.low is None or score.high is None:
            return {"value": value, "low": None, "high": None}
        squares += ((score.high - score.low) / 2) ** 2
    half = math.sqrt(squares) / len(scores)
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half)}


def _differences(row: Row, first: Row, columns: Sequence[Benchmark]) -> dict[str, Any]:
    if row is first:
        return {}
    found: dict[str, Any] = {}
    for benchmark in columns:
        new, old = row.scores.get(benchmark.name), first.scores.get(benchmark.name)
        if new is None or old is None:
            continue
        difference = difference_of(new, old)
        if difference is not None and not math.isnan(difference.low):
            found[benchmark.name] = _difference_json(difference)
    return found


def _difference_json(difference: Interval) -> dict[str, float]:
    return {"difference": difference.value, "low": difference.low, "high": difference.high}
