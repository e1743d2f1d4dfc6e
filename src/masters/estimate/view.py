"""How an estimate looks on a terminal."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from masters.estimate.plan import PlanEstimate, StageEstimate


def estimate_tables(found: PlanEstimate) -> RenderableType:
    """A row for each stage, what would make the rest fit, and everything assumed."""
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "GPUs", "GB each", "fits", "TFLOP", "hours", "GPU-hours"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage in found.stages:
        table.add_row(*_cells(stage))
    table.add_row(
        "all, one after the other", "", "", "", "", _hours(found.hours), _hours(found.gpu_hours)
    )
    cluster = found.cluster
    head = f"{found.plan} on {cluster.gpus} x {cluster.name} ({cluster.memory_gb:g} GB each)"
    return Group(Text(head, style="bold"), Text(), table, *_remarks(found), *_assumptions(found))


def _cells(stage: StageEstimate) -> tuple[str, ...]:
    fits = "yes" if stage.fits else "no"
    return (
        stage.name, str(stage.gpus), f"{stage.memory_gb:.1f}", fits, f"{stage.flops / 1e12:,.3g}",
        _hours(stage.hours), _hours(stage.gpu_hours),
    )  # fmt: skip


def _hours(hours: float) -> str:
    return f"{hours:,.2f}" if hours >= 0.1 or hours == 0 else f"{hours:.2g}"


def _remarks(found: PlanEstimate) -> list[RenderableType]:
    lines: list[RenderableType] = [Text()]
    for stage in found.stages:
        if not stage.fits:
            largest = max(stage.memory.items(), key=lambda item: item[1])
            change = stage.change or "nothing that was tried makes it fit"
            said = f"{stage.name} does not fit ({largest[0]} {largest[1]:.1f} GB); first: {change}"
            lines.append(Text(said, style="red"))
        lines += [Text(f"{stage.name}: {note}", style="dim") for note in stage.notes]
    disk = f"on disk at most {found.disk_gb:,.1f} GB of {found.cluster.disk_gb:,.0f}"
    return [*lines, Text(disk)]


def _assumptions(found: PlanEstimate) -> list[RenderableType]:
    """Every number that the hours rest on, with its source."""
    questions = ", ".join(f"{key} {value:g}" for key, value in asdict(found.workload).items())
    table = Table(box=None, pad_edge=False)
    for name in ("assumed of the cluster", "", "source"):
        table.add_column(name, overflow="fold")
    for name in type(found.cluster.efficiency).model_fields:
        one = getattr(found.cluster.efficiency, name)
        table.add_row(name, f"{one.value:g}", one.source)
    figures = f"figures of the hardware: {' '.join(found.cluster.source.split())}"
    return [
        Text(),
        Text(f"assumed of a question (--assume): {questions}"),
        Text(),
        table,
        Text(figures),
    ]
