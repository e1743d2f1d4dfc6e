"""The commands that make no stage: plan, calibrate, speed, show, doctor."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from masters.cli_options import (
    JsonOpt,
    MarkdownOpt,
    OutOpt,
    ProfileOpt,
    RecipeArg,
    SetOpt,
    planned,
)
from masters.errors import MastersError
from masters.plan import Plan, read_plan


def plan(
    recipe: RecipeArg,
    profile: ProfileOpt = None,
    set_: SetOpt = None,
    out: OutOpt = None,
    as_json: JsonOpt = False,
    resolved: Annotated[bool, typer.Option("--yaml", help="The resolved recipe instead.")] = False,
    sizes: Annotated[
        bool, typer.Option("--sizes", help="Parameters, masked tensors and bytes of the models.")
    ] = False,
    estimate: Annotated[
        str | None,
        typer.Option(help="Memory and hours on a cluster: a YAML file, or a shipped one's name."),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="With --estimate: so many, instead of the cluster's.")
    ] = None,
    assume: Annotated[
        list[str] | None,
        typer.Option(help="With --estimate: KEY=NUMBER of the questions. Repeatable."),
    ] = None,
) -> None:
    """The stages as a tree: done, to do or drifted. Nothing is written."""
    from masters.plan_view import plan_tree, sizes_tables

    made = planned(recipe, profile, set_, out)
    if estimate is not None:
        _estimate(made, estimate, gpus, assume or (), as_json=as_json)
        return
    if gpus is not None or assume:
        raise MastersError("--gpus and --assume are of an estimate; expected --estimate CLUSTER")
    if resolved:
        typer.echo(made.as_json()["yaml"], nl=False)
        return
    sized = None
    if sizes:
        from masters.sizes import plan_sizes

        sized = plan_sizes(made)
    if as_json:
        content = made.as_json() | (sized.as_json() if sized else {})
        typer.echo(json.dumps(content, indent=1, ensure_ascii=False))
        return
    console = Console()
    console.print(plan_tree(made))
    if sized:
        console.print(sizes_tables(sized))


def calibrate(
    teacher: Annotated[
        str,
        typer.Argument(help="A model folder, a stage's folder, a hub name, or a recipe."),
    ],
    questions: Annotated[
        str | None,
        typer.Option(help="Held-out questions, as data.test takes them; a recipe's validation."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--teacher", help="Which of the recipe's teachers.")
    ] = None,
    ratios: Annotated[
        str, typer.Option(help="Ratios to test, parted by commas.")
    ] = "0.05,0.1,0.15,0.2,0.25,0.3,0.4,0.5,0.6,0.7",
    sample: Annotated[int, typer.Option(help="Questions at most.")] = 1024,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    tolerance: Annotated[float, typer.Option(help="How much accuracy may be lost.")] = 0.02,
    per: Annotated[
        list[str] | None,
        typer.Option(help="Sensitivity too, by part, block or layer. Repeatable; costs time."),
    ] = None,
    per_ratio: Annotated[
        str | None, typer.Option(help="The ratio of --per; the recommended one if not given.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Write the whole recipe with the result to a new file.")
    ] = None,
    profile: ProfileOpt = None,
    set_: SetOpt = None,
    out: OutOpt = None,
) -> None:
    """The largest mask that keeps a teacher working, as max_ratio and step."""
    from masters.calibration.command import calibrate as measure
    from masters.calibration.request import read_request

    request = read_request(
        ratios=ratios, sample=sample, seed=seed, tolerance=tolerance,
        per=per or (), per_ratio=per_ratio, write=write,
    )  # fmt: skip
    measure(
        teacher, request, name=name, questions=questions, profile=profile, overrides=set_ or (),
        out=out, command=["masters", *sys.argv[1:]], console=Console(),
    )  # fmt: skip


def speed(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Model folders, stages' folders, hub names, tiny presets; or a recipe, for its "
            "student and teachers."
        ),
    ],
    data: Annotated[
        str | None, typer.Option(help="Questions, as data.test takes them; else rendered scenes.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Decoded for each question.")] = 64,
    batches: Annotated[str, typer.Option(help="Questions at a time, parted by commas.")] = "1,8",
    repeats: Annotated[int, typer.Option(help="Timed repeats.")] = 5,
    warm_up: Annotated[int, typer.Option(help="Repeats before them that are not timed.")] = 1,
    as_json: JsonOpt = False,
    markdown: MarkdownOpt = False,
    profile: ProfileOpt = None,
    set_: SetOpt = None,
    out: Annotated[Path, typer.Option("--out")] = Path("runs/speed"),
) -> None:
    """Time to the first token, tokens a second and memory of one or several models."""
    from masters.evaluation.speed import speed_sheet
    from masters.measuring.output import form_of, print_sheet
    from masters.measuring.speed import measure_speed, read_load
    from masters.measuring.speed_subjects import find_subjects

    form = form_of(as_json=as_json, markdown=markdown)
    load = read_load(tokens=tokens, batches=batches, repeats=repeats, warm_up=warm_up)
    subjects = find_subjects(models, data=data, profile=profile, overrides=set_ or ())
    found = measure_speed(subjects, load, out, ["masters", *sys.argv[1:]])
    print_sheet(speed_sheet(found), found.as_json(), form, Console())


def show(
    stage: Annotated[
        str, typer.Argument(help="A stage's name, such as generate/0-teacher/student.")
    ],
    question: Annotated[str, typer.Option("--question", help="The question's id.")],
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Which recipe, where OUT holds several.")
    ] = None,
    out: Annotated[Path, typer.Option("--out")] = Path("runs/demo"),
) -> None:
    """What exactly was asked and answered: prompt, ids, image, responses, rewards."""
    from masters.show import show_question

    show_question(_run_plan_with(stage, out, recipe), stage, question, Console())


def doctor(
    verify: Annotated[
        Path | None, typer.Option("--verify", help="Hash every model of this output folder.")
    ] = None,
) -> None:
    """What this machine and installation offer."""
    from masters.doctor import print_doctor

    print_doctor(Console(), verify)


def _estimate(
    made: Plan, name: str, gpus: int | None, assumed: Sequence[str], *, as_json: bool
) -> None:
    from masters.estimate.cluster import load_cluster
    from masters.estimate.plan import estimate_plan
    from masters.estimate.view import estimate_tables

    found = estimate_plan(made, load_cluster(name, gpus=gpus), assumed)
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=1, ensure_ascii=False))
        return
    Console().print(estimate_tables(found))


def _run_plan_with(stage: str, out: Path, recipe: str | None) -> Plan:
    """The plan last run in ``out`` that has the stage; of the recipe, where one is named."""
    pattern = f"{recipe}.plan.json" if recipe else "*.plan.json"
    paths = sorted(out.glob(pattern))
    if not paths:
        raise MastersError(
            f"{out}: holds no {pattern}; expected the output folder of a run (--out)"
        )
    plans = [read_plan(path) for path in paths]
    return next((found for found in plans if stage in found.by_name), plans[0])
