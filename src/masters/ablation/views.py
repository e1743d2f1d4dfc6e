"""What `masters ablate` prints: what is to be done, and what came of the claims."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from masters.ablation.arms import Key
from masters.ablation.suite import Suite
from masters.ablation.verdict import Finding, findings
from masters.evaluation.readings import Row
from masters.evaluation.statistics import t_interval
from masters.plan import Plan, stage_is_done


def plan_table(
    suite: Suite, runs: Sequence[tuple[Key, Plan, bool]], tries: Sequence[Plan]
) -> Table:
    """A line for each run: its stages, how many it shares with other runs, how many are done.

    Args:
        runs: with whether the value of the tuned key is known; else the recipe's own stands in.
        tries: of the tuned key, not done yet.
    """
    uses = Counter(stage.folder for _, plan, _ in runs for stage in plan.stages)
    table = Table(title=f"{suite.name}: {suite.about}", title_justify="left",
                  caption_justify="left")  # fmt: skip
    for heading in ("data", "arm", "seed"):
        table.add_column(heading)
    for heading in ("stages", "shared", "done", "to do"):
        table.add_column(heading, justify="right")
    table.add_column("tuned")
    for key, plan, known in runs:
        shared = sum(uses[stage.folder] > 1 for stage in plan.stages)
        done = sum(stage_is_done(stage) for stage in plan.stages)
        tuned = "" if suite.tune is None else "yes" if known else "not yet"
        counts = (len(plan.stages), shared, done, len(plan.stages) - done)
        table.add_row(key.data, key.arm, str(key.seed), *map(str, counts), tuned)
    first = _stages_left(tries)
    later = _stages_left([plan for _, plan, _ in runs])
    table.caption = (
        f"{len(runs)} runs; to do, shared stages once: "
        f"{len(first)} stages for {len(tries)} tries of the tuned key, then "
        f"{len(later - first)} for the runs"
    )
    return table


def _stages_left(plans: Sequence[Plan]) -> set[str]:
    return {
        stage.folder.name for plan in plans for stage in plan.stages if not stage_is_done(stage)
    }


def arms_table(results: Row) -> Table:
    """A line for each data set and arm: what all its complete runs come to."""
    table = Table(title="Accuracy (%)", title_justify="left")
    for heading in ("data", "arm"):
        table.add_column(heading)
    for heading in ("mean", "95 % interval", "over start", "seeds", "tuned"):
        table.add_column(heading, justify="right")
    for data in results["data"]:
        for arm in results["arms"]:
            runs = [r for r in results["runs"] if (r["data"], r["arm"]) == (data, arm)]
            mean, bounds = percent([run["accuracy"] for run in runs])
            count = f"{len(runs)} of {len(results['seeds'])}"
            tuned = tuned_text(data, arm, results)
            table.add_row(data, arm, mean, bounds, gain_text(runs), count, tuned)
    return table


def percent(shares: Sequence[float]) -> tuple[str, str]:
    """The mean in per cent and its t interval over seeds, or dashes."""
    if not shares:
        return "-", "-"
    mean, low, high = t_interval([100 * share for share in shares])
    return f"{mean:.1f}", "-" if math.isnan(low) else f"{low:.1f} to {high:.1f}"


def gain_text(runs: Sequence[Row]) -> str:
    """What runs gain over the untouched student, in points, with its t interval over seeds."""
    if not runs:
        return "-"
    mean, low, high = t_interval([100 * (run["accuracy"] - run["start"]) for run in runs])
    return f"{mean:+.1f}" + ("" if math.isnan(low) else f" ({low:.1f} to {high:.1f})")


def tuned_text(data: str, arm: str, results: Row) -> str:
    """The arm's value of the tuned key, whose tries gave it, and what is to be said of them."""
    source = results["arms"][arm]["tune_as"] or arm
    found = [c for c in results["tuned"] if (c["data"], c["arm"]) == (data, source)]
    if not found or found[0]["value"] is None:
        return "-"
    choice = found[0]
    said = [] if source == arm else [f"that of {source}"]
    said += ["at the edge"] if choice["edge"] else []
    bad = [f"{one['value']:g}" for one in choice["tries"] if one["accuracy"] is None]
    said += [f"{', '.join(bad)} diverged"] if bad else []
    return f"{choice['value']:g}" + (f" ({'; '.join(said)})" if said else "")


def outcome_table(results: Row) -> Table:
    """A line for each claim and data set."""
    table = Table(
        title=f"{results['suite']}: {results['about']}",
        caption="points; 95 % t intervals over seeds, paired",
        title_justify="left", caption_justify="left",
    )  # fmt: skip
    for heading in ("claim", "data"):
        table.add_column(heading)
    for heading in ("difference", "interval", "seeds"):
        table.add_column(heading, justify="right")
    table.add_column("held")
    for finding in findings(results):
        mean, bounds = interval_text(finding)
        table.add_row(
            f"{finding.claim['id']}: {finding.claim['says']}",
            finding.data, mean, bounds, seeds_text(finding), finding.held,
        )  # fmt: skip
    return table


def interval_text(finding: Finding) -> tuple[str, str]:
    """The mean difference and its bounds in points, or dashes."""
    if finding.interval is None:
        return "-", "-"
    value, low, high = finding.interval
    bounds = "-" if finding.seeds < 2 else f"{low:+.1f} to {high:+.1f}"
    return f"{value:+.1f}", bounds


def seeds_text(finding: Finding) -> str:
    """``3 of 5`` where not every seed is complete."""
    asked = finding.seeds + len(finding.lacking)
    return str(finding.seeds) if not finding.lacking else f"{finding.seeds} of {asked}"
