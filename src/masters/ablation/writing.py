"""Writes a suite's results, and the pages over all suites whose results lie in the folder."""

from __future__ import annotations

import json
from pathlib import Path

from masters.ablation.results import as_text, read_suites
from masters.ablation.verdict import findings
from masters.artifacts import atomic_write_text
from masters.evaluation.readings import Row


def write_results(folder: Path, results: Row) -> list[Path]:
    """Writes ``<suite>.json``, then what follows from all suites there; returns what was written.

    The same results give the same bytes. A README beside them is left as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{results['suite']}.json"]
    atomic_write_text(written[0], as_text(results))
    found = [one for suite in read_suites(folder) for one in findings(suite)]
    summary = [one.as_json() for one in found]
    text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
    written.append(folder / "summary.json")
    atomic_write_text(written[-1], text + "\n")
    return written
