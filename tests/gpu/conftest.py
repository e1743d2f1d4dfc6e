"""The device of these tests, and tiny models on it.

They need torch with CUDA, transformers, numpy, pillow, safetensors and pytest; what reads recipes
is not imported. ``make test-gpu`` runs them. ``MASTERS_GPU_TEST_DEVICE=cpu`` has their code run
where there is no GPU (what is about memory is skipped), to see that it does run.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from masters.models.devices import exact_arithmetic
from tests.invariant.conftest import Tiny, folders, load_tiny

__all__ = ["folders"]
DEVICE = os.environ.get("MASTERS_GPU_TEST_DEVICE", "cuda:0")


@pytest.fixture
def device() -> torch.device:
    if DEVICE.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} sees no CUDA device")
    exact_arithmetic()
    return torch.device(DEVICE)


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """The device, where it has memory of its own to measure."""
    if device.type != "cuda":
        pytest.skip("about the memory of a CUDA device")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return device


@pytest.fixture
def student(folders: tuple[Path, Path], device: torch.device) -> Tiny:
    """The student on the device; its prompts stay on the host."""
    return moved(load_tiny(folders[0]), device)


@pytest.fixture
def teacher(folders: tuple[Path, Path], device: torch.device) -> Tiny:
    return moved(load_tiny(folders[1]), device)


def moved(tiny: Tiny, device: torch.device) -> Tiny:
    tiny.model.to(device)
    return tiny
