"""``masters ablate``: a suite of arms, seeds and data sets, and what it says of its claims."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def ablate(
    suite: Annotated[Path, typer.Argument(help="The suite's YAML file.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where stages go; runs/<suite> if not given.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            help="Where results and pages go; docs/results for a suite below benchmarks/ or docs/ "
            "of a repository, else OUT/results."
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Stages at the same time, instead of the recipes'."),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what is to do; do nothing.")] = False,
    pages: Annotated[
        bool,
        typer.Option(
            "--pages", help="Run nothing: results as they lie there, claims as worded now."
        ),
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="Run only these data sets now, parted by commas.")
    ] = None,
    arms: Annotated[
        str | None, typer.Option(help="Run only these arms now, parted by commas.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Run only these seeds now, parted by commas.")
    ] = None,
) -> None:
    """Arms x seeds x data sets over shared stages; claims as paired differences, in pages."""
    from masters.ablation import command
    from masters.ablation.arms import Selection
    from masters.errors import RecipeError

    try:
        chosen = None if seeds is None else tuple(int(seed) for seed in _parted(seeds))
    except ValueError:
        raise RecipeError(f"--seeds {seeds}: expected numbers parted by commas") from None
    selection = Selection(
        data=None if data is None else _parted(data),
        arms=None if arms is None else _parted(arms),
        seeds=chosen,
    )
    if pages and (plan or data or arms or seeds or jobs):
        raise RecipeError("--pages runs nothing; expected at most --out and --results beside it")
    if plan:
        command.show_plan(suite, out=out, selection=selection, console=Console())
        return
    if pages:
        command.rewrite_pages(suite, out=out, results=results, console=Console())
        return
    command.ablate(
        suite, out=out, results=results, jobs=jobs, selection=selection, console=Console()
    )


def _parted(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
