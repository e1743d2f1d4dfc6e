"""DeepSpeed ZeRO-3: the student's weights, gradients and moments cut over the ranks of one run.

DeepSpeed cuts each weight as one row of numbers and brings a layer together when it runs. What is
written and taken up is the `fsdp2` engine's: for that the weights are laid out by rows on the host,
one after the other, so a checkpoint of either engine goes on with the other, or in one process. A
live teacher is spread by `fully_shard`.
"""

from __future__ import annotations

import copy
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from masters import ranks
from masters.errors import NonFiniteLossError, StageError
from masters.models.shards import plain_copy
from masters.training.checkpoints import Position
from masters.training.fsdp import Fsdp2
from masters.training.optimiser import OptimiserSettings, make_optimiser
from masters.training.sharded_checkpoints import (
    load_optimiser,
    load_sharded_checkpoint,
    newest,
    save_sharded_checkpoint,
    whole_optimiser_state,
)
from masters.training.student import Student

MOMENTS = ("exp_avg", "exp_avg_sq")
#: Numbers of one reduction; its buffer is held as long as the engine is.
_BUCKET = 50_000_000


def deepspeed_library(device: torch.device) -> Any:
    """The package deepspeed, made ready for this kind of device.

    Raises:
        StageError: it cannot be imported.
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("LOCAL_RANK", "0")  # of one rank that torchrun did not start
    try:
        library = importlib.import_module("deepspeed")
    except Exception as error:  # It looks for compilers and devices on import.
        raise StageError(
            f"runtime.engine is deepspeed, which needs the package of that name; importing it "
            f"failed ({error}). DS_BUILD_OPS=0 pip install 'masters[deepspeed]', or set "
            "runtime.engine=fsdp2"
        ) from error
    for handler in logging.getLogger("DeepSpeed").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)  # standard output is for answers
    warnings.filterwarnings("ignore", message="`torch.distributed.[a-z_]*` is deprecated")
    # It would be compiled for minutes, and no reduction here asks for it.
    library.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return library


class Deepspeed:
    """`Engine` over the ranks of the running process group (one is enough).

    Args:
        device: that each rank computes on.
        offload_teacher: see `Fsdp2`, which holds the teacher.
    """

    def __init__(self, device: torch.device, *, offload_teacher: bool = False) -> None:
        self._library = deepspeed_library(device)
        self._device = device
        self._rows = init_device_mesh("cpu", (ranks.count(),))
        self._teachers = Fsdp2(device, offload_teacher=offload_teacher)
        self._engine: Any = None

    def prepare_student(self, student: Student) -> Student:
        """See `Engine`; it is cut when its optimiser is made."""
        return student

    def prepare_teacher(self, model: Any) -> Any:
        """See `Engine`."""
        return self._teachers.prepare_teacher(model)

    def optimise(
        self, student: Student, settings: OptimiserSettings
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """See `Engine`."""
        self._settings = settings
        hollow = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in student.parameters()}
        self._outline = copy.deepcopy(student, hollow)
        for module in student.modules():
            if type(module) is nn.Linear:
                module.forward = MethodType(_linear, module)
        # It remembers the root of every model before, and with it that model.
        importlib.import_module("deepspeed.runtime.zero.parameter_offload").FWD_MODULE_STACK.clear()
        optimiser = make_optimiser(student, settings)
        self._engine, *_ = self._library.initialize(
            model=student, optimizer=optimiser, config=_config(student), dist_init_required=False
        )
        return _Root(self._engine), optimiser

    def apply(self, student: Student, optimiser: torch.optim.Optimizer, clip: float) -> float:
        """See `Engine`."""
        zero = self._engine.optimizer
        # The loss is divided by the questions of all ranks, so gradients are summed; they come as
        # means. A weight that no pass of the next step uses must not find this one's.
        zero.grad_partitions_flat_buffer.mul_(ranks.count())
        zero.clip_grad = clip
        self._engine.step()
        zero.grad_partitions_flat_buffer.zero_()
        if not self._engine.was_step_applied():
            raise NonFiniteLossError("the gradient norm is not finite; nothing was applied")
        return float(self._engine.get_global_grad_norm())

    @contextmanager
    def whole(self, student: Student) -> Iterator[Any]:
        """See `Engine`."""
        self._engine.empty_partition_cache()
        yield plain_copy(
            student.vlm, dtype=student.precision, device=self._device, together=self._together
        )

    def exported(self, student: Student) -> tuple[Any, dict[str, torch.Tensor]] | None:
        """See `Engine`."""
        self._engine.empty_partition_cache()
        here = ranks.rank() == 0
        made = plain_copy(
            student.vlm, dtype=torch.float32, device="cpu", here=here, together=self._together
        )
        return (made, made.state_dict()) if here else None

    def optimiser_state(self, optimiser: torch.optim.Optimizer) -> dict[str, Any] | None:
        """See `Engine`."""
        return whole_optimiser_state(self._by_rows(optimiser)[1], here=ranks.rank() == 0)

    def take_optimiser_state(self, optimiser: torch.optim.Optimizer, file: Path) -> None:
        """See `Engine`."""
        laid_out, moments = self._by_rows(optimiser)
        load_optimiser(moments, file)
        self._take_moments(optimiser, laid_out, moments)

    def save(
        self, folder: Path, model: Student, optimiser: torch.optim.Optimizer, position: Position
    ) -> None:
        """See `Engine`."""
        save_sharded_checkpoint(folder, *self._by_rows(optimiser), position)

    @torch.no_grad()
    def load(
        self, folder: Path, model: Student, optimiser: torch.optim.Optimizer
    ) -> Position | None:
        """See `Engine`."""
        if newest(folder) is None:
            return None
        laid_out, moments = self._by_rows(optimiser)
        position = load_sharded_checkpoint(folder, laid_out, moments)
        for mine, rows in self._trained(laid_out):
            own = _own_numbers(mine, rows)
            self._local.safe_set_local_fp32_param(mine, own)  # what Adam changes
            mine.ds_tensor.copy_(own)  # what layers are brought together of
        self._take_moments(optimiser, laid_out, moments)
        return position

    # ------------------------------------------------------------------------ laid out by rows

    @property
    def _local(self) -> Any:
        """What DeepSpeed offers to read and write a rank's part."""
        return self._library.utils

    def _together(self, parameter: torch.Tensor) -> Any:
        return _Together(self._library, parameter)

    def _trained(self, laid_out: nn.Module) -> Iterator[tuple[Any, DTensor]]:
        """Each trained weight as DeepSpeed has it, and by rows."""
        pairs = zip(self._engine.module.parameters(), laid_out.parameters(), strict=True)
        for mine, rows in pairs:
            if mine.requires_grad:
                assert isinstance(rows, DTensor)
                yield mine, rows

    @torch.no_grad()
    def _by_rows(self, optimiser: torch.optim.Optimizer) -> tuple[Student, torch.optim.Optimizer]:
        """The student and its optimiser as `fsdp2` has them: 1/N of each on this rank's host.

        Frozen weights are left out: no checkpoint holds them.
        """
        self._engine.empty_partition_cache()
        numbers: dict[int, nn.Parameter] = {}
        pairs = list(zip(self._engine.module.parameters(), self._outline.parameters(), strict=True))
        for mine, hollow in pairs:
            numbers[id(hollow)] = hollow
            if mine.requires_grad:
                with self._together(mine) as weight:
                    numbers[id(hollow)] = nn.Parameter(self._cut(weight))
        laid_out = copy.deepcopy(self._outline, dict(numbers))
        moments = make_optimiser(laid_out, self._settings)
        for here, ours in zip(moments.param_groups, optimiser.param_groups, strict=True):
            here["lr"] = ours["lr"]
        steps = [state["step"] for state in optimiser.state.values()]
        for mine, hollow in pairs:
            if steps and mine.requires_grad:
                moments.state[numbers[id(hollow)]] = {"step": steps[0].cpu().clone()} | {
                    key: self._cut(self._local.safe_get_full_optimizer_state(mine, key))
                    for key in MOMENTS
                }
        return laid_out, moments

    def _cut(self, whole: torch.Tensor) -> DTensor:
        """This rank's rows of it, on the host."""
        cut = distribute_tensor(whole.detach().cpu(), self._rows, [Shard(0)], src_data_rank=None)
        return DTensor.from_local(
            cut.to_local().clone(), self._rows, [Shard(0)], run_check=False,
            shape=whole.shape, stride=whole.stride(),
        )  # fmt: skip

    @torch.no_grad()
    def _take_moments(
        self, optimiser: torch.optim.Optimizer, laid_out: Student, moments: torch.optim.Optimizer
    ) -> None:
        steps = {float(state["step"]) for state in moments.state.values()} - {0.0}
        if len(steps) > 1:
            raise StageError(
                f"the saved optimiser has taken {sorted(steps)} steps with one weight and another; "
                "DeepSpeed counts one number for all. Go on with runtime.engine=fsdp2 or single"
            )
        if not steps:
            return
        for flat in self._engine.optimizer.fp32_partitioned_groups_flat:
            optimiser.state[flat] = {"step": torch.tensor(steps.copy().pop())} | {
                key: torch.zeros_like(flat, requires_grad=False) for key in MOMENTS
            }
        for mine, rows in self._trained(laid_out):
            for key in MOMENTS if rows in moments.state else ():
                own = _own_numbers(mine, moments.state[rows][key])
                self._local.safe_set_local_optimizer_state(mine, own, key)


class _Root(nn.Module):
    """What training calls: DeepSpeed's engine, whose outputs may be differentiated twice."""

    def __init__(self, engine: Any) -> None:
        super().__init__()
        self._engine = engine

    @property
    def module(self) -> Student:
        return self._engine.module

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        # Its own outputs have hooks that take any gradient for the beginning of the one backward
        # pass; slopes are asked of these.
        return tuple(out.view_as(out) for out in self._engine(*args, **kwargs))


class _Together:
    """A weight brought together; within, what is entered is whole."""

    def __init__(self, library: Any, parameter: torch.Tensor) -> None:
        self._gathered, self._parameter = library.zero.GatheredParameters([parameter]), parameter

    def __enter__(self) -> torch.Tensor:
        self._gathered.__enter__()
        return self._parameter.data

    def __exit__(self, *error: Any) -> None:
        self._gathered.__exit__(*error)


def _linear(self: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """A linear layer that keeps its weight's name for the backward pass, not its numbers.

    torch keeps a transposed view, which would hold every weight whole until then.
    """
    product: Any = importlib.import_module("deepspeed.runtime.zero.linear")
    return product.zero3_linear_wrap(states, self.weight, self.bias)


def _own_numbers(mine: Any, rows: DTensor) -> torch.Tensor:
    """This rank's part, as DeepSpeed cuts it, of what lies by rows; all ranks call this."""
    flat = rows.full_tensor().flatten()
    each = mine.ds_tensor.numel()
    padded = nn.functional.pad(flat, (0, each * ranks.count() - len(flat)))
    return padded[ranks.rank() * each :][:each]


def _config(student: Student) -> dict[str, Any]:
    numbers = sum(p.numel() for p in student.parameters())
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # as many passes as a step has
        "steps_per_print": 2**62,
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": min(_BUCKET, numbers),
            "stage3_prefetch_bucket_size": min(_BUCKET, numbers // 8),
            # Nothing stays whole: neither small weights nor those that come again soon.
            "stage3_param_persistence_threshold": 0,
            "stage3_max_reuse_distance": 0,
        },
    }
