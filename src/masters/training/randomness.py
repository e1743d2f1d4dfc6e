"""The state of every generator that a forward pass may draw from."""

from __future__ import annotations

from typing import Any

import torch


def random_state() -> dict[str, Any]:
    """State of the host's generator and, once CUDA is in use, of its devices' (for dropout)."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device, one in enumerate(state["cuda"][:here]):
        torch.cuda.set_rng_state(one, device)
