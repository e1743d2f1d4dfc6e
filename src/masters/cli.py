"""The ``masters`` command: thin verbs over recipe, plan and run; errors become one clear line."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from masters.ablation_cli import ablate
from masters.benchmark_cli import app as benchmark_app
from masters.cli_options import (
    ByOpt,
    JobsOpt,
    JsonOpt,
    MarkdownOpt,
    OutOpt,
    ProfileOpt,
    RecipeArg,
    SeedsOpt,
    SetOpt,
    planned,
)
from masters.crew import leads
from masters.errors import MastersError
from masters.looking_cli import calibrate, doctor, plan, show, speed
from masters.plan import Plan, make_plan
from masters.recipe import load_recipe
from masters.stages_cli import evaluate, generate, judge, mask, score, signal, train

_INTERRUPTED = 130
DEMO = ("sft", "distill", "masters", "masters_light")


def main() -> None:
    """Runs the command line; exit code 1 with ``error: ...`` on stderr for what went wrong."""
    try:
        app(standalone_mode=True)
    except MastersError as error:
        if os.environ.get("MASTERS_DEBUG"):
            raise
        Console(stderr=True).print(
            f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(1)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            Console(stderr=True).print(
                "interrupted. Run the same command again; it goes on where it stopped"
            )
        raise


def run(
    recipe: RecipeArg,
    profile: ProfileOpt = None,
    set_: SetOpt = None,
    out: OutOpt = None,
    jobs: JobsOpt = None,
    until: Annotated[str | None, typer.Option(help="This stage and what it reads.")] = None,
    only: Annotated[str | None, typer.Option(help="This stage alone.")] = None,
) -> None:
    """Does every stage that is not done, then writes the report."""
    from masters.run import run_plan

    made = planned(recipe, profile, set_, out)
    began = time.monotonic()
    run_plan(made, until=until, only=only, jobs=jobs)
    if until is None and only in (None, "report") and leads():
        _show_report([made], began)


def report(
    recipe: RecipeArg, profile: ProfileOpt = None, set_: SetOpt = None, out: OutOpt = None
) -> None:
    """report.html and report.json over what is evaluated."""
    from masters.run import run_plan

    made = planned(recipe, profile, set_, out)
    began = time.monotonic()
    run_plan(made, only="report")
    if leads():
        _show_report([made], began)


def compare(
    recipes: Annotated[
        list[str],
        typer.Argument(
            help="Recipes to run, or two finished evaluations: an evaluate stage's folder, an "
            "output folder, or OUT:NAME."
        ),
    ],
    seeds: SeedsOpt = 1,
    profile: ProfileOpt = None,
    set_: SetOpt = None,
    out: OutOpt = None,
    jobs: JobsOpt = None,
    by: ByOpt = None,
    shared: Annotated[
        bool, typer.Option("--shared", help="Of two evaluations, only the questions both have.")
    ] = False,
    as_json: JsonOpt = False,
    markdown: MarkdownOpt = False,
) -> None:
    """Several recipes over shared stages, in one table; or two finished evaluations, paired."""
    from masters.measuring.output import are_evaluations, form_of, print_comparison

    form = form_of(as_json=as_json, markdown=markdown)
    if are_evaluations(recipes):
        if profile or set_ or out or jobs or seeds > 1:
            raise MastersError("two finished evaluations: nothing is run, so expected no setting")
        print_comparison(recipes, by or (), form, Console(), shared_only=shared)
        return
    if by or shared or form != "table":
        raise MastersError(
            "--by, --shared, --json and --markdown are for two finished evaluations; expected "
            "folders or OUT:NAME instead of recipes. report.json has the numbers of recipes"
        )
    _compare(recipes, seeds, profile, set_ or [], out or Path("runs/compare"), jobs)


def demo(
    seeds: SeedsOpt = 1,
    out: Annotated[Path, typer.Option("--out")] = Path("runs/demo"),
    set_: SetOpt = None,
    jobs: JobsOpt = None,
) -> None:
    """The whole method in minutes, on tiny models and rendered scenes."""
    _compare(DEMO, seeds, "tiny", set_ or [], out, jobs)


def _compare(
    recipes: Sequence[str],
    seeds: int,
    profile: str | None,
    overrides: Sequence[str],
    out: Path,
    jobs: int | None,
) -> None:
    from masters.run import run_plans

    loaded = [load_recipe(recipe, profile, overrides) for recipe in dict.fromkeys(recipes)]
    names = [recipe.name for recipe in loaded]
    if len(set(names)) < len(names):
        raise MastersError(f"two recipes share a name: {', '.join(names)}; rename one file")
    plans = [make_plan(recipe, out, seed=seed) for recipe in loaded for seed in range(seeds)]
    began = time.monotonic()
    run_plans(plans, jobs=jobs)
    if leads():
        _show_report(plans, began)


def _show_report(plans: Sequence[Plan], began: float) -> None:
    """The closing table, where the report is, and how long it took."""
    from masters.run import REPORT
    from masters.verdicts_view import missing_lines

    console = Console()
    folder = plans[0].out / REPORT
    path = folder / "report.json"
    if path.is_file():
        from masters.evaluation.report import terminal_table

        console.print(terminal_table(json.loads(path.read_text(encoding="utf-8"))))
        for name in ("report.html", "report.json"):
            console.print(f"{folder / name}", markup=False, soft_wrap=True, highlight=False)
    for line in missing_lines(plans):
        console.print(line, markup=False, soft_wrap=True, highlight=False)
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    console.print(f"{minutes} min {seconds} s", highlight=False)


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Distil a large vision-language model into a compact one.",
)
app.add_typer(benchmark_app, name="benchmark")
for _command in (
    ablate, plan, run, mask, generate, judge, score, signal, train, evaluate, report, compare,
    demo, calibrate, speed, show, doctor,
):  # fmt: skip
    app.command()(_command)
