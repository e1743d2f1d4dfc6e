"""`masters ablate`: does a suite's runs, then writes what they say of its claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from masters.ablation.arms import EVERYTHING, Arms, Key, Selection, check_budgets
from masters.ablation.results import claims_of, collect, read_suites, tuned_value
from masters.ablation.running import run_past_failures
from masters.ablation.suite import Suite, load_suite
from masters.ablation.tuning import Tuning, tuning_of
from masters.ablation.views import arms_table, outcome_table, plan_table
from masters.ablation.writing import check_place, write_results
from masters.crew import started
from masters.dispatch import dispatch_stage
from masters.errors import Failure, MastersError, StageError
from masters.plan import Plan
from masters.workers import Dispatch

_KNOWN_PLACES = ("benchmarks", "docs")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A suite, ready to be run.

    Args:
        keys: the runs that were chosen now.
    """

    suite: Suite
    arms: Arms
    tuning: Tuning | None
    keys: tuple[Key, ...]


def ask(path: Path, out: Path | None, selection: Selection = EVERYTHING) -> Asked:
    """The suite with everything checked that can be before any work.

    Raises:
        RecipeError: the suite, or a recipe that it makes, says something it may not say.
    """
    suite = load_suite(path)
    arms = Arms(suite, out or Path("runs") / suite.name)
    keys = tuple(selection.keys(suite))
    for data in suite.data:
        for arm in suite.arms:
            arms.recipe(data, arm)
    check_budgets(arms)
    return Asked(suite=suite, arms=arms, tuning=tuning_of(arms), keys=keys)


def ablate(
    path: Path,
    *,
    out: Path | None = None,
    results: Path | None = None,
    jobs: int | None = None,
    selection: Selection = EVERYTHING,
    console: Console,
    dispatch: Dispatch = dispatch_stage,
) -> None:
    """Tunes, runs, and writes results and pages over all that is complete.

    Args:
        path: the suite's file.
        out: where stages go; None: runs/<suite>.
        results: where results and pages go; None: see `results_folder`.
        jobs: stages at the same time; None: the recipes' own.
        selection: what is run now; pages are over everything that is there.

    Raises:
        RecipeError: see `ask`.
        StageError: stages failed; after everything else was done and written.
    """
    if started()[1] > 1:
        raise MastersError("ablate is one process; expected it without torchrun. Use --jobs")
    asked = ask(path, out, selection)
    folder = results or results_folder(path, asked.arms.out)
    check_place(folder, asked.suite.name)
    failures: list[Failure] = []
    progress = Console(stderr=True)
    if asked.tuning is not None:
        failures += asked.tuning.run(asked.keys, jobs=jobs, dispatch=dispatch, console=progress)
    plans = planned(asked)
    failures += run_past_failures(plans, jobs=jobs, dispatch=dispatch, console=progress)
    found = collect(asked.arms, asked.tuning, command_of(path))
    written = write_results(folder, found)
    console.print(arms_table(found))
    console.print(outcome_table(found))
    for place in written:
        console.print(str(place), markup=False, soft_wrap=True, highlight=False)
    unfinished = [key for key in asked.keys if vars(key) in _missing(found)]
    if failures or unfinished:
        raise StageError(_told(failures, unfinished, found["missing"]))


def rewrite_pages(path: Path, *, out: Path | None, results: Path | None, console: Console) -> None:
    """Writes the pages again with the claims as the suite words them now; nothing is run.

    Raises:
        RecipeError: the suite says something it may not say.
        StageError: its results are not there, or lack an arm or data set that a claim names.
    """
    suite = load_suite(path)
    folder = results or results_folder(path, out or Path("runs") / suite.name)
    found = next((one for one in read_suites(folder) if one["suite"] == suite.name), None)
    if found is None:
        raise StageError(f"{folder}: has no results of {suite.name}; run it without --pages first")
    claims = claims_of(suite)
    for claim in claims:
        arms = [*claim["first"], *claim["second"]]
        lacking = {*arms, *claim["data"]} - {*found["arms"], *found["data"]}
        if lacking:
            raise StageError(
                f"{folder / suite.name}.json: knows nothing of {', '.join(sorted(lacking))}, which "
                f"claim {claim['id']} names; run the suite without --pages first"
            )
    for place in write_results(folder, found | {"about": suite.about, "claims": claims}):
        console.print(str(place), markup=False, soft_wrap=True, highlight=False)


def planned(asked: Asked) -> list[Plan]:
    """The plans of the chosen runs, but for those that have no value of the tuned key yet."""
    values = [(key, tuned_value(asked.tuning, key.data, key.arm)) for key in asked.keys]
    return [asked.arms.plan(key, value) for key, value in values if not isinstance(value, str)]


def show_plan(
    path: Path, *, out: Path | None, selection: Selection = EVERYTHING, console: Console
) -> None:
    """Prints what is to be done; nothing is written.

    Raises:
        RecipeError: see `ask`.
    """
    asked = ask(path, out, selection)
    tries = [] if asked.tuning is None else asked.tuning.to_do(asked.keys)
    runs: list[tuple[Key, Plan, bool]] = []
    for key in asked.keys:
        value = tuned_value(asked.tuning, key.data, key.arm)
        runs.append((key, asked.arms.plan(key, None if isinstance(value, str) else value),
                     not isinstance(value, str)))  # fmt: skip
    console.print(plan_table(asked.suite, runs, tries))


def command_of(path: Path) -> str:
    """What is written beside the numbers: the whole suite, from its repository's root."""
    root = _repository(path) or Path.cwd()
    whole = path.resolve()
    return f"masters ablate {whole.relative_to(root) if whole.is_relative_to(root) else path}"


def results_folder(path: Path, out: Path) -> Path:
    """docs/results of the repository whose benchmarks/ or docs/ the suite lies in; else in OUT."""
    root = _repository(path)
    return out / "results" if root is None else root / "docs" / "results"


def _repository(path: Path) -> Path | None:
    """The folder with docs/results whose benchmarks/ or docs/ the file lies in."""
    folders = path.resolve().parents
    for below, root in zip(folders, folders[1:], strict=False):
        if below.name in _KNOWN_PLACES and (root / "docs" / "results").is_dir():
            return root
    return None


def _missing(found: dict) -> list[dict]:
    return [{k: row[k] for k in ("data", "arm", "seed")} for row in found["missing"]]


def _told(failures: Sequence[Failure], unfinished: Sequence[Key], missing: Sequence[dict]) -> str:
    why = {(row["data"], row["arm"], row["seed"]): row["why"] for row in missing}
    lines = [failure.text for failure in failures]
    lines += [f"{len(unfinished)} of the runs asked for are not complete:"] if unfinished else []
    lines += [f"  {key}: {why[key.data, key.arm, key.seed]}" for key in unfinished]
    return "\n".join(lines)
