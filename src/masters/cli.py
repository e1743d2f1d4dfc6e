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
from masters.crew import leads
from masters.errors import MastersError
from masters.plan import Plan, make_plan, read_plan
from masters.recipe import load_recipe
from masters.shares import Share, share_from

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Distil a large vision-language model into a compact one.",
)
app.add_typer(benchmark_app, name="benchmark")
app.command()(ablate)

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

_INTERRUPTED = 130
DEMO = ("sft", "distill", "masters")


def main() -> None:
    """Runs the command line; exit code 1 with ``error: ...`` on stderr for what went wrong."""
    try:
        app(standalone_mode=True)
    except MastersError as error:
        if os.environ.get("MASTERS_DEBUG"):
            raise
        _stderr().print(
            f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(1)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            _stderr().print("interrupted. Run the same command again; it goes on where it stopped")
        raise


@app.command()
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

    made = _plan(recipe, profile, set_, out)
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


@app.command()
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

    made = _plan(recipe, profile, set_, out)
    began = time.monotonic()
    run_plan(made, until=until, only=only, jobs=jobs)
    if until is None and only in (None, "report") and leads():
        _show_report([made], began)


def _verb(kind: str, what: str) -> None:
    """Adds the command that does one kind's stages with what they read, or one worker's share."""

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
        _run_kind(_plan(recipe, profile, set_, out), kind, jobs, share, wait=wait)

    app.command(kind, help=f"{what}, with the stages that this needs.")(verb)


@app.command()
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

    made = _plan(recipe, profile, set_, out)
    _run_kind(made, "mask", jobs)
    if materialise is not None:
        for folder in write_masked_teachers(made, materialise):
            typer.echo(str(folder))


_verb("generate", "Responses of teachers and student")


@app.command()
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

    made = _plan(recipe, profile, set_, out)
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


_verb("score", "Reference log-probabilities of the responses")
_verb("signal", "The teacher's signal on the responses, where the recipe stores it")


@app.command()
def train(
    recipe: RecipeArg,
    profile: ProfileOpt = None,
    set_: SetOpt = None,
    out: OutOpt = None,
    jobs: JobsOpt = None,
) -> None:
    """Students (and tiny teachers), with the stages that this needs."""
    _run_kind(_plan(recipe, profile, set_, out), "train", jobs)


@app.command()
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
        made = _plan(recipe, profile, set_, out)
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


@app.command()
def report(
    recipe: RecipeArg, profile: ProfileOpt = None, set_: SetOpt = None, out: OutOpt = None
) -> None:
    """report.html and report.json over what is evaluated."""
    from masters.run import run_plan

    made = _plan(recipe, profile, set_, out)
    began = time.monotonic()
    run_plan(made, only="report")
    if leads():
        _show_report([made], began)


@app.command()
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


@app.command()
def demo(
    seeds: SeedsOpt = 1,
    out: Annotated[Path, typer.Option("--out")] = Path("runs/demo"),
    set_: SetOpt = None,
    jobs: JobsOpt = None,
) -> None:
    """The whole method in minutes, on tiny models and rendered scenes."""
    _compare(DEMO, seeds, "tiny", set_ or [], out, jobs)


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


def _plan(
    recipe: str, profile: str | None, overrides: Sequence[str] | None, out: Path | None
) -> Plan:
    loaded = load_recipe(recipe, profile, overrides or ())
    return make_plan(loaded, out or Path("runs") / loaded.name)


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


def _stderr() -> Console:
    return Console(stderr=True)
