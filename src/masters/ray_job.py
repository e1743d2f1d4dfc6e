"""A plan's stages as Ray Data jobs, for people with a Ray cluster (the extra ``ray``).

Each stage is a data set of workers' numbers, mapped by a pool of actors, each of which makes its
share of the stage's shards as a worker started in any other way does: an actor that is lost is
started again by Ray, and goes on after its last whole shard. OUT, the data and the models lie on a
disk that all nodes see, under the same path::

    python -m masters.ray_job RECIPE --out OUT --workers 8 --gpus 1 --until generate
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masters.dispatch import dispatch_stage, quiet_libraries
from masters.errors import MastersError, StageError
from masters.plan import Plan, make_plan, stage_is_done, write_plan
from masters.recipe import load_recipe
from masters.run import stage_tasks
from masters.shares import Share
from masters.stages.preflight import check
from masters.workers import SHARED, Dispatch, Task, execute

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What of the cluster a stage takes.

    Args:
        workers: actors at a time, and shares of a stage; a stage without shards takes one.
        gpus: of each actor; may be a fraction.
        cpus: of each actor.
    """

    workers: int
    gpus: float = 0.0
    cpus: float = 1.0


class Worker:
    """An actor that makes the shares of one stage which it is given.

    Args:
        task: the stage.
        dispatch: runs a stage.
        directory: that the task's paths begin in.
    """

    def __init__(self, task: Task, dispatch: Dispatch, directory: str) -> None:
        os.chdir(directory)
        quiet_libraries()
        self._task, self._dispatch = task, dispatch

    def __call__(self, batch: pd.DataFrame) -> pd.DataFrame:
        """One row (worker, workers) for a share; with what is missing then, or what failed."""
        said: dict[str, list[str]] = {"missing": [], "failed": []}
        for index, count in zip(batch["worker"], batch["workers"], strict=True):
            task = replace(self._task, share=Share(index=int(index), count=int(count)))
            missing = failed = None
            try:
                missing = execute(task, self._dispatch, lambda done, total, note: None)
            except MastersError as error:  # Ray would try it again and again
                failed = f"{task.share}: {error}"
            said["missing"].append(str(missing or ""))
            said["failed"].append(failed or "")
        return batch.assign(**said)


def run_on_ray(
    plan: Plan,
    pool: Pool,
    *,
    until: str | Sequence[str] | None = None,
    dispatch: Dispatch = dispatch_stage,
    told: Callable[[str], None] = print,
) -> None:
    """Does what is not done, stage after stage, on the Ray cluster that is connected or started.

    Args:
        until: stage names; only these and what they read are done.
        dispatch: runs a stage; importable by the actors.
        told: is told of each stage that ends.

    Raises:
        StageError: Ray is not installed, or a stage failed.
    """
    try:
        data: Any = importlib.import_module("ray.data")
        exceptions: Any = importlib.import_module("ray.exceptions")
    except ImportError:
        raise StageError("ray is not installed; expected: pip install 'masters[ray]'") from None
    targets = [until] if isinstance(until, str) else list(until or plan.by_name)
    todo = [(s, task) for s, task in stage_tasks(plan, targets) if not stage_is_done(s)]
    checked = plan.recipe.runtime.images_checked
    check((plan.with_origins(stage) for stage, _ in todo), images_checked=checked)
    write_plan(plan)
    for stage, task in todo:
        shares = pool.workers if stage.kind in SHARED else 1
        rows = [{"worker": index, "workers": shares} for index in range(shares)]
        try:
            found = data.from_items(rows, override_num_blocks=shares).map_batches(
                Worker,
                batch_size=1,
                batch_format="pandas",
                compute=data.ActorPoolStrategy(size=shares, max_tasks_in_flight_per_actor=1),
                fn_constructor_args=(task, dispatch, os.getcwd()),
                num_gpus=pool.gpus,
                num_cpus=pool.cpus,
            )
            said = found.take_all()
        except exceptions.RayError as error:
            raise StageError(
                f"{stage.name}: Ray gave up: {error}\n  folder: {task.folder}"
            ) from error
        if failed := "\n".join(filter(None, (row["failed"] for row in said))):
            raise StageError(f"{stage.name} failed: {failed}\n  folder: {task.folder}")
        if not stage_is_done(stage):
            raise StageError(
                f"{stage.name} is not done: {said[-1]['missing']}. Do all nodes see "
                f"{task.folder}? Run the same command again"
            )
        told(f"{stage.name}: done by {shares} worker{'s' if shares > 1 else ''}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m masters.ray_job", description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--profile")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--until", help="a kind of stages, such as generate; not given: all")
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--gpus", type=float, default=0.0, help="of each worker")
    parser.add_argument("--cpus", type=float, default=1.0, help="of each worker")
    given = parser.parse_args(arguments)
    recipe = load_recipe(given.recipe, given.profile, given.sets)
    plan = make_plan(recipe, (given.out or Path("runs") / recipe.name).resolve())
    kinds = {stage.kind for stage in plan.stages}
    if given.until not in (None, *kinds):
        raise StageError(
            f"no stage is a {given.until}; expected one of: {', '.join(sorted(kinds))}"
        )
    wanted = [stage.name for stage in plan.stages if given.until in (None, stage.kind)]
    pool = Pool(workers=given.workers, gpus=given.gpus, cpus=given.cpus)
    run_on_ray(plan, pool, until=wanted)


if __name__ == "__main__":
    try:
        main()
    except MastersError as error:
        if os.environ.get("MASTERS_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
