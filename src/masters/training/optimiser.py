"""AdamW over what is trained, with moments of 32 or 8 bits, and its learning rate."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch

from masters.errors import StageError


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings:
    """AdamW on float32 weights: rate, decay, moments, schedule.

    Args:
        moments: fp32, or 8bit: blocks of 256 numbers share a scale (package bitsandbytes).
    """

    lr: float
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    schedule: str
    warmup: int
    moments: str = "fp32"


def make_optimiser(student: torch.nn.Module, settings: OptimiserSettings) -> torch.optim.Optimizer:
    """AdamW over everything trained.

    Raises:
        StageError: 8-bit moments without the package that keeps them.
    """
    options: dict[str, Any] = {
        "lr": settings.lr,
        "betas": settings.betas,
        "eps": settings.eps,
        "weight_decay": settings.weight_decay,
    }
    trained = [p for p in student.parameters() if p.requires_grad]
    if settings.moments == "fp32":
        return torch.optim.AdamW(trained, **options)
    return eight_bit_library().optim.AdamW8bit(trained, **options)


def eight_bit_library() -> Any:
    """The package bitsandbytes; raises StageError where it cannot be imported."""
    try:
        return importlib.import_module("bitsandbytes")
    except Exception as error:  # It looks for CUDA libraries on import and fails in many ways.
        raise StageError(
            f"method.optimiser.moments is 8bit, which needs the package bitsandbytes; importing it "
            f"failed ({error}). pip install 'masters[8bit]', or set method.optimiser.moments=fp32"
        ) from error


def learning_rate(step: int, total: int, settings: OptimiserSettings) -> float:
    """Rate of step ``step`` (0-based): linear warm-up, then constant or linear to 0."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return settings.lr
    return settings.lr * (total - step) / max(1, total - settings.warmup)
