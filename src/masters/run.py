"""Does each stage of one or several plans that is not done, then writes the report."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, assert_never

from rich.console import Console

from masters.artifacts import (
    VERDICTS,
    RunInfo,
    StageContext,
    StageInfo,
    disk_full_error,
    is_disk_full,
    is_done,
    read_record,
    tidy,
)
from masters.crew import join
from masters.display import Display
from masters.errors import (
    Failure,
    MastersError,
    NonFiniteLossError,
    StageError,
    StagesFailedError,
)
from masters.plan import Plan, Stage, stage_is_done, write_plan
from masters.recipe import resolved_yaml
from masters.shares import WHOLE, ShardsMissingError, Share, lacking
from masters.specs import (
    AnySpec,
    EvaluateSpec,
    GenerateSpec,
    JudgeSpec,
    MaskSpec,
    ReportSpec,
    ScoreSpec,
    SignalSpec,
    StageSpec,
    TinyInit,
    TrainSpec,
)
from masters.stages.preflight import check, check_engines, check_servers
from masters.workers import Dispatch, Ended, Progressed, Task, Workers, configure, execute

REPORT = "report"
_POLL_S = 1.0
PRELOAD = (
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.processing_auto",
    # What the tiny models of the demo and the tests need; each child would import it anew.
    "transformers.models.qwen3_vl.modeling_qwen3_vl",
    "transformers.models.qwen3_vl.processing_qwen3_vl",
    "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl",
    "transformers.generation.utils",
    "torch.optim.adamw",
    *(
        f"masters.stages.{kind}"
        for kind in ("train", "mask", "generate", "judge", "score", "signal", "evaluate")
    ),
)
"""What the fork server imports once for all children."""


def dispatch_stage(spec: AnySpec, context: StageContext) -> Mapping[str, Any]:
    """Runs one stage; returns the metrics its record keeps."""
    if isinstance(spec, ReportSpec):
        from masters.stages import report

        return report.run(spec, context)
    configure(context.runtime)
    from masters.stages.out_of_memory import explained

    with explained(spec, context.runtime):
        return _computed(spec, context)


def _computed(spec: StageSpec, context: StageContext) -> Mapping[str, Any]:
    match spec:
        case TrainSpec():
            from masters.stages import train

            return train.run(spec, context)
        case MaskSpec():
            from masters.stages import mask

            return mask.run(spec, context)
        case GenerateSpec():
            from masters.stages import generate

            return generate.run(spec, context)
        case JudgeSpec():
            from masters.stages import judge

            return judge.run(spec, context)
        case ScoreSpec():
            from masters.stages import score

            return score.run(spec, context)
        case SignalSpec():
            from masters.stages import signal

            return signal.run(spec, context)
        case EvaluateSpec():
            from masters.stages import evaluate

            return evaluate.run(spec, context)
        case _:
            assert_never(spec)


def run_plan(
    plan: Plan,
    *,
    until: str | Sequence[str] | None = None,
    only: str | None = None,
    jobs: int | None = None,
    dispatch: Dispatch = dispatch_stage,
    console: Console | None = None,
    share: Share = WHOLE,
    wait: bool = False,
) -> tuple[str, ...]:
    """Runs one plan; see `run_plans`."""
    return run_plans(
        [plan], until=until, only=only, jobs=jobs, dispatch=dispatch, console=console,
        share=share, wait=wait,
    )  # fmt: skip


def run_plans(
    plans: Sequence[Plan],
    *,
    until: str | Sequence[str] | None = None,
    only: str | None = None,
    jobs: int | None = None,
    dispatch: Dispatch = dispatch_stage,
    console: Console | None = None,
    share: Share = WHOLE,
    wait: bool = False,
    reported: bool = True,
) -> tuple[str, ...]:
    """Does what is not done in any of the plans, shared stages once, then reports.

    A failing stage lets the ones beside it finish; no other is started. One of several workers
    makes its share of the shards of each stage; a stage without shards is done by the first that
    comes to it while the others wait.

    Args:
        plans: of one output folder.
        until: stage names; only these and what they read are done.
        only: one stage, whose inputs are done.
        jobs: stages at the same time; None: the recipes' ``runtime.jobs``.
        dispatch: runs one stage; with several jobs a module-level function.
        console: None: stderr.
        share: which of several workers this is; such a one does one stage at a time.
        wait: where shards of other workers are missing, until they are there.
        reported: write the report at the end of whole runs.

    Returns:
        The stages that are left for when other workers have made their shards; none but for one
        of several workers.

    Raises:
        StagesFailedError: for the first failure, and those beside it; each names stage and folder.
        MastersError: the work cannot begin.
    """
    # Workers that share stages by shard are no crew: each goes its own way.
    crew = join([plan.recipe.runtime for plan in plans]) if share.whole else None
    if crew is not None and crew.rank > 0:
        quiet_libraries()
        crew.follow(dispatch)
        return ()
    failed: str | None = "it was interrupted"
    shown = console or Console(stderr=True)
    try:
        together = dispatch if crew is None else crew.leading(dispatch)
        jobs = jobs if crew is None else 1  # children would be outside of the crew
        left = _run_plans(plans, until, only, jobs, together, shown, share, wait)
        if reported and not left and _whole(until, only):
            report(plans, dispatch=together)
        failed = None
        return left
    except OSError as error:
        failed = str(error)
        if not is_disk_full(error):
            raise
        raise disk_full_error(plans[0].out) from error
    except MastersError as error:
        failed = str(error)
        raise
    finally:
        if crew is not None:
            crew.end(failed)


def _run_plans(
    plans: Sequence[Plan],
    until: str | Sequence[str] | None,
    only: str | None,
    jobs: int | None,
    dispatch: Dispatch,
    console: Console,
    share: Share,
    wait: bool,
) -> tuple[str, ...]:
    _runnable(plans)
    quiet_libraries()
    stages = [name for name in _targets(until) if name != REPORT]
    wanted = [] if only == REPORT else _wanted(plans, stages, only)
    todo: list[Task] = []
    for stage, task in wanted:
        if stage_is_done(stage):
            tidy(stage.folder)  # where a kill came between its record and this
        else:
            todo.append(replace(task, share=share))
    opened = {stage.folder: plan.with_origins(stage) for plan in plans for stage in plan.stages}
    checked = [plan.recipe.runtime.images_checked for plan in plans]
    at_most = None if None in checked else max(n for n in checked if n is not None)
    check((opened[task.folder] for task in todo), images_checked=at_most)
    asking = ((task.name, task.spec, task.runtime) for task in todo)
    check_servers(asking, plans[0].out / VERDICTS)
    check_engines((task.name, task.spec, task.runtime) for task in todo)
    for plan in plans:
        write_plan(plan)
    jobs = jobs or max(plan.recipe.runtime.jobs for plan in plans)
    ordered = sorted(todo, key=_urgency(plans))
    with Display(console, len(ordered)) as display:
        if jobs == 1 or len(ordered) == 1 or not share.whole:
            left = _run_here(ordered, dispatch, display, wait=wait)
        else:
            left = _run_beside(ordered, dispatch, display, jobs)
    return tuple(left)


def _targets(until: str | Sequence[str] | None) -> list[str]:
    return [until] if isinstance(until, str) else list(until or ())


def _whole(until: str | Sequence[str] | None, only: str | None) -> bool:
    """Whether what was asked for ends with the report."""
    targets = _targets(until)
    return only in (None, REPORT) and (not targets or REPORT in targets)


def report(plans: Sequence[Plan], *, dispatch: Dispatch = dispatch_stage) -> Path | None:
    """Writes OUT/report over the plans unless it is there; None where nothing is evaluated.

    Raises:
        StageError: when an evaluate stage is not done.
    """
    evaluated = [
        stage for plan in plans for stage in plan.stages if isinstance(stage.spec, EvaluateSpec)
    ]
    if not evaluated:
        return None
    for stage in evaluated:
        if not stage_is_done(stage):
            raise StageError(f"{stage.name} is not done; the report needs it. Run the recipe first")
    folder = plans[0].out / REPORT
    if not report_is_done(plans):
        folder.mkdir(parents=True, exist_ok=True)
        context = StageContext(
            folder=folder,
            inputs={stage.name: stage.folder for stage in evaluated},
            runtime=plans[0].recipe.runtime,
            progress=lambda done, total, note: None,
        )
        dispatch(ReportSpec(runs=tuple(run_infos(plans)), out=plans[0].out), context)
        tidy(folder)
    return folder


def report_is_done(plans: Sequence[Plan]) -> bool:
    """Whether OUT/report speaks of exactly these runs' stages, or of these among others.

    And of the benchmarks and speeds that lie in OUT now.
    """
    out = plans[0].out
    try:
        text = (out / REPORT / "report.json").read_text(encoding="utf-8")
        content = json.loads(text)
        reported, beside = set(content["inputs"]), content["beside"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
    from masters.evaluation.beside import stamp  # arrow and numpy, which a plan does without

    wanted = {stage.fingerprint for plan in plans for stage in plan.stages}
    return wanted <= reported and beside == stamp(out)


def run_infos(plans: Sequence[Plan]) -> list[RunInfo]:
    """The plans' finished stages, as a report reads them."""
    uses = _uses(plans)
    return [
        RunInfo(
            name=plan.recipe.name,
            seed=plan.seed,
            recipe_yaml=resolved_yaml(plan.recipe),
            stages={
                stage.name: StageInfo(
                    kind=stage.kind,
                    folder=stage.folder,
                    seconds=float(read_record(stage.folder)["seconds"]),
                    shared=uses[stage.folder] > 1,
                )
                for stage in plan.stages
                if is_done(stage.folder)
            },
        )
        for plan in plans
    ]


# ------------------------------------------------------------------------------- what to do, when


def _runnable(plans: Sequence[Plan]) -> None:
    absent = [path for plan in plans for path in plan.absent]
    if absent:
        raise StageError(
            f"{', '.join(dict.fromkeys(absent))}: not here; a plan made from data.count, or from a "
            f"model's configuration alone, can be looked at, not run. Put the files there"
        )
    if len({plan.out for plan in plans}) > 1:
        raise StageError("the plans have different output folders; expected one for all")


def _wanted(
    plans: Sequence[Plan], targets: list[str], only: str | None
) -> list[tuple[Stage, Task]]:
    """The stages asked for with their tasks, each after what it reads, shared ones once."""
    uses = _uses(plans)
    found: dict[Path, tuple[Stage, Task]] = {}
    for plan in plans:
        if only is not None:
            names = {plan.stage(only).name}
            _inputs_done(plan, names)
        else:
            names = plan.needed_by(targets) if targets else set(plan.by_name)
        for stage in plan.stages:
            if stage.name in names and stage.folder not in found:
                everyones = uses[stage.folder] == len(plans)
                label = stage.name if everyones else f"{stage.name} [{plan.name}]"
                found[stage.folder] = (stage, _task(plan, stage, label))
    return list(found.values())


def stage_tasks(plan: Plan, targets: Sequence[str]) -> list[tuple[Stage, Task]]:
    """The named stages and what they read, each after what it reads, as they are executed.

    Raises:
        StageError: the plan cannot be run, or has no such stage.
    """
    _runnable([plan])
    return _wanted([plan], list(targets), None)


def _uses(plans: Sequence[Plan]) -> Counter[Path]:
    """How many plans read or make each folder."""
    return Counter(folder for plan in plans for folder in {stage.folder for stage in plan.stages})


def _inputs_done(plan: Plan, names: set[str]) -> None:
    for name in names:
        for role, above in plan.by_name[name].inputs.items():
            if not stage_is_done(plan.by_name[above]):
                raise StageError(
                    f"{name} reads {above} ({role}), which is not done. Use --until {name} to do "
                    f"it on the way"
                )


def _task(plan: Plan, stage: Stage, label: str) -> Task:
    above = {role: plan.by_name[name] for role, name in stage.inputs.items()}
    return Task(
        name=label,
        spec=stage.spec,
        fingerprint=stage.fingerprint,
        folder=stage.folder,
        inputs={role: source.folder for role, source in above.items()},
        input_fingerprints={role: source.fingerprint for role, source in above.items()},
        runtime=plan.recipe.runtime,
    )


def _urgency(plans: Sequence[Plan]) -> Callable[[Task], tuple[int, ...]]:
    """Sort key: tiny models first, then whatever most waits for, the longest first."""

    def key(task: Task) -> tuple[int, ...]:
        spec = task.spec
        tiny = isinstance(spec, TrainSpec) and isinstance(spec.init, TinyInit)
        work = spec.schedule.questions_per_step * spec.stop if isinstance(spec, TrainSpec) else 0
        return (0 if tiny else 1, -_height(plans, task.folder), -work)

    return key


def _height(plans: Sequence[Plan], folder: Path) -> int:
    """The longest chain of stages that waits for the folder."""
    best = 0
    for plan in plans:
        heights: dict[str, int] = {}
        for stage in reversed(plan.stages):
            own = heights.setdefault(stage.name, 0)
            for above in stage.inputs.values():
                heights[above] = max(heights.get(above, 0), own + 1)
            if stage.folder == folder:
                best = max(best, own)
    return best


# ------------------------------------------------------------------------------------ doing it


def _run_here(tasks: list[Task], dispatch: Dispatch, display: Display, *, wait: bool) -> list[str]:
    """One after the other, in this process; returns the names of those left to other workers."""
    left = list(tasks)
    others: dict[Path, tuple[Task, ShardsMissingError]] = {}
    while left or (wait and others):
        task = _next_ready(left, running=[task for task, _ in others.values()])
        if task is None:
            if not wait:
                break
            task, _ = others.pop(_wait_for(others))
        else:
            left.remove(task)
            display.start(task.name)
        try:
            missing = execute(
                task,
                dispatch,
                lambda done, total, note, name=task.name: display.update(name, done, total, note),
            )
        except MastersError as error:
            display.fail(task.name)
            diverged = isinstance(error, NonFiniteLossError)
            raise StagesFailedError([_failure(task, str(error), diverged=diverged)]) from error
        if missing is None:
            display.end(task.name, float(read_record(task.folder)["seconds"]))
        else:
            others[task.folder] = (task, missing)
            display.rest(task.name, str(missing))
    return [task.name for task in (*(task for task, _ in others.values()), *left)]


def _wait_for(others: Mapping[Path, tuple[Task, ShardsMissingError]]) -> Path:
    """The folder of the first of these stages whose shards are all there, or whose record is."""
    while True:
        for folder, (_, missing) in others.items():
            if is_done(folder) or not lacking(missing.paths):
                return folder
        time.sleep(_POLL_S)


def _run_beside(tasks: list[Task], dispatch: Dispatch, display: Display, jobs: int) -> list[str]:
    """Up to ``jobs`` at a time, each in a child."""
    workers = Workers(dispatch, PRELOAD)
    left = list(tasks)
    running: dict[str, Task] = {}
    failures: list[Failure] = []
    try:
        while running or (left and not failures):
            while left and not failures and len(running) < jobs:
                task = _next_ready(left, running.values())
                if task is None:
                    break
                left.remove(task)
                running[task.name] = task
                display.start(task.name)
                workers.start(task)
            for event in workers.events():
                match event:
                    case Progressed():
                        display.update(event.name, event.done, event.total, event.note)
                    case Ended(error=None):
                        del running[event.name]
                        display.end(event.name, event.seconds)
                    case Ended(error=str(error), diverged=diverged):
                        task = running.pop(event.name)
                        failures.append(_failure(task, error, diverged=diverged))
                        display.fail(event.name)
    finally:
        workers.kill()
    if failures:
        raise StagesFailedError(failures)
    return []


def _next_ready(left: Sequence[Task], running: Iterable[Task]) -> Task | None:
    """The first task that waits for none of the others, or None."""
    pending = {task.folder for task in (*left, *running)}
    return next((task for task in left if pending.isdisjoint(task.inputs.values())), None)


def _failure(task: Task, text: str, *, diverged: bool) -> Failure:
    said = f"{task.name} failed: {text}\n  folder: {task.folder}"
    if task.log.is_file():
        said += f"\n  traceback: {task.log}"
    return Failure(folder=task.folder, text=said, diverged=diverged)


def quiet_libraries() -> None:
    """Silences the chatter of libraries in this process and its children."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for name, value in {
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }.items():
        os.environ.setdefault(name, value)
