"""Does each stage of one or several plans that is not done, then writes the report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

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
from masters.dispatch import dispatch_stage, quiet_libraries
from masters.display import Display
from masters.errors import MastersError, StageError
from masters.execution import Execute, by_all, by_one, follow, run_beside, run_here
from masters.plan import Plan, Stage, stage_is_done, write_plan
from masters.recipe import resolved_yaml
from masters.shares import WHOLE, Share
from masters.specs import EvaluateSpec, ReportSpec, TinyInit, TrainSpec
from masters.stages.preflight import check, check_engines, check_servers
from masters.workers import Dispatch, Task

REPORT = "report"


def run_plan(
    plan: Plan,
    *,
    until: str | Sequence[str] | None = None,
    only: str | None = None,
    jobs: int | None = None,
    dispatch: Dispatch = dispatch_stage,
    console: Console | None = None,
    share: Share | None = None,
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
    share: Share | None = None,
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
        share: which of several workers this is; such a one does one stage at a time. None: what
            torchrun started runs the plans as one, which ``runtime.engine`` must allow.
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
    crew = join([plan.recipe.runtime for plan in plans]) if share is None else None
    if crew is not None and crew.rank > 0:
        quiet_libraries()
        follow(crew, dispatch)
        return ()
    failed: str | None = "it was interrupted"
    shown = console or Console(stderr=True)
    try:
        done_by = by_one(dispatch) if crew is None else by_all(crew, dispatch)
        jobs = jobs if crew is None else 1  # children would be outside of the crew
        left = _run_plans(
            plans, until, only, jobs, dispatch, done_by, shown, share or WHOLE, wait=wait
        )
        if reported and not left and _whole(until, only):
            report(plans, dispatch=dispatch)
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
    done_by: Execute,
    console: Console,
    share: Share,
    *,
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
            left = run_here(ordered, done_by, display, wait=wait)
        else:
            left = run_beside(ordered, dispatch, display, jobs)
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
