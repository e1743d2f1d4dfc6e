"""Divergences and policy terms, one value per token, never reduced.

Shape suffixes: V vocabulary; N any number of tokens; ``...`` any leading shape.
"""

from __future__ import annotations

import torch
from torch.nn.functional import log_softmax


def jsd_from_log_probs(
    log_p_V: torch.Tensor, log_q_V: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """JSD_b and its pieces from log-probabilities [..., V]: (jsd, log(Q / mix), KL(Q || mix)).

    The two extra values are what the analytic gradient needs: dJSD/dQ = (1 - b) log(Q / mix).
    """
    p_V, q_V = log_p_V.exp(), log_q_V.exp()
    log_mix_V = torch.lerp(q_V, p_V, beta).clamp_min(torch.finfo(p_V.dtype).tiny).log()
    log_q_mix_V = (log_q_V - log_mix_V).clamp_min(-1e4)
    kl_p = (p_V * (log_p_V - log_mix_V).clamp_min(-1e4)).sum(-1)
    kl_q = (q_V * log_q_mix_V).sum(-1)
    return beta * kl_p + (1 - beta) * kl_q, log_q_mix_V, kl_q


def entropy_from_log_probs(log_p_V: torch.Tensor) -> torch.Tensor:
    """Entropy -sum_v p log p of log-probabilities [..., V], in nats: [...], from 0 to ln V."""
    return -(log_p_V.exp() * log_p_V.clamp_min(-1e4)).sum(-1)


def jsd(
    logits_teacher: torch.Tensor,
    logits_student: torch.Tensor,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Generalised Jensen-Shannon divergence between teacher P and student Q, in nats.

    JSD_b(P||Q) = b KL(P||mix) + (1 - b) KL(Q||mix), mix = b P + (1 - b) Q (GKD, arXiv 2306.13649;
    D of Eq. 4 and 5 of arXiv 2512.22238 with b = 0.5). No T^2 factor is applied.

    Args:
        logits_teacher: [..., V].
        logits_student: [..., V], same shape.
        beta: weight of the teacher, in (0, 1).
        temperature: divides both logits, above 0.

    Returns:
        [...], float32 or wider, between 0 and H(beta) <= ln 2, differentiable in both arguments.
    """
    if logits_teacher.shape != logits_student.shape:
        raise ValueError(
            f"teacher logits {tuple(logits_teacher.shape)} and student logits "
            f"{tuple(logits_student.shape)} differ in shape"
        )
    if not 0 < beta < 1:
        raise ValueError(f"beta is {beta}; expected a number in (0, 1)")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a number above 0")
    log_p = log_softmax(_widen(logits_teacher) / temperature, dim=-1)
    log_q = log_softmax(_widen(logits_student) / temperature, dim=-1)
    return jsd_from_log_probs(log_p, log_q, beta)[0]


def _widen(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def k3(log_ref_N: torch.Tensor, logp_N: torch.Tensor) -> torch.Tensor:
    """k3 estimate of KL(pi || pi_ref) per token: exp(d) - d - 1, d = log pi_ref - log pi.

    Written as expm1(d) - d, in float32 or wider. At least 0; 0 where both agree.
    """
    d_N = _widen(log_ref_N) - _widen(logp_N)
    return torch.expm1(d_N) - d_N


def policy_term(logp_N: torch.Tensor, advantage_N: torch.Tensor, *, clip: float) -> torch.Tensor:
    """min(rho A, clip(rho, 1 - e, 1 + e) A) per token (Eq. 8 of arXiv 2512.22238).

    rho = exp(log pi - stopgrad(log pi)): one update a batch, so rho is 1 in value, the clip never
    acts, and the gradient is A grad log pi.
    """
    rho_N = torch.exp(logp_N - logp_N.detach())
    return torch.minimum(rho_N * advantage_N, rho_N.clamp(1 - clip, 1 + clip) * advantage_N)
