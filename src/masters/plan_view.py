"""How a plan looks on a terminal."""

from __future__ import annotations

from itertools import groupby

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from masters import lineage
from masters.plan import MaskStage, Plan, Stage
from masters.ratios import ratio_text
from masters.run import REPORT, report_is_done

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
