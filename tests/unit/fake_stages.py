"""Stand-ins for the stage modules: quick, torch-free, and importable by child processes."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Mapping
from typing import Any

from masters.artifacts import StageContext
from masters.errors import ModelError
from masters.specs import AnySpec
from masters.workers import SHARED


def works(spec: AnySpec, context: StageContext) -> Mapping[str, Any]:
    """Leaves one file with its process and the time it began and ended."""
    assert all((folder / "record.json").is_file() for folder in context.inputs.values())
    began = time.monotonic()
    for done in range(3):
        context.progress(done + 1, 3, "at work")
        time.sleep(0.01)
    (context.folder / "ran").write_text(f"{os.getpid()} {began} {time.monotonic()}\n")
    return {"kind": spec.kind}


SHARDS = 5


def shares(spec: AnySpec, context: StageContext) -> Mapping[str, Any]:
    """Where shards can be shared, makes its part of them, each of which must be new."""
    if spec.kind not in SHARED:
        return works(spec, context)
    assert all((folder / "record.json").is_file() for folder in context.inputs.values())
    (context.folder / "rows").mkdir(exist_ok=True)
    paths = [context.folder / "rows" / f"shard-{n}" for n in range(SHARDS)]
    for n in context.part.take(paths):
        time.sleep(0.01)
        with open(paths[n], "x") as file:
            file.write(str(os.getpid()))
    context.part.finish(paths)
    return {"shards": SHARDS}


def mask_fails(spec: AnySpec, context: StageContext) -> Mapping[str, Any]:
    """The mask stage refuses its model."""
    if spec.kind == "mask":
        raise ModelError("the teacher has no layer to mask")
    time.sleep(0.05)
    return works(spec, context)


def mask_is_killed(spec: AnySpec, context: StageContext) -> Mapping[str, Any]:
    """The mask stage's process is killed from outside."""
    if spec.kind == "mask":
        os.kill(os.getpid(), signal.SIGKILL)
    return works(spec, context)


def disk_fills(spec: AnySpec, context: StageContext) -> Mapping[str, Any]:
    """No stage finds room."""
    raise OSError(errno.ENOSPC, "No space left on device")


def breaks(spec: AnySpec, context: StageContext) -> Mapping[str, Any]:
    """A programming error."""
    raise ZeroDivisionError("division by zero")


def never_ends(spec: AnySpec, context: StageContext) -> Mapping[str, Any]:
    """Writes its process id and stays."""
    (context.folder / "pid").write_text(str(os.getpid()))
    time.sleep(60)
    return {}


def by_ranks(spec: AnySpec, context: StageContext) -> Mapping[str, Any]:
    """As `shares`; a train stage is of all ranks, who meet in it, and rank 0 writes who they are.

    What ``RANK_ENDS`` says (kind of stage:raises or killed) happens to rank 1 there, before it has
    done its part.
    """
    from masters import ranks

    kind, _, how = os.environ.get("RANK_ENDS", "").partition(":")
    if spec.kind == kind and os.environ["RANK"] == "1":
        if how == "raises":
            raise ZeroDivisionError("division by zero")
        os.kill(os.getpid(), signal.SIGKILL)
    if spec.kind != "train":
        return shares(spec, context)
    pids = ranks.gathered(os.getpid())
    if ranks.rank() == 0:
        works(spec, context)
    return {"pids": pids}


def waits(spec: AnySpec, context: StageContext) -> Mapping[str, Any]:
    """As `by_ranks`, but masks take until the store of the ranks is gone."""
    if spec.kind == "mask":
        (context.folder / "waits").touch()
        while not (context.folder / "go on").exists():
            time.sleep(0.05)
    return by_ranks(spec, context)
