"""The processes that torchrun started: rank 0 leads, the others follow it into train stages.

Rank 0 plans, takes locks, runs every stage and writes records, as one process does. When it comes
to a train stage it hands the stage to the others, and all of them run it; meanwhile they wait, at
the store that torchrun keeps, for as long as it takes.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masters.artifacts import StageContext
from masters.errors import MastersError, StageError
from masters.specs import TrainSpec

if TYPE_CHECKING:
    import torch

    from masters.recipe import Runtime

Dispatch = Callable[[Any, StageContext], Mapping[str, Any]]

#: How long a rank waits for the others within a stage, whatever they are at (writing a model).
PATIENCE = timedelta(minutes=30)
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
    """A train stage to be run by all."""

    spec: TrainSpec
    folder: Path
    inputs: Mapping[str, Path]
    runtime: Runtime


class Crew:
    """The ranks of one run, joined.

    Args:
        runtime: of the recipe.
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
        self._store: Any = next(iter(rendezvous("env://", timeout=PATIENCE)))[0]
        self._orders = 0
        dist.init_process_group(
            backend_for(device.type), store=PrefixStore("group", self._store),
            rank=self.rank, world_size=self.ranks, timeout=PATIENCE,
        )  # fmt: skip

    def leading(self, dispatch: Dispatch) -> Dispatch:
        """``dispatch`` that takes the others along into train stages."""

        def with_others(spec: Any, context: StageContext) -> Mapping[str, Any]:
            if not isinstance(spec, TrainSpec):
                from masters import ranks

                with ranks.alone():
                    return dispatch(spec, context)
            self._send(
                _Order(
                    spec=spec, folder=context.folder, inputs=context.inputs, runtime=context.runtime
                )
            )
            with _explained(), self._alive():
                return dispatch(spec, context)

        return with_others

    def follow(self, dispatch: Dispatch) -> None:
        """Runs what rank 0 hands out until it is through.

        Raises:
            StageError: rank 0 gave up, or is gone.
        """
        while True:
            order = self._next()
            if order is None:
                _leave()
                return
            if isinstance(order, str):
                time.sleep(_COURTESY)
                raise StageError(f"rank 0 gave up, so rank {self.rank} ends: {order}")
            context = StageContext(
                folder=order.folder,
                inputs=order.inputs,
                runtime=order.runtime,
                progress=lambda done, total, note: None,
            )
            with _explained(), self._alive():
                dispatch(order.spec, context)

    def end(self, error: str | None) -> None:
        """Lets the others go, or tells them that this is given up; of rank 0."""
        try:
            self._send(error)
        except RuntimeError:  # the store is gone with whoever kept it; that is not what went wrong
            return
        left = time.monotonic() + (10 if error is None else 0)
        while time.monotonic() < left and not self._store.check(
            [f"gone/{rank}" for rank in range(1, self.ranks)]
        ):
            time.sleep(_GLANCE)
        if error is None:
            _leave()

    def _send(self, order: _Order | str | None) -> None:
        self._store.set(f"order/{self._orders}", pickle.dumps(order))
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
                f"rank {self.rank}: rank 0 is gone ({_first_line(error)}). {_AGAIN}"
            ) from error
        self._orders += 1
        return order

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """A rank that fails alone leaves the process group, so that the others hear of it."""
        try:
            yield
        except BaseException:
            import torch.distributed as dist

            if dist.get_backend() == "gloo":  # nccl would first wait for those who wait for it
                _leave()
            raise


def _leave() -> None:
    import torch.distributed as dist

    dist.destroy_process_group()


_AGAIN = "Run the same command again; it goes on from the last checkpoint"


@contextmanager
def _explained() -> Iterator[None]:
    """Says what it means when another rank is no longer there."""
    try:
        yield
    except RuntimeError as error:
        if not any(said in str(error) for said in _LOST):
            raise
        time.sleep(_COURTESY)
        raise StageError(
            f"another rank of this run ended, or did not answer for {PATIENCE.seconds // 60} "
            f"minutes ({_first_line(error)}); what it printed says why. {_AGAIN}"
        ) from error


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
