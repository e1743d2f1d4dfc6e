"""What several commands of ``masters`` take, and the plan that they mean by it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from masters.plan import Plan, make_plan
from masters.recipe import load_recipe

RecipeArg = Annotated[str, typer.Argument(help="A YAML file, or a shipped recipe's name.")]
ProfileOpt = Annotated[
    str | None, typer.Option("--profile", help="A YAML file or shipped profile laid over it.")
]
SetOpt = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value, such as method.optimiser.lr=1e-6. Repeatable."),
]
OutOpt = Annotated[
    Path | None, typer.Option("--out", help="Where stages go; runs/<recipe> if not given.")
]
JobsOpt = Annotated[
    int | None,
    typer.Option("--jobs", min=1, help="Stages at the same time, instead of the recipe's."),
]
ByOpt = Annotated[
    list[str] | None,
    typer.Option("--by", help="A table by this field of the questions, beside kind. Repeatable."),
]
JsonOpt = Annotated[bool, typer.Option("--json", help="Machine-readable.")]
MarkdownOpt = Annotated[bool, typer.Option("--markdown", help="As a Markdown table.")]
WorkerOpt = Annotated[
    int | None, typer.Option("--worker", min=0, help="Which of --workers this is, from 0.")
]
WorkersOpt = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1,
        help="So many processes share the shards; else as torchrun or SLURM say, else one.",
    ),
]  # fmt: skip
WaitOpt = Annotated[
    bool, typer.Option("--wait", help="Until the other workers have made their shards.")
]
SeedsOpt = Annotated[int, typer.Option("--seeds", min=1, help="method.seed 0 .. N-1.")]


def planned(
    recipe: str, profile: str | None, overrides: Sequence[str] | None, out: Path | None
) -> Plan:
    """The plan of a recipe as a command was given it; stages go to ``runs/`` unless told."""
    loaded = load_recipe(recipe, profile, overrides or ())
    return make_plan(loaded, out or Path("runs") / loaded.name)
