"""Experiment trackers: TensorBoard and wandb, fed what metrics.jsonl gets."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from masters.errors import StageError


class Tracker(Protocol):
    """Something that shows numbers as they come."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in ``folder/tensorboard``."""

    def __init__(self, folder: Path) -> None:
        module: Any = importlib.import_module("torch.utils.tensorboard")
        self._writer = module.SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one scalar per metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes the event file."""
        self._writer.close()


class Wandb:
    """A wandb run, resumed by the stage folder's name."""

    def __init__(self, folder: Path) -> None:
        module: Any = importlib.import_module("wandb")
        self._run = module.init(
            project="masters", id=folder.name, name=folder.name, dir=str(folder), resume="allow"
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics at this step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finishes the run."""
        self._run.finish()


def open_trackers(names: Sequence[str], folder: Path) -> list[Tracker]:
    """The trackers asked for; raises StageError naming the package to install."""
    kinds: dict[str, tuple[type[TensorBoard] | type[Wandb], str]] = {
        "tensorboard": (TensorBoard, "tensorboard"),
        "wandb": (Wandb, "wandb"),
    }
    trackers: list[Tracker] = []
    for name in names:
        cls, package = kinds[name]
        try:
            trackers.append(cls(folder))
        except ImportError as error:
            raise StageError(
                f"runtime.trackers names {name}, but it is not installed ({error}); "
                f"pip install {package}, or leave it out"
            ) from error
    return trackers
