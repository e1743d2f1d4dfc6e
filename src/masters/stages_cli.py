"""The commands that do one kind's stages: mask, generate, judge, score, signal, train, evaluate."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from masters.cli_options import (
    ByOpt,
    JobsOpt,
    JsonOpt,
    MarkdownOpt,
    OutOpt,
    ProfileOpt,
    RecipeArg,
    SetOpt,
    WaitOpt,
    WorkerOpt,
    WorkersOpt,
    planned,
)
from masters.errors import MastersError
from masters.plan import Plan
from masters.shares import Share, share_from


def _verb(kind: str, what: str) -> Callable[..., None]:
    """The command that does one kind's stages with what they read, or one worker's share."""

    def verb(
        recipe: RecipeArg,
        profile: ProfileOpt = None,
        set_: SetOpt = None,
        out: OutOpt = None,
        jobs: JobsOpt = None,
        worker: WorkerOpt = None,
        workers: WorkersOpt = None,
        wait: WaitOpt = False,
    ) -> None:
        share = _share(worker, workers)
        _run_kind(planned(recipe, profile, set_, out), kind, jobs, share, wait=wait)

    verb.__name__ = kind
    verb.__doc__ = f"{what}, with the stages that this needs."
    return verb


def mask(
    recipe: RecipeArg,
    profile: ProfileOpt = None,
    set_: SetOpt = None,
    out: OutOpt = None,
    jobs: JobsOpt = None,
    materialise: Annotated[
        str | None,
        typer.Option(help="Also write every teacher masked at this ratio as a checkpoint."),
    ] = None,
) -> None:
    """Thresholds of the masked teachers, with the stages that this needs."""
    from masters.masked_checkpoints import write_masked_teachers

    made = planned(recipe, profile, set_, out)
    _run_kind(made, "mask", jobs)
    if materialise is not None:
        for folder in write_masked_teachers(made, materialise):
            typer.echo(str(folder))


generate = _verb("generate", "Responses of teachers and student")


def judge(
    recipe: RecipeArg,
    profile: ProfileOpt = None,
    set_: SetOpt = None,
    out: OutOpt = None,
    jobs: JobsOpt = None,
    worker: WorkerOpt = None,
    workers: WorkersOpt = None,
    wait: WaitOpt = False,
    audit: Annotated[
        int | None,
        typer.Option("--audit", min=1, help="Then mark so many of them yourself: who agrees?"),
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="A file with the marks of --audit, instead of a terminal.")
    ] = None,
) -> None:
    """Accuracy rewards of the responses, with the stages that this needs."""
    from masters.verdicts_view import verdict_table

    made = planned(recipe, profile, set_, out)
    if answers is not None and audit is None:
        raise MastersError("--answers holds marks of an audit; expected --audit N beside it")
    if not _run_kind(made, "judge", jobs, _share(worker, workers), wait=wait):
        return
    console = Console()
    table = verdict_table(made)
    if table is not None:
        console.print(table)
    if audit is not None:
        from masters.audit.command import audit as audited

        audited(made, audit, console, answers=answers)


score = _verb("score", "Reference log-probabilities of the responses")
signal = _verb("signal", "The teacher's signal on the responses, where the recipe stores it")


def train(
    recipe: RecipeArg,
    profile: ProfileOpt = None,
    set_: SetOpt = None,
    out: OutOpt = None,
    jobs: JobsOpt = None,
) -> None:
    """Students (and tiny teachers), with the stages that this needs."""
    _run_kind(planned(recipe, profile, set_, out), "train", jobs)


def evaluate(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe; with --model only its settings are used.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Any checkpoint: a model folder, a stage's folder, or a hub name."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of --model on the hub.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Questions for --model, as data.test takes them.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What to call --model in tables.")] = None,
    by: ByOpt = None,
    as_json: JsonOpt = False,
    markdown: MarkdownOpt = False,
    profile: ProfileOpt = None,
    set_: SetOpt = None,
    out: OutOpt = None,
    jobs: JobsOpt = None,
    worker: WorkerOpt = None,
    workers: WorkersOpt = None,
    wait: WaitOpt = False,
) -> None:
    """Answers to held-out questions: of a recipe's models, or of any checkpoint on any data."""
    from masters.evaluation.located import Located
    from masters.measuring.model_evaluation import Asked, evaluate_model
    from masters.measuring.output import form_of, print_evaluations

    form = form_of(as_json=as_json, markdown=markdown)
    if model is not None:
        asked = Asked(
            model=model, revision=revision, name=name, data=data, recipe=recipe, profile=profile,
            overrides=set_ or (), by=by or (),
        )  # fmt: skip
        found = [evaluate_model(asked, out or Path("runs/evaluate"))]
    elif recipe is None or revision or data or name:
        raise MastersError("expected a recipe, or --model with --data")
    else:
        made = planned(recipe, profile, set_, out)
        if not _run_kind(made, "evaluate", jobs, _share(worker, workers), wait=wait):
            return
        fields = made.recipe.evaluation.by
        found = [
            Located(name=stage.name.removeprefix("evaluate/"), folder=stage.folder, by=fields)
            for stage in made.stages
            if stage.kind == "evaluate"
        ]
    if found:
        print_evaluations(found, by or (), form, Console())


def _share(worker: int | None, workers: int | None) -> Share:
    """Which of several workers this process is, as told or as it was launched."""
    share = share_from(os.environ, worker, workers)
    if not share.whole:
        _stderr().print(f"this is {share}", highlight=False, markup=False)
    return share


def _run_kind(
    made: Plan, kind: str, jobs: int | None, share: Share | None = None, *, wait: bool = False
) -> bool:
    """Does one kind's stages with what they read; False where others have still to do theirs."""
    from masters.run import run_plan

    names = [stage.name for stage in made.stages if stage.kind == kind]
    if not names:
        _stderr().print(f"{made.recipe.name} has no {kind} stage; nothing to do", markup=False)
        return True
    left = run_plan(made, until=names, jobs=jobs, share=share, wait=wait)
    if left:
        _stderr().print(
            f"{share} has nothing more to do now. Not done: {', '.join(left)}. When the other "
            "workers have ended, run the same command again, or with --wait",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
    return not left


def _stderr() -> Console:
    return Console(stderr=True)
