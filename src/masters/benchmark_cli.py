"""``masters benchmark``: the paper's thirteen benchmarks through lmms-eval or VLMEvalKit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from masters.artifacts import atomic_write_text

app = typer.Typer(
    no_args_is_help=True,
    help="The paper's thirteen benchmarks, through lmms-eval or VLMEvalKit.",
)


@app.command("list")
def list_benchmarks() -> None:
    """The thirteen: what the harnesses call them, what is counted, who needs a judge."""
    from masters.evaluation.benchmarks.catalogue import BENCHMARKS

    table = Table(title="Benchmarks", title_justify="left")
    for heading in ("name", "title", "questions", "lmms-eval", "metric", "VLMEvalKit", "judge"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("name", "title"))
    for benchmark in BENCHMARKS:
        tasks = benchmark.tasks if len(benchmark.tasks) < 4 else ("blink_* (14 tasks)",)
        table.add_row(
            benchmark.name, benchmark.title, f"{benchmark.questions:,}", "\n".join(tasks),
            benchmark.metric, "\n".join(benchmark.kit), benchmark.judge or "no",
        )  # fmt: skip
    Console().print(table)


@app.command()
def run(
    model: Annotated[
        str, typer.Argument(help="A model folder, a stage's folder with model/, or a hub name.")
    ],
    benchmarks: Annotated[str, typer.Option(help="Names parted by commas, or all.")] = "all",
    python: Annotated[
        str, typer.Option(help="The interpreter of the harness's own environment.")
    ] = "lmms/bin/python",
    out: Annotated[Path, typer.Option(help="A folder for each benchmark is made in it.")] = Path(
        "runs/benchmarks"
    ),
    harness: Annotated[Literal["lmms-eval", "vlmevalkit"], typer.Option()] = "lmms-eval",
    checkout: Annotated[
        Path | None, typer.Option(help="A clone of VLMEvalKit, for --harness vlmevalkit.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="The harness's class for the model, where not known here.")
    ] = None,
    model_args: Annotated[
        list[str] | None, typer.Option(help="More for the adapter, as key=value. Repeatable.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="The judge's name with its date: gpt-4o-2024-11-20.")
    ] = None,
    judge_url: Annotated[
        str, typer.Option(help="Base of an OpenAI-compatible endpoint, up to /v1.")
    ] = "https://api.openai.com/v1",
    judge_key_variable: Annotated[
        str, typer.Option(help="The environment variable that holds its key.")
    ] = "OPENAI_API_KEY",
    batch: Annotated[int, typer.Option(min=1, help="lmms-eval's batch size.")] = 1,
    processes: Annotated[int, typer.Option(min=1, help="GPUs that share the questions.")] = 1,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Questions of each task, for a smoke run.")
    ] = None,
    any_version: Annotated[
        bool, typer.Option("--any-version", help="Take another version than the pinned one.")
    ] = False,
) -> None:
    """Runs what is not done yet and prints the row."""
    from masters.errors import StageError
    from masters.evaluation.benchmarks.catalogue import chosen
    from masters.evaluation.benchmarks.environment import harness_version, installed
    from masters.evaluation.benchmarks.harness import Judge, Request, adapter_of, check_judge
    from masters.evaluation.benchmarks.reading import Row
    from masters.evaluation.benchmarks.running import Place, run_benchmarks
    from masters.evaluation.benchmarks.table import print_table, table_json

    wanted = chosen(benchmarks)
    if limit is not None and harness == "vlmevalkit":
        raise StageError("--limit: VLMEvalKit has no such setting; leave it out")
    if strange := [pair for pair in model_args or () if "=" not in pair]:
        raise StageError(f"--model-args {strange[0]}: expected key=value")
    path = _model(model)
    # Not resolved: the interpreter of a virtual environment is a link, and is known by its place.
    python = os.path.abspath(python) if os.sep in python else python
    found = installed(python, os.environ)
    version = harness_version(harness, python, found, checkout, any_version=any_version)
    request = Request(
        harness=harness, version=version, model=path, adapter=adapter_of(path, harness, adapter),
        model_args=tuple(model_args or ()), batch=batch, limit=limit,
        judge=Judge(name=judge, url=judge_url, key_variable=judge_key_variable) if judge else None,
    )  # fmt: skip
    check_judge(wanted, request)
    place = Place(
        python=python, out=out, installed=found, variables=os.environ,
        checkout=checkout, processes=processes,
    )  # fmt: skip
    console = Console()
    scores = run_benchmarks(
        wanted,
        request,
        place,
        lambda words: console.print(words, markup=False, highlight=False, soft_wrap=True),
    )
    print_table(table_json([Row(label=out.name, scores=scores)]), console)


@app.command()
def read(
    folders: Annotated[
        list[str],
        typer.Argument(help="LABEL=FOLDER: the start, each step, Masters, the teacher."),
    ],
    benchmarks: Annotated[
        str | None, typer.Option(help="These must be there, and no others are shown.")
    ] = None,
    form: Annotated[
        Literal["terminal", "markdown", "html", "json"], typer.Option("--as")
    ] = "terminal",
    write: Annotated[Path | None, typer.Option(help="Into this file instead.")] = None,
) -> None:
    """The paper's table from folders of benchmark run, of lmms-eval or of VLMEvalKit."""
    from masters.evaluation.benchmarks import table
    from masters.evaluation.benchmarks.catalogue import chosen
    from masters.evaluation.benchmarks.reading import read_row

    wanted = None if benchmarks is None else chosen(benchmarks)
    content = table.table_json([read_row(words, wanted) for words in folders])
    if form == "terminal" and write is None:
        table.print_table(content, Console())
        return
    forms = {
        "terminal": table.markdown_table,
        "markdown": table.markdown_table,
        "html": table.html_table,
        "json": table.json_text,
    }
    made = forms[form](content)
    if write is None:
        typer.echo(made, nl=False)
        return
    write.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(write, made)


def _model(words: str) -> str:
    """The folder that is meant, whole; a hub name as it is."""
    path = Path(words)
    if (path / "model" / "config.json").is_file():
        path = path / "model"
    return str(path.resolve()) if path.is_dir() else words
