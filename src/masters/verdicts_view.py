"""What the judge stages of a plan decided, on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from rich.table import Table
from rich.text import Text

from masters.artifacts import is_done, read_record
from masters.plan import Plan, Stage
from masters.shown import shown


def verdict_table(plan: Plan) -> Table | None:
    """Every reason with its number, by judge stage; None where none is done."""
    table = Table("stage", "judge", "reason", "verdict", "responses", box=None, pad_edge=False)
    for stage, metrics in _judged(plan):
        missing: dict[str, int] = metrics.get("missing_reasons", {})
        first = (stage.name, ", ".join(metrics.get("judges", ())))
        for reason, count in Counter(metrics["reasons"]).most_common():
            verdict = "missing" if missing.get(reason) else ""
            cells = (*first, reason or "-", verdict, f"{count:,}")
            # A reason may hold a server's words, a judge's name anything at all.
            table.add_row(*(Text(shown(cell)) for cell in cells))
            first = ("", "")
    return table if table.row_count else None


def missing_lines(plans: Iterable[Plan]) -> list[str]:
    """One line for each judge stage in which verdicts are missing; stages shared said once."""
    lines: dict[str, None] = {}
    for plan in plans:
        for stage, metrics in _judged(plan):
            if metrics["missing"]:
                reasons = Counter(metrics.get("missing_reasons", {})).most_common()
                said = ", ".join(f"{reason} {count:,}" for reason, count in reasons)
                share = metrics["missing"] / metrics["responses"]
                lines[
                    f"{stage.name}: {metrics['missing']:,} of {metrics['responses']:,} responses "
                    f"({share:.1%}) have no verdict and left their groups: {said}"
                ] = None
    return [shown(one) for one in lines]


def _judged(plan: Plan) -> Iterator[tuple[Stage, dict[str, Any]]]:
    for stage in plan.stages:
        if stage.kind == "judge" and is_done(stage.folder):
            yield stage, read_record(stage.folder)["metrics"]
