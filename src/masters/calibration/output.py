"""What a calibration says: the JSON file, the tables on the terminal, the recipe it writes."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.table import Table

from masters.artifacts import atomic_write_text
from masters.calibration.recommendation import Measured, Recommendation, verdict
from masters.calibration.teacher import Subject
from masters.errors import RecipeError
from masters.evaluation.statistics import Interval
from masters.ratios import ratio_text
from masters.recipe import resolved_yaml

_SHOWN = 20


def row_json(row: Measured, unmasked: Measured, tolerance: float) -> dict[str, Any]:
    """A measurement as JSON values."""
    difference = row.against(unmasked)
    gained, lost = row.moved(unmasked)
    found = {
        "ratio": float(ratio_text(row.ratio)),
        "n": row.n,
        **_bounds("accuracy", row.accuracy),
        **_bounds("difference", difference),
        "gained": gained,
        "lost": lost,
        "changed": row.changed,
        **_bounds("entropy", row.entropy),
        **_bounds("jsd", row.jsd),
        "zeros": row.zeros,
        "seconds": round(row.seconds, 3),
        "verdict": verdict(difference, tolerance),
    }
    return {"group": row.group, **found} if row.group else found


def _bounds(name: str, value: Interval) -> dict[str, float | None]:
    """An estimate and its bounds under three keys; one question has no bounds for a mean."""
    known = {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
    return {key: None if math.isnan(number) else number for key, number in known.items()}


def recommendation_json(found: Recommendation) -> dict[str, Any]:
    """The recommendation as JSON values; ratios as text, exact, as a recipe takes them."""
    return {
        "max_ratio": ratio_text(found.max_ratio),
        "step": None if found.step is None else ratio_text(found.step),
        "stages": found.stages,
        "reason": found.reason,
        "questions_needed": found.questions_needed,
    }


def ratios_table(rows: Sequence[Measured], tolerance: float) -> Table:
    """One line a ratio; shares in per cent, differences in points, JSD and entropy in nats."""
    table = _table(f"{rows[0].n:,} questions; 95 % intervals in brackets")
    table.add_column("ratio", no_wrap=True)
    for heading in ("zeros", "accuracy", "difference", "other", "JSD", "entropy", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        difference = row.against(rows[0])
        whole = row.ratio == 0
        table.add_row(
            ratio_text(row.ratio),
            _percent(row.zeros),
            f"{_percent(row.accuracy.value)} ({_interval(row.accuracy)})",
            "" if whole else _points(difference),
            _percent(row.changed),
            f"{row.jsd.value:z.5f}",
            f"{row.entropy.value:.4f}",
            "" if whole else verdict(difference, tolerance),
        )
    return table


def groups_table(rows: Sequence[Measured], unmasked: Measured, grain: str) -> Table:
    """The most sensitive groups of layers, most sensitive first."""
    ordered = sorted(rows, key=lambda row: -row.jsd.value)
    more = f"; the first {_SHOWN} of {len(rows)}" if len(rows) > _SHOWN else ""
    common = shared_prefix([row.group for row in rows])
    table = _table(f"one {grain} masked at {ratio_text(rows[0].ratio)}, the others whole{more}")
    table.add_column(f"{grain} in {common[:-1]}" if common else grain, overflow="fold")
    for heading in ("zeros", "JSD", "other", "difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in ordered[:_SHOWN]:
        table.add_row(
            row.group.removeprefix(common),
            _percent(row.zeros),
            f"{row.jsd.value:z.5f}",
            _percent(row.changed),
            _points(row.against(unmasked)),
        )
    return table


def shared_prefix(names: Sequence[str]) -> str:
    """The modules that all names begin with, the last dot included; empty for one name."""
    common = os.path.commonprefix(list(names)) if len(names) > 1 else ""
    return common[: common.rfind(".") + 1]


def _table(caption: str) -> Table:
    return Table(
        box=None, pad_edge=False, collapse_padding=True, caption=caption, caption_justify="left"
    )


def mask_yaml(found: Recommendation) -> str:
    """The block to paste into a phase."""
    step = "" if found.step is None else f', step: "{ratio_text(found.step)}"'
    return f'mask: {{max_ratio: "{ratio_text(found.max_ratio)}"{step}}}'


def check_writable(file: Path, subject: Subject) -> None:
    """Before anything is measured: can the recommendation be written to ``file``?

    Raises:
        RecipeError: it exists, is no .yaml file, has no folder, or no phase masks the teacher.
    """
    if file.exists():
        raise RecipeError(f"--write {file}: is there already and is not overwritten; take another")
    if file.suffix not in (".yaml", ".yml") or not file.parent.is_dir():
        raise RecipeError(f"--write {file}: expected a .yaml file in a folder that is there")
    if not subject.from_recipe:
        raise RecipeError(f"--write {file}: TEACHER is a model; expected a recipe that uses it")
    if subject.mask is None:
        raise RecipeError(
            f"--write {file}: no phase of {subject.recipe.name} masks {subject.source.name}; "
            "expected one with a mask"
        )


def write_recipe(file: Path, subject: Subject, found: Recommendation, said: str) -> None:
    """The whole recipe, profile and --set included, with the recommendation in it.

    A file of its own that extends nothing: laid over a profile that names phases, a few lines would
    be overruled by it without a word. Only phases that mask this teacher change.

    Args:
        said: a line for the file's head.
    """
    phases = []
    for phase in subject.recipe.method.phases:
        if phase.teacher == subject.source.name and phase.mask is not None:
            ratios = {"max_ratio": Decimal(ratio_text(found.max_ratio))}
            if found.step is not None:
                ratios["step"] = Decimal(ratio_text(found.step))
            phase = phase.model_copy(update={"mask": phase.mask.model_copy(update=ratios)})
        phases.append(phase)
    method = subject.recipe.method.model_copy(update={"phases": tuple(phases)})
    recipe = subject.recipe.model_copy(update={"method": method})
    comment = "".join(f"# {line}\n" for line in said.splitlines())
    atomic_write_text(file, comment + resolved_yaml(recipe))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(value: Interval) -> str:
    return f"{100 * value.low:.1f}-{100 * value.high:.1f}"


def _points(value: Interval) -> str:
    low, high = f"{100 * value.low:+.1f}", f"{100 * value.high:+.1f}"
    return f"{100 * value.value:+.1f} ({low} to {high})"
