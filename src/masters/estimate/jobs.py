"""What each stage is as a job: its work and memory, by how many GPUs share it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from masters.estimate.cluster import Cluster
from masters.estimate.work import Work, prices, seconds
from masters.recipe import Precision


@dataclass(frozen=True, kw_only=True)
class Job:
    """A stage, once it is known what it does.

    Args:
        precision: that it computes in.
        work: of one process, where so many GPUs share the stage.
        memory: bytes of each of them, by what takes them.
        each: GPUs of one process.
        shared: whether more GPUs can take part: by shards, or sharded.
        most: processes that have something to do.
        disk_gb: that it writes.
        notes: what the estimate leaves out.
    """

    precision: Precision
    work: Callable[[int], Work]
    memory: Callable[[int], Mapping[str, float]]
    each: int = 1
    shared: bool = True
    most: int = 1 << 30
    disk_gb: float = 0.0
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A job on a number of GPUs.

    Args:
        gpus: that it takes, the fastest choice among those that it fits on.
        memory: bytes of each, by what takes them.
        hours: of wall time.
    """

    gpus: int
    memory: Mapping[str, float]
    hours: float
    fits: bool
    flops: float


#: GPUs that save less than this share of the time are left alone.
WORTH = 0.1


def place(job: Job, cluster: Cluster) -> Placed:
    """The job on as few of the cluster's GPUs as bring it within `WORTH` of its fastest.

    More are not always faster: a slow link between nodes, or fewer questions than processes. Where
    it fits on no number of GPUs, it is placed on all that can share it.
    """
    if job.shared:
        counts = [n for n in cluster.sizes() if n % job.each == 0 and n // job.each <= job.most]
    else:
        counts = [job.each]
    counts = [n for n in counts if n <= cluster.gpus] or [min(job.each, cluster.gpus)]
    placed = [_placed(job, cluster, n) for n in counts]
    fitting = [one for one in placed if one.fits]
    if not fitting or job.each > cluster.gpus:
        return placed[-1]
    fastest = min(one.hours for one in fitting)
    return next(one for one in fitting if one.hours <= (1 + WORTH) * fastest)


def _placed(job: Job, cluster: Cluster, gpus: int) -> Placed:
    processes = max(1, gpus // job.each)
    memory = {**job.memory(processes), "reserved": 1e9 * cluster.efficiency.reserved_gb.value}
    work = job.work(processes)
    taken = seconds(work, prices(cluster, job.precision, gpus=gpus))
    return Placed(
        gpus=gpus,
        memory=memory,
        hours=taken / 3600,
        fits=sum(memory.values()) <= cluster.bytes and gpus >= job.each,
        flops=job.work(1).flops,
    )


def shares(count: float, processes: int, shard: int) -> float:
    """How much of ``count`` the busiest of the processes has, in whole shards."""
    shards = math.ceil(count / shard)
    return min(count, math.ceil(shards / processes) * shard)


def none(_: int) -> dict[str, Any]:
    """No memory."""
    return {}
