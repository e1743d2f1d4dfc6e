"""JSD to a teacher of whom only the k likeliest tokens of each distribution are known; log-prob.

All other tokens are one bucket, for teacher P and student Q alike. Merging tokens never raises a
divergence, and what it takes away lies within the bucket:

    0 <= JSD_b(P||Q) - JSD_b(bucketed) <= ln 2 (b tau_T + (1 - b) tau_S),   tau the bucket's mass.

The gradient is that of the exact JSD with log(Q / mix) taken per bucket:

    dJSD/dz_v = Q_v * (g_bucket(v) - sum_j Q_j g_j),  g = (1 - b) log(Q / mix)

over the temperature. Shape suffixes: N response tokens, D hidden, V vocabulary, W tokens of both
models, K kept ones, J = K + 1 buckets, C tokens of a chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import log_softmax

from masters.training.losses import entropy_from_log_probs, jsd_from_log_probs
from masters.training.token_scores import ScoreSettings

#: Tokens at a time, where nobody says otherwise.
CHUNK = 256


@dataclass(kw_only=True)
class TopTokens:
    """The likeliest tokens of a teacher's distributions over the W tokens that both models have.

    Args:
        logits_NK: of the kept tokens, in the teacher's compute dtype, which holds them exactly.
        ids_NK: which tokens they are, int32 or int64.
        rest_N: logsumexp of the other tokens' logits over the temperature, in float32 or wider;
            -inf where there are none.
        bound_N: filled by ``topk_scores``: at most so much is missing from the divergence, in nats.
    """

    logits_NK: torch.Tensor
    ids_NK: torch.Tensor
    rest_N: torch.Tensor
    bound_N: torch.Tensor | None = None


def top_tokens(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor,
    *,
    k: int,
    common: int,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> TopTokens:
    """The k likeliest tokens of each distribution, and the rest in one number.

    Args:
        hidden_ND: the teacher's last hidden states; the products are in their dtype.
        head_VD: its output head.
        k: how many tokens are kept (at most ``common``).
        common: the first so many tokens are compared; the rest of the head plays no part.
        temperature: of the JSD.
        chunk: tokens at a time.
    """
    head_WD = head_VD.detach()[:common].to(hidden_ND.dtype)
    k = min(k, common)
    parts: list[tuple[torch.Tensor, ...]] = []
    for hidden_CD in hidden_ND.detach().split(chunk):
        logits_CW = hidden_CD @ head_WD.T
        top_CK, ids_CK = logits_CW.topk(k, dim=-1)
        rest_C = _rest(_widened(logits_CW) / temperature, ids_CK)
        parts.append((top_CK, ids_CK.to(torch.int32), rest_C))
    logits_NK, ids_NK, rest_N = (torch.cat(part) for part in zip(*parts, strict=True))
    return TopTokens(logits_NK=logits_NK, ids_NK=ids_NK, rest_N=rest_N)


def topk_scores(
    hidden_S: torch.Tensor,
    head_S: torch.Tensor,
    top: TopTokens,
    targets: torch.Tensor,
    settings: ScoreSettings | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(jsd_N, logp_N) as ``token_scores`` gives them, the JSD over the buckets of ``top``.

    Differentiable in ``hidden_S`` and ``head_S``. Fills ``top.bound_N`` and ``settings.entropy_N``;
    the teacher's entropy cannot be told from what is kept.

    Args:
        hidden_S: [N, D_S], the student's last hidden states at the positions that predict targets.
        head_S: [V_S, D_S], its output head.
        top: what is known of the teacher, at the settings' temperature.
        targets: [N], token ids below ``settings.vocabulary``.
        settings: see ScoreSettings.
    """
    settings = settings or ScoreSettings()
    if settings.divergence is not None:
        raise ValueError("stored top-k tokens bound a JSD, and no other divergence")
    if len(top.ids_NK) != len(hidden_S) or len(targets) != len(hidden_S):
        raise ValueError(
            f"{len(top.ids_NK)} teacher tokens and {len(targets)} targets for {len(hidden_S)} "
            "student tokens; expected as many of each"
        )
    return _TopScores.apply(hidden_S, head_S, top, targets, settings)  # pyright: ignore[reportReturnType]


class _TopScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_S, head_S, top, targets, settings):
        compute = torch.float64 if hidden_S.dtype == torch.float64 else settings.dtype
        wide = torch.promote_types(compute, torch.float32)
        weight_VD = head_S.detach().to(compute)
        jsd_N = torch.empty(len(targets), dtype=wide, device=hidden_S.device)
        logp_N, bound_N, entropy_N = (torch.empty_like(jsd_N) for _ in range(3))
        for c in _chunks(targets, settings):
            chunk = _Chunk(hidden_S[c].detach(), weight_VD, top, c, settings)
            logp_N[c] = chunk.log_q_CV.gather(1, targets[c, None])[:, 0]
            jsd_N[c], bound_N[c] = chunk.jsd_C, chunk.bound()
            entropy_N[c] = entropy_from_log_probs(chunk.log_q_CV)
        top.bound_N, settings.entropy_N = bound_N, entropy_N
        ctx.save_for_backward(hidden_S, head_S, targets)
        ctx.top, ctx.settings, ctx.compute = top, settings, compute
        return jsd_N, logp_N

    @staticmethod
    def backward(ctx: Any, grad_jsd_N, grad_logp_N):  # pyright: ignore
        hidden_S, head_S, targets = ctx.saved_tensors
        settings = ctx.settings
        weight_VD = head_S.detach().to(ctx.compute)
        grad_hidden = torch.zeros_like(hidden_S)
        grad_head = torch.zeros_like(head_S) if ctx.needs_input_grad[1] else None
        jsd_norm_N, logp_norm_N = torch.zeros_like(grad_jsd_N), torch.zeros_like(grad_logp_N)
        for c in _chunks(targets, settings):
            h_CD = hidden_S[c].detach()
            chunk = _Chunk(h_CD, weight_VD, ctx.top, c, settings)
            dlogp_CV, djsd_CW = -chunk.log_q_CV.exp(), chunk.jsd_gradient()
            dlogp_CV.scatter_add_(1, targets[c, None], torch.ones_like(dlogp_CV[:, :1]))
            logp_CD = dlogp_CV.to(ctx.compute) @ weight_VD[: dlogp_CV.shape[1]]
            jsd_CD = djsd_CW.to(ctx.compute) @ weight_VD[: djsd_CW.shape[1]]
            logp_norm_N[c], jsd_norm_N[c] = (_widened(x).norm(dim=1) for x in (logp_CD, jsd_CD))
            total_CD = grad_logp_N[c, None] * logp_CD + grad_jsd_N[c, None] * jsd_CD
            grad_hidden[c] = total_CD.to(grad_hidden.dtype)
            if grad_head is not None:
                dlogp_CV *= grad_logp_N[c, None]
                dlogp_CV[:, : djsd_CW.shape[1]] += grad_jsd_N[c, None] * djsd_CW
                update = dlogp_CV.to(ctx.compute).T @ h_CD.to(ctx.compute)
                grad_head[: dlogp_CV.shape[1]] += update.to(grad_head.dtype)
        settings.jsd_norm_N, settings.logp_norm_N = jsd_norm_N, logp_norm_N
        return grad_hidden, grad_head, None, None, None


class _Chunk:
    """The student's distributions over a few tokens, and both models' over the buckets."""

    def __init__(
        self,
        hidden_CD: torch.Tensor,
        weight_VD: torch.Tensor,
        top: TopTokens,
        tokens: slice,
        settings: ScoreSettings,
    ) -> None:
        self.settings = settings
        vocabulary = len(weight_VD) if settings.vocabulary is None else settings.vocabulary
        common = vocabulary if settings.common is None else settings.common
        z_CV = _widened(hidden_CD.to(weight_VD.dtype) @ weight_VD[:vocabulary].T)
        self.log_q_CV = self.log_q_CW = log_softmax(z_CV, dim=-1)
        if common != vocabulary or settings.temperature != 1.0:
            self.log_q_CW = log_softmax(z_CV[:, :common] / settings.temperature, dim=-1)
        self.ids_CK = top.ids_NK[tokens].long()
        kept_CK = top.logits_NK[tokens].to(z_CV.dtype) / settings.temperature
        rest_C1 = top.rest_N[tokens, None].to(z_CV.dtype)
        self.log_p_CJ = log_softmax(torch.cat([kept_CK, rest_C1], dim=-1), dim=-1)
        rest_C = _rest(self.log_q_CW, self.ids_CK)
        self.log_q_CJ = torch.cat([self.log_q_CW.gather(1, self.ids_CK), rest_C[:, None]], dim=-1)
        self.jsd_C, self.log_q_mix_CJ, self.kl_q_C = jsd_from_log_probs(
            self.log_p_CJ, self.log_q_CJ, settings.beta
        )

    def bound(self) -> torch.Tensor:
        """[C], in nats."""
        beta = self.settings.beta
        tau_T, tau_S = self.log_p_CJ[:, -1].exp(), self.log_q_CJ[:, -1].exp()
        return math.log(2) * (beta * tau_T + (1 - beta) * tau_S)

    def jsd_gradient(self) -> torch.Tensor:
        """d JSD / d student logits of the common tokens, [C, W]."""
        slope_CW = self.log_q_mix_CJ[:, -1:].expand(self.log_q_CW.shape).clone()
        slope_CW.scatter_(1, self.ids_CK, self.log_q_mix_CJ[:, :-1])
        slope_CW = self.log_q_CW.exp() * (slope_CW - self.kl_q_C[:, None])
        return (1 - self.settings.beta) / self.settings.temperature * slope_CW


def _chunks(targets: torch.Tensor, settings: ScoreSettings) -> list[slice]:
    size = settings.chunk or CHUNK
    return [slice(start, start + size) for start in range(0, len(targets), size)]


def _rest(z_CW: torch.Tensor, ids_CK: torch.Tensor) -> torch.Tensor:
    """logsumexp [C] of all but the named tokens: exact however little it is; -inf without any."""
    return z_CW.scatter(1, ids_CK, -torch.inf).logsumexp(-1)


def _widened(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()
