"""JSD and sampled log-prob of each response token from hidden states, without a [T, V] tensor.

The vocabulary-sized tensors of both models exist for one chunk of tokens at a time. Forward keeps
hidden states and per-token numbers only; backward makes a chunk's logits once more and applies the
analytic gradients

    dJSD/dz = Q * (g - sum_v Q g),  g = (1 - b) log(Q / mix),  over the temperature
    dlog q(y)/dz = onehot(y) - Q

so that any weighting of the two (per token) costs one pass. Rows of a head beyond its vocabulary
are padding and never enter a softmax: log q is over the student's own tokens, the JSD over those
that both models have. Shape suffixes: N response tokens, D hidden, V vocabulary, C tokens of a
chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import log_softmax

from masters.training.losses import jsd_from_log_probs

CHUNK = 1024


@dataclass(kw_only=True)
class ScoreSettings:
    """How tokens are scored, and what the backward pass found on its way.

    Args:
        beta: weight of the teacher in the JSD.
        temperature: of the JSD; log-probs are always at temperature 1.
        vocabulary: rows of the student's head that are real tokens (None: all of them).
        common: the first so many tokens are the teacher's too, and the JSD is over those (None: all
            of ``vocabulary``).
        dtype: of the matrix products (their result is widened to float32 before the softmax).
        chunk: tokens per chunk.
        jsd_norm_N: filled by backward: |dJSD_n / dh_n| of each token.
        logp_norm_N: filled by backward: |dlog q(y_n) / dh_n| of each token.
        bound_N: at most so much is missing from the JSD (stored top-k); None: it is exact.
    """

    beta: float = 0.5
    temperature: float = 1.0
    vocabulary: int | None = None
    common: int | None = None
    dtype: torch.dtype = torch.float32
    chunk: int = CHUNK
    jsd_norm_N: torch.Tensor | None = field(default=None)
    logp_norm_N: torch.Tensor | None = field(default=None)
    bound_N: torch.Tensor | None = field(default=None)


def token_scores(
    hidden_S: torch.Tensor,
    head_S: torch.Tensor,
    hidden_T: torch.Tensor | None,
    head_T: torch.Tensor | None,
    targets: torch.Tensor,
    settings: ScoreSettings | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(jsd_N, logp_N): divergence to the teacher and log-prob of the target, per response token.

    Differentiable in ``hidden_S`` and ``head_S``; the teacher gets no gradient.

    Args:
        hidden_S: [N, D_S], the student's last hidden states at the positions that predict targets.
        head_S: [V_S, D_S], its output head.
        hidden_T: [N, D_T] of the teacher, or None: jsd_N is then 0.
        head_T: [V_T, D_T].
        targets: [N], token ids below ``settings.vocabulary``.
        settings: see ScoreSettings.

    Returns:
        jsd_N in [0, ln 2] nats and logp_N <= 0, float32 (float64 for float64 inputs).
    """
    settings = settings or ScoreSettings()
    if hidden_S.ndim != 2 or targets.shape != hidden_S.shape[:1]:
        raise ValueError(
            f"hidden_S {tuple(hidden_S.shape)} and targets {tuple(targets.shape)}; expected [N, D] "
            "and [N]"
        )
    if (hidden_T is None) != (head_T is None):
        raise ValueError("hidden_T and head_T come together or not at all")
    if hidden_T is not None and hidden_T.shape[0] != hidden_S.shape[0]:
        raise ValueError(
            f"{hidden_T.shape[0]} teacher tokens for {hidden_S.shape[0]} student tokens"
        )
    vocabulary, common = _widths(head_S, settings)
    heads = [head_S] if head_T is None else [head_S, head_T]
    if vocabulary > head_S.shape[0] or common > min(vocabulary, *(len(head) for head in heads)):
        raise ValueError(
            f"vocabulary {vocabulary}, common {common} for heads of "
            f"{' and '.join(str(len(head)) for head in heads)} rows; expected common <= vocabulary "
            "and a row for each token"
        )
    return _TokenScores.apply(hidden_S, head_S, hidden_T, head_T, targets, settings)  # pyright: ignore[reportReturnType]


def _widths(head_S: torch.Tensor, settings: ScoreSettings) -> tuple[int, int]:
    """(tokens of the student, tokens of both models)."""
    vocabulary = head_S.shape[0] if settings.vocabulary is None else settings.vocabulary
    return vocabulary, vocabulary if settings.common is None else settings.common


def log_probs(
    hidden_CD: torch.Tensor, head_VD: torch.Tensor, vocabulary: int, temperature: float
) -> torch.Tensor:
    """Log-probabilities [C, vocabulary] of a chunk of hidden states, float32 or wider."""
    logits_CV = hidden_CD.to(head_VD.dtype) @ head_VD[:vocabulary].T
    if logits_CV.dtype != torch.float64:
        logits_CV = logits_CV.float()
    return log_softmax(logits_CV / temperature if temperature != 1.0 else logits_CV, dim=-1)


class _TokenScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_S, head_S, hidden_T, head_T, targets, settings):
        compute = torch.float64 if hidden_S.dtype == torch.float64 else settings.dtype
        vocabulary, common = _widths(head_S, settings)
        apart = common != vocabulary or settings.temperature != 1.0
        wide = torch.promote_types(compute, torch.float32)
        jsd_N = torch.zeros(len(targets), dtype=wide, device=hidden_S.device)
        logp_N = torch.empty_like(jsd_N)
        weight_S = head_S.detach().to(compute)
        weight_T = None if head_T is None else head_T.detach().to(compute)
        for start in range(0, len(targets), settings.chunk):
            c = slice(start, start + settings.chunk)
            log_q_CV = log_probs(hidden_S[c].detach(), weight_S, vocabulary, 1.0)
            logp_N[c] = log_q_CV.gather(1, targets[c, None])[:, 0]
            if weight_T is not None:
                log_p_CV = log_probs(hidden_T[c].detach(), weight_T, common, settings.temperature)
                if apart:
                    log_q_CV = log_probs(
                        hidden_S[c].detach(), weight_S, common, settings.temperature
                    )
                jsd_N[c] = jsd_from_log_probs(log_p_CV, log_q_CV, settings.beta)[0]
        ctx.save_for_backward(hidden_S, head_S, hidden_T, head_T, targets)
        ctx.settings, ctx.compute, ctx.widths = settings, compute, (vocabulary, common)
        return jsd_N, logp_N

    @staticmethod
    def backward(ctx: Any, grad_jsd_N, grad_logp_N):  # pyright: ignore
        hidden_S, head_S, hidden_T, head_T, targets = ctx.saved_tensors
        settings, (vocabulary, common) = ctx.settings, ctx.widths
        weight_S = head_S.detach().to(ctx.compute)
        weight_T = None if head_T is None else head_T.detach().to(ctx.compute)
        grad_hidden = torch.zeros_like(hidden_S)
        grad_head = torch.zeros_like(head_S) if ctx.needs_input_grad[1] else None
        jsd_norm_N, logp_norm_N = torch.zeros_like(grad_jsd_N), torch.zeros_like(grad_logp_N)
        for start in range(0, len(targets), settings.chunk):
            c = slice(start, start + settings.chunk)
            h_CD = hidden_S[c].detach()
            log_q_CV = log_probs(h_CD, weight_S, vocabulary, 1.0)
            dlogp_CV = -log_q_CV.exp()
            dlogp_CV.scatter_add_(1, targets[c, None], torch.ones_like(dlogp_CV[:, :1]))
            towards_CD = dlogp_CV.to(ctx.compute) @ weight_S[:vocabulary]
            logp_norm_N[c] = towards_CD.float().norm(dim=1)
            total_CD = grad_logp_N[c, None] * towards_CD
            dlogits_CV = grad_logp_N[c, None] * dlogp_CV
            if weight_T is not None:
                djsd_CV = _jsd_gradient(h_CD, weight_S, hidden_T[c], weight_T, log_q_CV, ctx)
                apart_CD = djsd_CV.to(ctx.compute) @ weight_S[:common]
                jsd_norm_N[c] = apart_CD.float().norm(dim=1)
                total_CD = total_CD + grad_jsd_N[c, None] * apart_CD
                dlogits_CV[:, :common] += grad_jsd_N[c, None] * djsd_CV
            grad_hidden[c] = total_CD.to(grad_hidden.dtype)
            if grad_head is not None:
                update = dlogits_CV.to(ctx.compute).T @ h_CD.to(ctx.compute)
                grad_head[:vocabulary] += update.to(grad_head.dtype)
        settings.jsd_norm_N, settings.logp_norm_N = jsd_norm_N, logp_norm_N
        return grad_hidden, grad_head, None, None, None, None


def _jsd_gradient(
    h_CD: torch.Tensor,
    weight_S: torch.Tensor,
    hidden_T_CD: torch.Tensor,
    weight_T: torch.Tensor,
    log_q_CV: torch.Tensor,
    ctx: Any,
) -> torch.Tensor:
    """d JSD / d student logits of the common tokens, [C, V]."""
    settings, (vocabulary, common) = ctx.settings, ctx.widths
    log_p_CV = log_probs(hidden_T_CD.detach(), weight_T, common, settings.temperature)
    if common != vocabulary or settings.temperature != 1.0:
        log_q_CV = log_probs(h_CD, weight_S, common, settings.temperature)
    _, log_q_mix_CV, kl_q_C = jsd_from_log_probs(log_p_CV, log_q_CV, settings.beta)
    slope_CV = log_q_CV.exp() * (log_q_mix_CV - kl_q_C[:, None])
    return (1 - settings.beta) / settings.temperature * slope_CV
