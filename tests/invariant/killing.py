"""Stages run in forked children that are killed at a chosen moment, and their output compared.

``Nursery`` starts one process that imports torch once and forks a child for every job. A child is
killed from outside after a while, or kills itself at the n-th call of a named function: between a
temporary file and its rename, in the middle of a write, before a folder is removed.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from masters.workers import Task
from tests.running import environment


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When a child is killed.

    Args:
        after: seconds from the fork; or
        event: a name of ``EVENTS``, at whose ``call``-th call (from 1) the child kills itself,
        torn: having written half of the file instead of nothing.
    """

    after: float | None = None
    event: str = ""
    call: int = 1
    torn: bool = False


@dataclass(frozen=True, kw_only=True)
class Job:
    """A stage to run in a child: a task, or the report over the plan of a file."""

    log: Path
    task: Task | None = None
    report: Path | None = None
    moment: Moment | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a child ended: its exit code or minus the signal, seconds, and calls of each event."""

    status: int
    seconds: float
    calls: dict[str, int]


class Nursery:
    """The process that children are forked from."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.invariant.killing"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment(), cwd=Path(__file__).parents[2],
        )  # fmt: skip

    def run(self, job: Job) -> Outcome:
        """Runs the job; a child that fails by itself fails the test with what it printed."""
        return self.run_together([job])[0]

    def run_together(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Runs the jobs at the same time, each in a child of its own with its own log."""
        assert self._process.stdin is not None and self._process.stdout is not None
        for job in jobs:
            job.log.parent.mkdir(parents=True, exist_ok=True)
        self._process.stdin.write(base64.b64encode(pickle.dumps(list(jobs))).decode() + "\n")
        self._process.stdin.flush()
        found = [Outcome(**values) for values in json.loads(self._process.stdout.readline())]
        for job, outcome in zip(jobs, found, strict=True):
            assert outcome.status in (0, -signal.SIGKILL), job.log.read_text()[-3000:]
        return found

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


# --------------------------------------------------------------------------------- in the nursery


def _hooks() -> dict[str, tuple[Any, str, Callable[..., Path | None] | None]]:
    """Event -> (owner, attribute, the file that a call writes)."""
    import pyarrow.parquet as pq
    import torch

    from masters.training import checkpoints, loop, stored_signal

    return {
        "replace": (os, "replace", None),
        "rename": (os, "rename", None),
        "fsync": (os, "fsync", None),
        "rmtree": (shutil, "rmtree", None),
        "shard": (pq, "write_table", lambda table, file, **_: Path(file.name)),
        "optimiser": (torch, "save", lambda value, file, **_: Path(file.name)),
        "checkpoint": (checkpoints, "save_file", lambda tensors, file, **_: Path(file)),
        "signal": (stored_signal, "save_file", lambda tensors, file, **_: Path(file)),
        "export": (loop, "save_model", lambda model, folder, **_: folder / "model.safetensors"),
        "step": (loop.Trainer, "_log", lambda trainer, *_: trainer.folder / "metrics.jsonl"),
    }


EVENTS = (
    "replace", "rename", "fsync", "rmtree", "shard", "optimiser", "checkpoint", "signal", "export",
    "step",
)  # fmt: skip


def _arm(moment: Moment | None, calls: Counter[str]) -> None:
    """Counts every event, and kills this process at the moment."""

    def hooked(name: str, original: Any, written: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            due = moment is not None and moment.event == name and moment.call == calls[name]
            if due and moment is not None and moment.torn:
                path = written(*args, **options)
                appended = name == "step" and path.exists()
                before = path.stat().st_size if appended else 0
                original(*args, **options)
                os.truncate(path, (before + path.stat().st_size) // 2)
            if due:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **options)

        return call

    for name, (owner, attribute, written) in _hooks().items():
        setattr(owner, attribute, hooked(name, getattr(owner, attribute), written))


def _live(job: Job) -> None:
    """The child: runs the job and leaves its counts beside the log."""
    from masters.dispatch import dispatch_stage
    from masters.stages import evaluate
    from masters.workers import execute

    output = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    evaluate.SHARD = SHARD
    calls: Counter[str] = Counter()
    _arm(job.moment, calls)
    if job.task is not None:
        execute(job.task, dispatch_stage, lambda done, total, note: None)
    else:
        assert job.report is not None
        from masters.plan import read_plan
        from masters.run import report

        report([read_plan(job.report)])
    job.log.with_suffix(".json").write_text(json.dumps(calls))


SHARD = 12
"""Questions of a shard, few enough for several shards a stage."""


def _fork(job: Job) -> int:
    """Starts a child on the job; its process id."""
    job.log.with_suffix(".json").unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            _live(job)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def _outcome(job: Job, child: int, began: float) -> Outcome:
    """Waits for a child, and kills it when its time has come."""
    counts = job.log.with_suffix(".json")
    if job.moment is not None and job.moment.after is not None:
        left = began + job.moment.after
        while time.monotonic() < left and os.waitid(
            os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT
        ) is None:  # fmt: skip
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
    _, ended = os.waitpid(child, 0)
    status = os.waitstatus_to_exitcode(ended)
    return Outcome(
        status=status,
        seconds=time.monotonic() - began,
        # A killed child may have left half of its counts.
        calls=json.loads(counts.read_text()) if status == 0 else {},
    )


def _load_what_loads_late() -> None:
    """Imports that the first model, the first optimiser and the first picture would pay for."""
    import matplotlib.pyplot
    import torch

    from masters.data.scenes import scene_vocabulary
    from masters.models.load import load_model, load_processor
    from masters.models.tiny import write_tiny_model

    with tempfile.TemporaryDirectory() as folder:
        name = "qwen3_vl_100k"
        write_tiny_model(Path(folder), name, seed=0, texts=scene_vocabulary())
        torch.optim.AdamW(load_model(folder).parameters())
        load_processor(folder)
    matplotlib.pyplot.close()


def _serve() -> None:
    import torch

    import masters.dispatch
    import masters.evaluation.page
    import masters.stages.evaluate
    import masters.stages.generate
    import masters.stages.judge
    import masters.stages.mask
    import masters.stages.score
    import masters.stages.signal
    import masters.stages.train  # noqa: F401

    masters.dispatch.quiet_libraries()
    torch.set_num_threads(1)
    _load_what_loads_late()
    for line in sys.stdin:
        jobs: list[Job] = pickle.loads(base64.b64decode(line))
        began = time.monotonic()
        children = [_fork(job) for job in jobs]
        found = [_outcome(job, pid, began) for job, pid in zip(jobs, children, strict=True)]
        print(json.dumps([vars(outcome) for outcome in found]), flush=True)


# -------------------------------------------------------------------------------------- comparing

_OWN = {"record.json", ".lock", "error.log", "stage.log"}


def contents(folder: Path) -> set[str]:
    """Every file below the folder, without what says only when and where it was made."""
    files = (path for path in folder.rglob("*") if not path.is_dir())
    return {str(path.relative_to(folder)) for path in files if path.name not in _OWN}


def differences(left: Path, right: Path) -> list[str]:
    """The files of two finished stages that are not bit-identical, or are in one of them only."""
    both = contents(left) & contents(right)
    found = [f"only one has {name}" for name in sorted(contents(left) ^ contents(right))]
    return found + [name for name in sorted(both) if not _same(left / name, right / name)]


def _same(left: Path, right: Path) -> bool:
    if left.read_bytes() == right.read_bytes():
        return True
    if left.suffix == ".pt":
        return _state(left) == _state(right)
    if left.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_table(left).equals(pq.read_table(right))
    if left.name == "metrics.jsonl":
        return _numbers(left) == _numbers(right)
    return False


def _numbers(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def _state(path: Path) -> Any:
    """An optimiser's state as plain values, tensors as bytes."""
    import torch

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return plain(torch.load(path, weights_only=True))


def killed_at(job: Job, moment: Moment | None) -> Job:
    """The same job with another end."""
    return replace(job, moment=moment)


if __name__ == "__main__":
    from tests.invariant import killing

    # Under its importable name, so that pickled jobs are of this module's classes.
    killing._serve()
