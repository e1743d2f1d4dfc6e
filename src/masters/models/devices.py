"""Which device computes, whether it is there, and what it computes with."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

import torch

from masters.errors import ModelError

FLASH = "flash_attention_2"


def find_device(name: str, *, key: str) -> torch.device:
    """The device called ``name``; ``auto`` is cuda where there is one, else cpu.

    Args:
        name: auto, cpu, cuda, cuda:1 ...
        key: of the recipe, for the error.

    Raises:
        ModelError: torch knows no such device, or it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"{key} is {name!r}; expected auto, cpu, cuda or cuda:<number>") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            seen = f"{count} CUDA devices" if count else "no CUDA device"
            raise ModelError(
                f"{key} is {name}, but torch {torch.__version__} sees {seen}; expected one of "
                f"{', '.join(['cpu', *(f'cuda:{i}' for i in range(count))])}. `masters doctor` "
                "shows what is here"
            )
    return device


def to_device(
    tensors: Mapping[str, torch.Tensor], device: torch.device | str
) -> dict[str, torch.Tensor]:
    """The tensors on ``device``; a CUDA device fetches them from pinned memory as it computes."""
    if torch.device(device).type != "cuda":
        return {name: value.to(device) for name, value in tensors.items()}
    return {
        name: (value.pin_memory() if value.numel() else value).to(device, non_blocking=True)
        for name, value in tensors.items()
    }


def exact_arithmetic() -> None:
    """float32 means float32, and the same kernel every time: no TF32, no autotuning."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def check_attention(attention: str, device: torch.device, precision: torch.dtype) -> None:
    """Raises ModelError where flash attention is asked for and cannot run."""
    if attention != FLASH:
        return
    if device.type != "cuda":
        lacks, do = f"the device is {device}", "set runtime.attention=sdpa"
    elif precision == torch.float32:
        lacks, do = "precision is fp32", "set method.optimiser.precision=bf16, or attention sdpa"
    elif importlib.util.find_spec("flash_attn") is None:
        lacks, do = "it is not installed", "pip install flash-attn, or set runtime.attention=sdpa"
    else:
        return
    raise ModelError(
        f"runtime.attention is {FLASH}, but {lacks}; expected the package flash-attn, a CUDA "
        f"device and half precision: {do}"
    )
