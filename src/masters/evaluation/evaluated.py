"""Which models were evaluated, under the names the report gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from masters.artifacts import canonical_json
from masters.evaluation.readings import Row, read_json
from masters.lineage import MARK, STUDENT

if TYPE_CHECKING:
    from masters.artifacts import RunInfo


PHASE = "/"
"""Between a recipe's name and the phase after which its student is meant."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One model's evaluation: which run and seed it speaks for, and what its stage left."""

    run: str
    seed: int
    folder: Path
    rows: list[Row]
    parameters: int

    @property
    def unmasked(self) -> list[Row]:
        """The result rows of the whole model."""
        return [row for row in self.rows if not row.get("ratio")]


def evaluations(runs: Sequence[RunInfo]) -> list[Evaluated]:
    """Every evaluated model once per seed: the start, then each recipe's student, then teachers.

    A student after an earlier phase stands before the one at the end as ``<recipe>/<phase>``.
    Among several teachers the one with the most parameters is called ``teacher``, the others
    ``teacher-<name>``. Recipes may have one model evaluated at different masking ratios; of those
    the evaluation with the most rows is kept. A different model under a name already taken for
    that seed (recipes that start from different students) gets the recipe's name behind it.
    """
    taken: dict[tuple[str, int], Evaluated] = {}
    for run in runs:
        for item in _evaluations_of(run):
            known = taken.get((item.run, item.seed))
            if known is not None and _identity(known.folder) != _identity(item.folder):
                item = replace(item, run=f"{item.run}-{run.name}")
                known = None
            if known is None or len(item.rows) > len(known.rows):
                taken[item.run, item.seed] = item
    return sorted(taken.values(), key=lambda item: (rank(item.run), item.seed))


def rank(run: str) -> int:
    """Where a model stands in tables: 0 the start, 1 a recipe's student, 2 a teacher."""
    if run == "start" or run.startswith("start-"):
        return 0
    return 2 if run == "teacher" or run.startswith("teacher-") else 1


def is_end(run: str) -> bool:
    """Whether the model is what a recipe leaves, rather than its student after an earlier phase."""
    return rank(run) == 1 and PHASE not in run


def _evaluations_of(run: RunInfo) -> list[Evaluated]:
    found = [
        Evaluated(
            run=name.removeprefix("evaluate/"),
            seed=run.seed,
            folder=stage.folder,
            rows=results["rows"],
            parameters=int(results["parameters"]),
        )
        for name, stage in run.stages.items()
        if name.startswith("evaluate/")
        for results in [read_json(stage.folder / "results.json")]
    ]
    teachers = [item for item in found if item.run.startswith("teacher-")]
    largest = max(teachers, key=lambda item: item.parameters, default=None)
    return [
        replace(
            item,
            run="teacher" if item is largest else _student(item.run, run),
        )
        for item in found
    ]


def _student(name: str, run: RunInfo) -> str:
    """The recipe's name for its student, with the phase behind it where that is not the last."""
    model, mark, phase = name.partition(MARK)
    if model != STUDENT:
        return name
    if not mark:
        return run.name
    parts = [stage.split("/")[1] for stage in run.stages if stage.startswith("train/")]
    called = next((part for part in parts if part.partition("-")[0] == phase), phase)
    return f"{run.name}{PHASE}{called}"


def _identity(folder: Path) -> str:
    """What an evaluation speaks about, its masks left aside: equal for equal models and data."""
    record = read_json(folder / "record.json")
    spec = {key: value for key, value in record["spec"].items() if key != "ratios"}
    inputs = {role: value for role, value in record["inputs"].items() if role != "thresholds"}
    return canonical_json([spec, inputs])
