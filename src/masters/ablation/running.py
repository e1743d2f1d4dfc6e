"""Runs plans past failures: what does not need the stage that failed is done all the same."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from masters.dispatch import dispatch_stage
from masters.errors import Failure, StagesFailedError
from masters.plan import Plan, stage_is_done
from masters.run import run_plans
from masters.workers import Dispatch


def run_past_failures(
    plans: Sequence[Plan],
    *,
    jobs: int | None,
    dispatch: Dispatch = dispatch_stage,
    console: Console | None = None,
) -> tuple[Failure, ...]:
    """Does what is not done in any of the plans; a plan that a stage failed in is left, no other.

    Returns:
        What failed, each stage once.

    Raises:
        MastersError: the work cannot begin.
    """
    failures: dict[str, Failure] = {}
    left = [plan for plan in plans if not all(stage_is_done(stage) for stage in plan.stages)]
    while left:
        try:
            run_plans(left, jobs=jobs, dispatch=dispatch, console=console, reported=False)
            break
        except StagesFailedError as error:
            failures |= {str(failure.folder): failure for failure in error.failures}
        left = [
            plan for plan in left if not any(str(stage.folder) in failures for stage in plan.stages)
        ]
    return tuple(failures.values())
