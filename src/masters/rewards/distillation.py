"""The distillation reward: how easily an answer transfers (Eq. 7 of arXiv 2512.22238)."""

from __future__ import annotations

import torch


def distillation_reward(
    divergence_G: torch.Tensor, *, min_span: float = 1e-4, normalise: bool = True
) -> torch.Tensor:
    """R_distill of one question's group: 1 for the most easily learnt response, 0 for the hardest.

    R_j = (D_max - D_j) / (D_max - D_min), over all G responses of the question, sources pooled.
    Where D_max - D_min < ``min_span`` every response gets 1: min-max would otherwise blow rounding
    noise up to full-size rewards.

    Args:
        divergence_G: [G], mean per-token divergence to the teacher in nats, at least 0.
        min_span: nats.
        normalise: False gives -D_j as it is (the paper's "without min-max" ablation).

    Returns:
        [G], detached, in [0, 1] (or <= 0 without normalisation).
    """
    if divergence_G.ndim != 1 or divergence_G.numel() == 0:
        raise ValueError(
            f"divergence_G has shape {tuple(divergence_G.shape)}; expected [G], G >= 1"
        )
    divergence_G = divergence_G.detach().double()
    if not normalise:
        return -divergence_G
    largest, smallest = divergence_G.max(), divergence_G.min()
    if largest - smallest < min_span:
        return torch.ones_like(divergence_G)
    return (largest - divergence_G) / (largest - smallest)
