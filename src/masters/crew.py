"""The processes that torchrun started: rank 0 leads, the others do with it what can be shared.

Rank 0 plans, prints and does alone what cannot be shared. A train stage is run by all ranks as one;
of a stage in shards each makes its part, as workers do (`masters.shares`). Between them the others
wait, at the store that torchrun keeps, for as long as it takes.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masters.artifacts import StageContext, atomic_write_text
from masters.errors import MastersError, StageError
from masters.shares import Share
from masters.specs import TrainSpec

if TYPE_CHECKING:
    import torch

    from masters.recipe import Runtime

Dispatch = Callable[[Any, StageContext], Mapping[str, Any]]
Work = Callable[[Any, Share], Any]
"""Makes one rank's part of a stage in shards: (what rank 0 handed out, whose part)."""

#: How long a rank waits for the others within a train stage, whatever they are at (writing a
#: model), and for them to come at all.
PATIENCE = timedelta(minutes=30)
#: The same for the last one's shards.
_SHARDS = timedelta(days=30)
_GLANCE = 0.2
#: Seconds that a rank waits before it ends for another one's sake: torchrun ends all when the first
#: ends, and that should be the one that knows why.
_COURTESY = 3.0
#: What torch says when a rank is no longer there.
_LOST = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting",
    "connection was unexpectedly closed", "Socket closed", "Failed to recv", "failed to connect",
    "remote process exited", "timed out after",
)  # fmt: skip


def started() -> tuple[int, int]:
    """(this process's rank, how many torchrun started); (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def leads() -> bool:
    """Whether this process plans, prints and writes."""
    return started()[0] == 0


def own_device(device: torch.device) -> torch.device:
    """The device with this process's number on its machine, where a kind is meant."""
    import torch

    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def backend_for(kind: str) -> str:
    """gloo for the host's tensors, nccl for a CUDA device's."""
    return "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"


@dataclass(frozen=True, kw_only=True)
class _Order:
    """A stage for all: a train stage, or what `Work` takes (``task``) of one in shards."""

    name: str
    spec: TrainSpec | None = None
    folder: Path = Path()
    inputs: Mapping[str, Path] = field(default_factory=dict)
    runtime: Runtime | None = None
    task: Any = None


class Crew:
    """The ranks of one run, joined.

    Args:
        runtime: of the recipe.

    Raises:
        MastersError: not all of them came.
    """

    def __init__(self, runtime: Runtime) -> None:
        import torch
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        from masters.models.devices import find_device

        self.rank, self.ranks = started()
        device = own_device(find_device(runtime.device, key="runtime.device"))
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self._orders = 0
        try:
            self._store: Any = next(iter(rendezvous("env://", timeout=PATIENCE)))[0]
            dist.init_process_group(
                backend_for(device.type), store=PrefixStore("group", self._store),
                rank=self.rank, world_size=self.ranks, timeout=PATIENCE,
            )  # fmt: skip
            # Parts are uneven, so whoever is ready waits longer than within a train stage.
            self._patient: Any = dist.new_group(backend="gloo", timeout=_SHARDS)
        except (RuntimeError, ValueError) as error:
            raise MastersError(
                f"rank {self.rank} did not find all {self.ranks} ranks of RANK and WORLD_SIZE: "
                f"{_first_line(error)}. Expected torchrun, or every rank started with the same "
                "MASTER_ADDR and MASTER_PORT"
            ) from error

    # ---------------------------------------------------------------------------- what rank 0 does

    def leading(self, name: str, dispatch: Dispatch) -> Dispatch:
        """``dispatch`` that takes the others along into train stages.

        Args:
            name: of the stage, for errors.
        """

        def with_others(spec: Any, context: StageContext) -> Mapping[str, Any]:
            if not isinstance(spec, TrainSpec):
                from masters import ranks

                with ranks.alone():
                    return dispatch(spec, context)
            self._send(
                _Order(
                    name=name, spec=spec, folder=context.folder, inputs=context.inputs,
                    runtime=context.runtime,
                )
            )  # fmt: skip
            with self._at(name):
                return dispatch(spec, context)

        return with_others

    def share(self, name: str, task: Any, work: Work) -> None:
        """Has every rank make its part of a stage in shards; returns when all have.

        Args:
            task: handed to every rank's ``work``; can be pickled.
        """
        self._send(_Order(name=name, task=task))
        self._part(name, task, work)

    def end(self, error: str | None) -> None:
        """Lets the others go, or tells them that this is given up."""
        try:
            self._send(error)
            left = time.monotonic() + (10 if error is None else _COURTESY)
            while time.monotonic() < left and not self._store.check(
                [f"gone/{rank}" for rank in range(1, self.ranks)]
            ):
                time.sleep(_GLANCE)
        except (RuntimeError, StageError):
            return  # the store is gone with whoever kept it; that is not what went wrong
        if error is None:
            _leave()

    # -------------------------------------------------------------------------- what the others do

    def follow(self, dispatch: Dispatch, work: Work) -> None:
        """Does what rank 0 hands out until it is through.

        Args:
            work: this rank's part of a stage in shards.

        Raises:
            StageError: this rank failed, or rank 0 gave up, or is gone.
        """
        while True:
            order = self._next()
            if order is None:
                _leave()
                return
            if isinstance(order, str):
                time.sleep(_COURTESY)
                raise StageError(f"rank 0 gave up, so rank {self.rank} ends: {order}")
            if order.spec is None:
                self._part(order.name, order.task, work)
                continue
            assert order.runtime is not None
            context = StageContext(
                folder=order.folder,
                inputs=order.inputs,
                runtime=order.runtime,
                progress=lambda done, total, note: None,
            )
            with self._at(order.name), self._traced(order.folder):
                dispatch(order.spec, context)

    @contextmanager
    def _traced(self, folder: Path) -> Iterator[None]:
        try:
            yield
        except Exception:
            with contextlib.suppress(OSError):  # the error itself is told all the same
                log = folder / f"error-worker-{self.rank}.log"
                atomic_write_text(log, traceback.format_exc())
            raise

    # ------------------------------------------------------------------------------------- of both

    def _part(self, name: str, task: Any, work: Work) -> None:
        """This rank's shards; then it waits for the others'."""
        import torch.distributed as dist

        from masters import ranks

        with self._at(name):
            with ranks.alone():
                work(task, Share(index=self.rank, count=self.ranks))
            dist.barrier(group=self._patient)

    def _send(self, order: _Order | str | None) -> None:
        try:
            self._store.set(f"order/{self._orders}", pickle.dumps(order))
        except RuntimeError as error:
            raise StageError(f"{_GONE} ({_first_line(error)}). {_AGAIN}") from error
        self._orders += 1

    def _next(self) -> _Order | str | None:
        key = f"order/{self._orders}"
        try:
            while not self._store.check([key]):
                time.sleep(_GLANCE)
            order = pickle.loads(self._store.get(key))
            if not isinstance(order, _Order):
                self._store.set(f"gone/{self.rank}", b"1")
        except RuntimeError as error:
            raise StageError(
                f"rank {self.rank}: {_GONE} ({_first_line(error)}). {_AGAIN}"
            ) from error
        self._orders += 1
        return order

    @contextmanager
    def _at(self, name: str) -> Iterator[None]:
        """Within a stage of all: a rank that fails lets the others hear of it, and which it was."""
        try:
            yield
        except BaseException as error:
            lost = isinstance(error, RuntimeError) and any(said in str(error) for said in _LOST)
            if not lost:
                with contextlib.suppress(RuntimeError):
                    said = f"rank {self.rank} failed: {_told(error).splitlines()[0]}"
                    self._store.set(f"failed/{self.rank}", said)
            self._hang_up()
            if lost:
                raise StageError(
                    f"another rank of this run ended, or did not answer, in {name}: "
                    f"{self._missed()} ({_first_line(error)}). {_AGAIN}"
                ) from error
            if self.rank > 0 and isinstance(error, Exception):
                raise StageError(f"rank {self.rank} failed in {name}: {_told(error)}") from error
            raise

    def _hang_up(self) -> None:
        """Leaves the process group, so that whoever waits for this rank hears of it."""
        import torch.distributed as dist

        if dist.get_backend() == "gloo":  # nccl would first wait for those who wait for it
            _leave()

    def _missed(self) -> str:
        """Which ranks failed, or are not here any more, as those say that are."""
        try:
            self._store.set(f"here/{self.rank}", b"1")
            time.sleep(_COURTESY)
            found = []
            for rank in range(self.ranks):
                if self._store.check([f"failed/{rank}"]):
                    found.append(self._store.get(f"failed/{rank}").decode())
                elif not self._store.check([f"here/{rank}"]):
                    found.append(f"rank {rank} says nothing any more")
        except RuntimeError:  # it kept the store
            return _GONE
        return "; ".join(found) or "what it printed says why"


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


_GONE = (
    "the store that the ranks meet at is gone, with torchrun, or without it rank 0, who keeps it"
)
_AGAIN = "Run the same command again; whole shards and the last checkpoint are kept"


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, MastersError) else f"{type(error).__name__}: {error}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def join(runtimes: Sequence[Runtime]) -> Crew | None:
    """The crew of this run; None where one process was started.

    Raises:
        MastersError: several were started for an engine that trains in one.
    """
    rank, ranks = started()
    if ranks == 1:
        return None
    if any(runtime.engine == "single" for runtime in runtimes):
        raise MastersError(
            f"{ranks} processes were started (this is rank {rank}), but runtime.engine is single; "
            "set runtime.engine=fsdp2 (or deepspeed) to train with all of them, or start one"
        )
    return Crew(runtimes[0])
