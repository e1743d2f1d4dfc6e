"""Tasks carried out, each after what it reads: in this process, in children, by all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from masters.artifacts import is_done, read_record
from masters.crew import Crew
from masters.display import Display
from masters.errors import Failure, MastersError, NonFiniteLossError, StagesFailedError
from masters.shares import ShardsMissingError, Share, lacking
from masters.specs import GenerateSpec, JudgeSpec, StageSpec
from masters.workers import (
    SHARED,
    Dispatch,
    Ended,
    Progressed,
    Task,
    Workers,
    execute,
)

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


Progress = Callable[[int, int, str], None]
Execute = Callable[[Task, Progress], ShardsMissingError | None]
"""Does a stage or its part of one, as `execute`."""


def by_one(dispatch: Dispatch) -> Execute:
    """Stages done by this process."""
    return lambda task, progress: execute(task, dispatch, progress)


def by_all(crew: Crew, dispatch: Dispatch) -> Execute:
    """Stages done by all ranks, of which this is the first.

    They train as one, and share what is in shards; the rest this one does alone.
    """

    def done(task: Task, progress: Progress) -> None:
        from masters import ranks

        if not in_shards(task.spec):
            execute(task, crew.leading(task.name, dispatch), progress)
            return
        crew.share(task.name, task, lambda own, share: _part(own, share, dispatch, progress))
        if not is_done(task.folder):  # a shard that was another process's, who left it
            with ranks.alone():
                execute(task, dispatch, progress)

    return done


def follow(crew: Crew, dispatch: Dispatch) -> None:
    """Does what the first rank hands out; of the others."""
    crew.follow(dispatch, lambda task, share: _part(task, share, dispatch, lambda *_: None))


def _part(task: Task, share: Share, dispatch: Dispatch, progress: Progress) -> None:
    execute(replace(task, share=share), dispatch, progress)


def in_shards(spec: StageSpec) -> bool:
    """Whether ranks share the stage: it has shards, and they themselves compute them.

    vLLM spreads over the GPUs by itself, and a server is asked no faster by several.
    """
    if isinstance(spec, GenerateSpec) and spec.engine != "transformers":
        return False
    if isinstance(spec, JudgeSpec) and spec.rule.judge is not None and spec.judge is None:
        return False
    return spec.kind in SHARED


def run_here(tasks: list[Task], done_by: Execute, display: Display, *, wait: bool) -> list[str]:
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
            missing = done_by(
                task,
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


def run_beside(tasks: list[Task], dispatch: Dispatch, display: Display, jobs: int) -> list[str]:
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
