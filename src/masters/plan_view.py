"""How a plan looks on a terminal."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from masters import lineage
from masters.plan import MaskStage, Plan, Stage
from masters.ratios import ratio_text
from masters.run import REPORT, report_is_done

if TYPE_CHECKING:  # its module imports torch, which plans do without
    from masters.signal_sizes import SignalSize
    from masters.sizes import ModelSize, PlanSizes

_COLOURS = {"done": "green", "to do": "yellow"}


def plan_tree(plan: Plan) -> RenderableType:
    """The stages by kind with status and folder, and the mask schedule of every phase."""
    done = sum(stage.status == "done" for stage in plan.stages)
    tree = Tree(
        Text.assemble(
            (plan.recipe.name, "bold"),
            f"  seed {plan.seed}, {done} of {len(plan.stages)} stages done, in {plan.out}",
        )
    )
    width = max(len(stage.name) for stage in plan.stages)
    branches: dict[str, Tree] = {}
    for stage in plan.stages:
        part = stage.name.split("/")[0]
        if part not in branches:
            branches[part] = tree.add(Text(part, style="bold"))
        branches[part].add(_line(plan, stage, width))
    if any(stage.kind == "evaluate" for stage in plan.stages):
        status = "done" if report_is_done([plan]) else "to do"
        tree.add(
            Text.assemble(
                (REPORT.ljust(width + 4), "bold"), (status, _COLOURS[status]), f"  {REPORT}/"
            )
        )
    parts: list[RenderableType] = [tree, *_schedules(plan)]
    if plan.absent:
        parts.append(Text(f"not here: {', '.join(plan.absent)}; this plan can't be run", "red"))
    return Group(*parts)


def _line(plan: Plan, stage: Stage, width: int) -> Text:
    return Text.assemble(
        stage.name.ljust(width),
        "  ",
        (stage.status, _COLOURS.get(stage.status, "red")),
        ("  " + str(stage.folder.relative_to(plan.out)), "dim"),
    )


def _schedules(plan: Plan) -> list[RenderableType]:
    """One table for all phases: which ratio for how many iterations and questions.

    Where there are several phases it also says who teaches and who learns, in which state.
    """
    phases = plan.recipe.method.phases
    ladder = ("teacher", "who learns") if len(phases) > 1 else ()
    heads = ("phase", *ladder, "mask ratio", "iterations", "questions")
    table = Table(*heads, box=None, pad_edge=False)
    states: dict[lineage.Version, None] = {}
    stretches = groupby(plan.curriculum, key=lambda part: part.phase)
    for index, (phase, parts) in enumerate(stretches):
        teacher, learner = lineage.teacher(phases, index), lineage.learner(phases, index)
        states |= dict.fromkeys(state for state in (teacher, learner) if state)
        first = (phase, *((teacher.name if teacher else "none", learner.name) if ladder else ()))
        for part in parts:
            table.add_row(*first, *_cells(part))
            first = ("",) * len(first)
    later = [
        f"{s.name}: {s.model} as phase {s.phase} left it" for s in states if s.phase is not None
    ]
    return [Text(), table, *([Text("; ".join(later), "dim")] if later else [])]


def _cells(part: MaskStage) -> tuple[str, str, str]:
    return (
        ratio_text(part.ratio),
        f"{part.start} to {part.stop - 1}",
        str(part.questions),
    )


def sizes_tables(sizes: PlanSizes) -> RenderableType:
    """A column for each model, then what the plan amounts to."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for model in sizes.models:
        table.add_column(_titled(model), justify="right", overflow="fold")
    columns = [_size_rows(model) for model in sizes.models]
    for label in columns[0]:
        table.add_row(label, *(column[label] for column in columns))
    responses = sizes.responses
    work = Text(
        f"{sizes.questions:,} questions, {sum(responses.values()):,} responses to generate "
        f"({responses['teacher']:,} by teachers, {responses['student']:,} by the student), "
        f"{sizes.steps:,} optimiser steps"
    )
    return Group(Text(), table, Text(), work, *map(_signal_line, sizes.signals))


def _signal_line(signal: SignalSize) -> Text:
    head = f", beside the student {byte_text(signal.memory_bytes)} of the teacher's head"
    return Text(
        f"{signal.stage}: {byte_text(signal.bytes_per_token)} a token ({signal.signal}), at most "
        f"{byte_text(signal.disk_bytes)} on disk{head if signal.memory_bytes else ''}"
    )


def _titled(model: ModelSize) -> str:
    return model.name if model.name == model.role else f"{model.role} {model.name}"


def _size_rows(model: ModelSize) -> dict[str, str]:
    """One column: label -> cell, the same labels for every model."""
    masked = [
        f"{one.tensors:,}" if one.tensors == one.matrices else f"{one.tensors:,} ({one.matrices:,})"
        for one in model.masked
    ]
    shares = [f"{one.parameters / model.parameters:.1%}" for one in model.masked]
    names = ("language", "projector", "vision", "other")
    return {
        "": Path(model.path).name,
        "parameters": f"{model.parameters:,}",
        **{f"  {name}": f"{model.parts[name]:,}" for name in names},
        "rows of the head": f"{model.head_rows:,}",
        "masked tensors": _joined(masked),
        "masked parameters": _joined([f"{one.parameters:,}" for one in model.masked]),
        "  share": _joined(shares),
        "checkpoint": byte_text(model.checkpoint_bytes),
        "largest tensor": byte_text(model.largest.bytes),
        "training state": "-" if model.training_bytes is None else byte_text(model.training_bytes),
        "teaching weights": "-" if model.memory_bytes is None else byte_text(model.memory_bytes),
    }


def _joined(cells: list[str]) -> str:
    """The phases' cells, once where they agree; - where there is none."""
    return ", ".join(dict.fromkeys(cells)) or "-"


def byte_text(count: int) -> str:
    """Bytes in the largest decimal unit that leaves at least 1."""
    amount, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{count} bytes" if unit == "bytes" else f"{amount:.1f} {unit}"
