"""One stage executed: in this process, or in a child forked from a server that has torch loaded."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from masters.artifacts import (
    StageContext,
    atomic_write_text,
    disk_full_error,
    is_disk_full,
    is_done,
    lock,
    tidy,
    write_record,
)
from masters.errors import MastersError, NonFiniteLossError, StageError
from masters.recipe import Runtime
from masters.shares import WHOLE, Part, ShardsMissingError, Share
from masters.specs import StageSpec

Dispatch = Callable[[Any, StageContext], Mapping[str, Any]]
"""Runs one stage: (spec, context) -> metrics. Importable, so that children can find it."""

AGAIN = "Run the same command again; it goes on where it stopped"
_MESSAGES_PER_SECOND = 5.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """A stage ready to be executed, with nothing left to look up."""

    name: str
    spec: StageSpec
    fingerprint: str
    folder: Path
    inputs: Mapping[str, Path]
    input_fingerprints: Mapping[str, str]
    runtime: Runtime
    share: Share = WHOLE

    @property
    def log(self) -> Path:
        """Where the traceback of a failure goes: to a file of each worker's own."""
        name = "error.log" if self.share.whole else f"error-worker-{self.share.index}.log"
        return self.folder / name


@dataclass(frozen=True, kw_only=True)
class Progressed:
    """A running stage got further."""

    name: str
    done: int
    total: int
    note: str


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A stage is done (``error`` None) or gave up; ``diverged``: its loss was no number."""

    name: str
    seconds: float
    error: str | None = None
    diverged: bool = False


Event = Progressed | Ended


SHARED = ("generate", "judge", "score", "signal", "evaluate")
"""The kinds of stages whose shards several workers can make; another is one worker's."""


def execute(
    task: Task, dispatch: Dispatch, progress: Callable[[int, int, str], None]
) -> ShardsMissingError | None:
    """Runs the stage, or this worker's part of it, under its lock and writes its record.

    Returns:
        What other workers have still to make; None: the stage is done.

    Raises:
        MastersError: whatever went wrong, with a traceback in ``task.log``.
    """
    several = not task.share.whole
    together = several and task.spec.kind in SHARED
    # Of several workers one does what cannot be shared, and the others need it.
    with lock(task.folder, together=together, wait=several and not together):
        if is_done(task.folder):
            tidy(task.folder)
            return None
        with Part(task.share if together else WHOLE, task.folder) as part:
            try:
                _compute(task, dispatch, progress, part)
            except ShardsMissingError as missing:
                task.log.unlink(missing_ok=True)
                return missing
            except Exception as error:
                _log_error(task.log)
                if is_disk_full(error):
                    raise disk_full_error(task.folder) from error
                if isinstance(error, MastersError):
                    raise
                raise StageError(f"{type(error).__name__}: {error}") from error
            for log in task.folder.glob("error*.log"):
                log.unlink(missing_ok=True)
            tidy(task.folder)
    return None


def _compute(
    task: Task, dispatch: Dispatch, progress: Callable[[int, int, str], None], part: Part
) -> None:
    context = StageContext(
        folder=task.folder, inputs=task.inputs, runtime=task.runtime, progress=progress, part=part
    )
    start = time.time()
    metrics = dispatch(task.spec, context)
    if not part.share.whole:
        if is_done(task.folder):  # another finished at the same moment
            return
        metrics = {**metrics, "workers": part.share.count}
    write_record(
        task.folder,
        kind=task.spec.kind,
        spec=task.spec.model_dump(mode="json"),
        fingerprint=task.fingerprint,
        inputs=task.input_fingerprints,
        runtime=task.runtime.model_dump(mode="json"),
        start=start,
        end=time.time(),
        metrics=metrics,
    )


def configure(runtime: Runtime) -> None:
    """Threads and determinism of this process, before a stage computes in it."""
    import torch

    from masters.models.devices import exact_arithmetic

    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    exact_arithmetic()


class Workers:
    """Children that execute one stage each; the imports are paid once, by the fork server.

    Args:
        dispatch: a module-level function, which the children import.
        preload: modules the fork server imports; those that are missing are passed over.
    """

    def __init__(self, dispatch: Dispatch, preload: Sequence[str]) -> None:
        self.dispatch = dispatch
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(preload))
        self._running: dict[Connection, tuple[Task, Any, float]] = {}

    @property
    def count(self) -> int:
        """How many children run."""
        return len(self._running)

    def start(self, task: Task) -> None:
        """Starts a child on the task."""
        receiver, sender = self.context.Pipe(duplex=False)
        child = self.context.Process(
            target=_child,
            args=(task, self.dispatch, sender, os.getcwd()),
            name=task.name,
        )
        child.start()
        sender.close()
        self._running[receiver] = (task, child, time.monotonic())

    def events(self, timeout: float = 1.0) -> list[Event]:
        """What the children reported; waits up to ``timeout`` seconds for the first."""
        found: list[Event] = []
        for receiver in wait(list(self._running), timeout):
            assert isinstance(receiver, Connection)
            try:
                event = receiver.recv()
            except (EOFError, OSError):
                event = self._died(receiver)
            found.append(event)
            if isinstance(event, Ended):
                _, child, _ = self._running.pop(receiver)
                child.join()
                receiver.close()
        return found

    def kill(self) -> None:
        """Ends every child at once; what they have finished stays on disk."""
        for _, child, _ in self._running.values():
            child.kill()
        for receiver, (_, child, _) in self._running.items():
            child.join()
            receiver.close()
        self._running.clear()

    def _died(self, receiver: Connection) -> Ended:
        task, child, began = self._running[receiver]
        child.join()
        code = child.exitcode
        how = f"was killed by {_signal_name(-code)}" if code and code < 0 else f"ended with {code}"
        memory = " (often: out of memory)" if code == -signal.SIGKILL else ""
        log = task.folder / "stage.log"
        return Ended(
            name=task.name,
            seconds=time.monotonic() - began,
            error=f"its process {how}{memory}. {AGAIN}. What it printed: {log}",
        )


def _child(task: Task, dispatch: Dispatch, sender: Connection, directory: str) -> None:
    """The life of one child: quiet, deaf to Ctrl-C, and gone when its parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir(directory)
    _die_with_parent()
    began, last = time.monotonic(), 0.0

    def progress(done: int, total: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 1 / _MESSAGES_PER_SECOND or done >= total:
            last = now
            sender.send(Progressed(name=task.name, done=done, total=total, note=note))

    error: str | None = None
    diverged = False
    try:
        _print_into(task.folder / "stage.log")
        execute(task, dispatch, progress)
    except MastersError as caught:
        error, diverged = str(caught), isinstance(caught, NonFiniteLossError)
    except BaseException as caught:
        error = f"{type(caught).__name__}: {caught}"
        traceback.print_exc()
    seconds = time.monotonic() - began
    sender.send(Ended(name=task.name, seconds=seconds, error=error, diverged=diverged))
    sender.close()


def _print_into(path: Path) -> None:
    """Sends this process's output to the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _die_with_parent() -> None:
    """Ends this process when the one that asked for it is gone, so that no lock outlives it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _log_error(path: Path) -> None:
    # The disk may be what failed; the error itself is reported all the same.
    with contextlib.suppress(OSError):
        atomic_write_text(path, traceback.format_exc())


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
