"""Where trained weights lie while the loop runs: in one process, or spread over several.

The loop talks to an `Engine` alone. `Single` is the default; `training.fsdp` and
`training.deepspeed_engine` have the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from masters.training.checkpoints import (
    Position,
    load_checkpoint,
    save_checkpoint,
)
from masters.training.optimiser import OptimiserSettings, make_optimiser
from masters.training.sharded_checkpoints import load_optimiser, load_sharded_checkpoint, newest
from masters.training.step import apply_gradient
from masters.training.student import Student


class Engine(Protocol):
    """How models are held, saved and taken up again; all ranks call each method together."""

    def prepare_student(self, student: Student) -> Student:
        """The student, ready for an optimiser: every rank holds its part."""
        ...

    def prepare_teacher(self, model: Any) -> Any:
        """A frozen teacher, ready for forward passes of its trunk."""
        ...

    def optimise(
        self, student: Student, settings: OptimiserSettings
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """(what to call in the student's place, an optimiser of what is trained)."""
        ...

    def apply(self, student: Student, optimiser: torch.optim.Optimizer, clip: float) -> float:
        """See `step.apply_gradient`."""
        ...

    def whole(self, student: Student) -> AbstractContextManager[Any]:
        """The student's model as one that answers questions by itself, on every rank."""
        ...

    def exported(self, student: Student) -> tuple[Any, dict[str, torch.Tensor]] | None:
        """(a model to save, its plain tensors) on rank 0, None on the others."""
        ...

    def optimiser_state(self, optimiser: torch.optim.Optimizer) -> dict[str, Any] | None:
        """The optimiser's state with whole tensors on rank 0, None on the others."""
        ...

    def take_optimiser_state(self, optimiser: torch.optim.Optimizer, file: Path) -> None:
        """Takes up what ``optimiser_state`` gave, saved in a file."""
        ...

    def save(
        self, folder: Path, model: Student, optimiser: torch.optim.Optimizer, position: Position
    ) -> None:
        """Writes a checkpoint, whole or not there."""
        ...

    def load(
        self, folder: Path, model: Student, optimiser: torch.optim.Optimizer
    ) -> Position | None:
        """Takes up the newest checkpoint, whichever engine wrote it; None where there is none."""
        ...


class OwnOptimiser:
    """An engine whose student is called itself and whose optimiser is torch's (or of 8 bits)."""

    def optimise(
        self, student: Student, settings: OptimiserSettings
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """See `Engine`."""
        return student, make_optimiser(student, settings)

    def apply(self, student: Student, optimiser: torch.optim.Optimizer, clip: float) -> float:
        """See `Engine`."""
        return apply_gradient(student, optimiser, clip)


class Single(OwnOptimiser):
    """One process holds everything."""

    def prepare_student(self, student: Student) -> Student:
        """See `Engine`."""
        return student

    def prepare_teacher(self, model: Any) -> Any:
        """See `Engine`."""
        return model

    @contextmanager
    def whole(self, student: Student) -> Iterator[Any]:
        """See `Engine`."""
        yield student.vlm

    def exported(self, student: Student) -> tuple[Any, dict[str, torch.Tensor]] | None:
        """See `Engine`."""
        return student.vlm, student.plain_state()

    def optimiser_state(self, optimiser: torch.optim.Optimizer) -> dict[str, Any] | None:
        """See `Engine`."""
        return optimiser.state_dict()

    def take_optimiser_state(self, optimiser: torch.optim.Optimizer, file: Path) -> None:
        """See `Engine`."""
        load_optimiser(optimiser, file)

    def save(
        self, folder: Path, model: Student, optimiser: torch.optim.Optimizer, position: Position
    ) -> None:
        """See `Engine`."""
        save_checkpoint(folder, model, optimiser, position)

    def load(
        self, folder: Path, model: Student, optimiser: torch.optim.Optimizer
    ) -> Position | None:
        """See `Engine`."""
        found = newest(folder)
        if found is not None and found.sharded:
            return load_sharded_checkpoint(folder, model, optimiser)
        return load_checkpoint(folder, model, optimiser)
