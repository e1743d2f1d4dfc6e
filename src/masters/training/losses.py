"""Divergences and policy terms, one value per token, never reduced.

Shape suffixes: V vocabulary; N any number of tokens; ``...`` any leading shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import log_softmax


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """D = c_p KL(P || mix) + c_q KL(Q || mix), mix = b P + (1 - b) Q; P teacher, Q student.

    Args:
        b: the teacher's share of the mixture, in [0, 1].
        c_p, c_q: weights of the two, at least 0.
    """

    b: float
    c_p: float
    c_q: float

    @property
    def only_logs(self) -> bool:
        """Whether dD/dQ is c_q log(Q / mix) alone: what mix does to both terms is a constant."""
        return self.b == 1 or self.c_p * (1 - self.b) == self.c_q * self.b


def jsd_divergence(beta: float) -> Divergence:
    """The generalised Jensen-Shannon divergence of GKD (arXiv 2306.13649)."""
    return Divergence(b=beta, c_p=beta, c_q=1 - beta)


def skew_divergence(direction: Literal["forward", "reverse"], alpha: float) -> Divergence:
    """The skewed KL divergences of DistiLLM (arXiv 2402.03898), at most -ln alpha.

    forward: KL(P || alpha P + (1 - alpha) Q), with alpha 0 the KL of classic distillation; reverse:
    KL(Q || (1 - alpha) P + alpha Q), with alpha 0 the reverse KL of MiniLLM.
    """
    if direction == "forward":
        return Divergence(b=alpha, c_p=1, c_q=0)
    return Divergence(b=1 - alpha, c_p=0, c_q=1)


def divergence_from_log_probs(
    log_p_V: torch.Tensor, log_q_V: torch.Tensor, divergence: Divergence
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """D and its pieces from log-probabilities [..., V]: (D, log(Q / mix), KL(Q || mix)).

    The two extra values are what `divergence_slope` needs. Where mix is P or Q itself its logarithm
    is theirs, however small it is.
    """
    d = divergence
    p_V, q_V = log_p_V.exp(), log_q_V.exp()
    if 0 < d.b < 1:
        log_mix_V = torch.lerp(q_V, p_V, d.b).clamp_min(torch.finfo(p_V.dtype).tiny).log()
    else:
        log_mix_V = log_p_V if d.b == 1 else log_q_V
    log_q_mix_V = (log_q_V - log_mix_V).clamp_min(-1e4)
    kl_q = (q_V * log_q_mix_V).sum(-1)
    if d.c_p == 0:
        return d.c_q * kl_q, log_q_mix_V, kl_q
    kl_p = (p_V * (log_p_V - log_mix_V).clamp_min(-1e4)).sum(-1)
    return d.c_p * kl_p + d.c_q * kl_q, log_q_mix_V, kl_q


def divergence_slope(
    log_p_V: torch.Tensor,
    log_q_V: torch.Tensor,
    log_q_mix_V: torch.Tensor,
    kl_q: torch.Tensor,
    divergence: Divergence,
    temperature: float,
) -> torch.Tensor:
    """dD/dz of the student's logits [..., V], from what `divergence_from_log_probs` gives.

    Q (g - sum_v Q g) over the temperature, g = c_q log(Q / mix) - (1 - b) (c_p P + c_q Q) / mix. Of
    the second part Q / mix is taken together, for it is at most 1 / (1 - b) however small both are.
    ``log_q_mix_V`` is written over.
    """
    d = divergence
    bent_V = None
    if not d.only_logs:
        bent_V = d.c_p * log_p_V.exp() if d.c_q == 0 else d.c_q * log_q_V.exp()
        if d.c_p and d.c_q:
            bent_V = bent_V + d.c_p * log_p_V.exp()
        bent_V = bent_V * log_q_mix_V.exp()
        bent_V = bent_V.mul_((1 - d.b) / temperature)
    q_V = log_q_V.exp()
    slope_V = log_q_mix_V.sub_(kl_q[..., None]).mul_(q_V)
    slope_V *= d.c_q / temperature
    if bent_V is not None:
        slope_V -= bent_V.sub_(q_V * bent_V.sum(-1, keepdim=True))
    return slope_V


def jsd_from_log_probs(
    log_p_V: torch.Tensor, log_q_V: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """JSD_b and its pieces: see `divergence_from_log_probs`; dJSD/dQ = (1 - b) log(Q / mix)."""
    return divergence_from_log_probs(log_p_V, log_q_V, jsd_divergence(beta))


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
