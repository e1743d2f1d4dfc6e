"""The estimate of a whole plan, as the command prints it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from masters.estimate.changes import first_change
from masters.estimate.cluster import Cluster
from masters.estimate.jobs import place
from masters.estimate.stages import Jobs
from masters.estimate.workload import Workload, workload_of
from masters.plan import Plan


@dataclass(frozen=True, kw_only=True)
class StageEstimate:
    """One stage on the cluster.

    Args:
        gpus: that it takes: the fastest choice.
        memory_gb: of each of them, 1e9 bytes.
        memory: the same by what takes it.
        change: what makes it fit; empty where it fits, or nothing was found.
        flops: of all GPUs' matrix products.
        hours: of wall time; ``gpu_hours`` of all GPUs it takes.
        disk_gb: that it writes.
        status: as the plan has it; what is done is counted like the rest.
        notes: what is left out.
    """

    name: str
    kind: str
    status: str
    gpus: int
    fits: bool
    memory_gb: float
    memory: Mapping[str, float]
    change: str
    flops: float
    gpu_hours: float
    hours: float
    disk_gb: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PlanEstimate:
    """All stages of a plan, one after the other."""

    plan: str
    cluster: Cluster
    workload: Workload
    stages: tuple[StageEstimate, ...]

    @property
    def gpu_hours(self) -> float:
        """Of all stages."""
        return sum(stage.gpu_hours for stage in self.stages)

    @property
    def hours(self) -> float:
        """Of wall time, stage after stage."""
        return sum(stage.hours for stage in self.stages)

    @property
    def disk_gb(self) -> float:
        """That all stages write."""
        return sum(stage.disk_gb for stage in self.stages)

    def as_json(self) -> dict[str, Any]:
        """JSON values: the stages, the sums, and everything assumed."""
        return {
            "stages": [asdict(stage) for stage in self.stages],
            "gpu_hours": self.gpu_hours,
            "hours": self.hours,
            "fits": all(stage.fits for stage in self.stages),
            "disk_gb": self.disk_gb,
            "disk_fits": self.disk_gb <= self.cluster.disk_gb,
            "cluster": self.cluster.model_dump(mode="json"),
            "assumed": asdict(self.workload),
        }


def estimate_plan(plan: Plan, cluster: Cluster, assumed: Sequence[str] = ()) -> PlanEstimate:
    """What every stage of the plan takes on the cluster.

    Args:
        assumed: ``KEY=NUMBER`` of the workload.

    Raises:
        RecipeError: something is assumed that is nothing.
        ModelError: a configuration cannot be read.
    """
    workload = workload_of(plan.recipe, assumed)
    jobs = Jobs(plan.recipe, plan.questions, cluster, workload)
    return PlanEstimate(
        plan=plan.name,
        cluster=cluster,
        workload=workload,
        stages=tuple(_stage(jobs, stage.name, stage.status) for stage in plan.stages),
    )


def _stage(jobs: Jobs, name: str, status: str) -> StageEstimate:
    job = jobs.job(name)
    placed = place(job, jobs.cluster)
    change = None if placed.fits else first_change(jobs, name)
    memory = {part: round(size / 1e9, 3) for part, size in placed.memory.items()}
    if set(memory) == {"reserved"}:
        memory = {}  # nothing of it is on a GPU
    return StageEstimate(
        name=name,
        kind=jobs.drafts[name].spec.kind,
        status=status,
        gpus=placed.gpus,
        fits=placed.fits,
        memory_gb=round(sum(memory.values()), 3),
        memory=memory,
        change="" if change is None else str(change),
        flops=placed.flops,
        gpu_hours=placed.hours * placed.gpus,
        hours=placed.hours,
        disk_gb=round(job.disk_gb, 3),
        notes=job.notes,
    )
