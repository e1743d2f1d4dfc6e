"""Stage 7: results -> report.html, report.json and plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from masters.artifacts import RunInfo, StageContext
from masters.specs import ReportSpec


def run(spec: ReportSpec, context: StageContext) -> dict[str, Any]:
    """Writes the report of all runs into the stage's folder."""
    return write_report(context.folder, spec.runs, around=spec.out)


def write_report(
    out: Path, runs: Sequence[RunInfo], *, around: Path | None = None
) -> dict[str, Any]:
    """The report as it stands in report.json."""
    from masters.evaluation.report import write_report as write

    return write(out, runs, around=around)
