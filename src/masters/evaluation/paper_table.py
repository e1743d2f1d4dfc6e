"""The paper's table: a row for each model, a column for each category, their plain mean last."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from masters.errors import StageError
from masters.evaluation.categories import KIND, categories, score_row
from masters.evaluation.comparison import Answers
from masters.evaluation.contrasts import Tables, correct, pairs, tested
from masters.evaluation.evaluated import Evaluated, rank
from masters.evaluation.readings import Row
from masters.evaluation.statistics import t_interval


def paper_tables(found: Sequence[Evaluated], answers: Tables, fields: Sequence[str]) -> list[Row]:
    """One table by the questions' kind and one by each field, where it parts them.

    With several seeds a cell is the mean over seeds with its t interval; a model that all seeds
    share keeps its own interval.

    Args:
        fields: of ``evaluation.by``; one that the answers do not have makes no table.

    Returns:
        For each table ``by``, ``columns`` and ``rows``. A row has ``run``, ``cells`` by column and
        ``average``, each ``value``, ``low``, ``high``, ``n``, ``missing`` (not the average) and
        ``difference`` to the start, with its verdict: None for the start and the teachers. All
        differences of all tables are one family. The average is over the columns that every row
        has; None below two.
    """
    tables = []
    for by in dict.fromkeys((KIND, *fields)):
        groups = _groups(found, answers, by)
        if len(groups) > 1:
            rows = [_row(run, found, answers, groups) for run in _runs(found)]
            tables.append({"by": by, "columns": list(groups), "rows": rows})
    for table in tables:
        _average(table, found, answers, _groups(found, answers, table["by"]))
    correct(
        [
            cell["difference"]
            for table in tables
            for row in table["rows"]
            for cell in (*row["cells"].values(), row["average"])
            if cell and cell["difference"]
        ]
    )
    return tables


def _runs(found: Sequence[Evaluated]) -> list[str]:
    return list(dict.fromkeys(item.run for item in found))


def _groups(found: Sequence[Evaluated], answers: Tables, by: str) -> dict[str, list[str]]:
    """Category -> ids over all evaluations; empty where the answers do not have the field."""
    groups: dict[str, dict[str, None]] = {}
    for folder in dict.fromkeys(item.folder for item in found):
        try:
            for category, ids in categories(answers[folder], by).items():
                groups.setdefault(category, {}).update(dict.fromkeys(ids))
        except StageError:
            continue
    return {category: list(ids) for category, ids in sorted(groups.items())}


def _row(
    run: str, found: Sequence[Evaluated], answers: Tables, groups: Mapping[str, Sequence[str]]
) -> Row:
    folders = _folders(run, found)
    both = list(pairs(found, run, "start").values()) if rank(run) == 1 else []
    cells: dict[str, Row] = {}
    for category, ids in groups.items():
        cell = _cell([answers[folder] for folder in folders], ids)
        if cell is not None:
            cells[category] = {**cell, "difference": tested(both, answers, [ids])}
    return {"run": run, "cells": cells, "average": None}


def _folders(run: str, found: Sequence[Evaluated]) -> list[Path]:
    """The run's evaluations, one for each seed that has one of its own."""
    return list(dict.fromkeys(item.folder for item in found if item.run == run))


def _cell(tables: Sequence[Answers], ids: Sequence[str]) -> Row | None:
    rows = [score_row(table[key] for key in ids if key in table) for table in tables]
    known = [row for row in rows if row is not None]
    if len(known) < 2:
        return known[0] if known else None
    mean, low, high = t_interval([row["value"] for row in known])
    bounds = {"low": max(0.0, low), "high": min(1.0, high)}
    missing = sum(row["missing"] for row in known)
    return {"value": mean, **bounds, "n": len(known), "missing": missing}


def _average(
    table: Row, found: Sequence[Evaluated], answers: Tables, groups: Mapping[str, Sequence[str]]
) -> None:
    """The plain mean of the columns; their questions differ, so half widths add as squares."""
    columns = [c for c in table["columns"] if all(c in row["cells"] for row in table["rows"])]
    if len(columns) < 2:
        return
    ids = [groups[column] for column in columns]
    for row in table["rows"]:
        cells = [row["cells"][column] for column in columns]
        folders = _folders(row["run"], found)
        value = math.fsum(cell["value"] for cell in cells) / len(cells)
        if len(folders) > 1:
            each = [[_cell([answers[folder]], part) for part in ids] for folder in folders]
            means = [math.fsum(c["value"] for c in line if c) / len(line) for line in each]
            value, low, high = t_interval(means)
        else:
            squares = math.fsum(((cell["high"] - cell["low"]) / 2) ** 2 for cell in cells)
            half = math.sqrt(squares) / len(cells)
            low, high = value - half, value + half
        both = list(pairs(found, row["run"], "start").values()) if rank(row["run"]) == 1 else []
        row["average"] = {
            "value": value, "low": max(0.0, low), "high": min(1.0, high), "n": len(cells),
            "difference": tested(both, answers, ids),
        }  # fmt: skip
