"""Group-relative advantages (Eq. 9 of arXiv 2512.22238)."""

from __future__ import annotations

import torch


def group_advantages(reward_G: torch.Tensor, *, min_spread: float = 1e-6) -> torch.Tensor:
    """A_j = (R_j - mean R) / std R over one question's group, both sources together.

    Args:
        reward_G: [G], G >= 2.
        min_spread: a sample standard deviation (n - 1) below this gives A = 0: no signal.

    Returns:
        [G], detached; sums to 0; every |A_j| <= (G - 1) / sqrt(G).
    """
    if reward_G.ndim != 1 or reward_G.numel() < 2:
        raise ValueError(f"reward_G has shape {tuple(reward_G.shape)}; expected [G] with G >= 2")
    reward_G = reward_G.detach().double()
    spread = reward_G.std(correction=1)
    if spread < min_spread:
        return torch.zeros_like(reward_G)
    return (reward_G - reward_G.mean()) / spread
