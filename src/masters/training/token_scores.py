"""JSD, log-prob and entropy of each response token from hidden states, without a [T, V] tensor.

Logits of both models exist for one chunk of tokens, in one buffer each. Forward keeps hidden
states, per-token numbers and one chunk's logits; backward begins with that chunk, makes every other
chunk's logits once more, and writes over them the analytic gradients

    dJSD/dz = Q * (g - sum_v Q g),  g = (1 - b) log(Q / mix),  over the temperature
    (other divergences: `losses.divergence_slope`)
    dlog q(y)/dz = onehot(y) - Q

Between the products everything runs over blocks of a few tokens that fit a processor's cache: fresh
memory for each step of a softmax costs more than the step. Rows of a head beyond its vocabulary are
padding and never enter a softmax: log q is over the student's own tokens, the JSD over those that
both models have. Shape suffixes: N response tokens, D hidden, V vocabulary, W tokens of both
models, C tokens of a chunk, B of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import log_softmax

from masters.training.losses import (
    Divergence,
    divergence_from_log_probs,
    divergence_slope,
    entropy_from_log_probs,
    jsd_divergence,
)

#: Bytes that a chunk's logits may take (CPU, accelerator), unless the shortest chunk takes more.
CHUNK_BYTES = (3 << 24, 1 << 30)
#: Shorter chunks slow the matrix products down, longer ones gain nothing.
SHORTEST_CHUNK, LONGEST_CHUNK = 192, 4096
#: Numbers of a block: some blocks fit a core's cache, one fills an accelerator.
BLOCK = (1 << 17, 1 << 25)
#: Head rows whose gradient is made at once.
HEAD_ROWS = 8192


@dataclass(kw_only=True)
class ScoreSettings:
    """How tokens are scored, and what was found on the way.

    Args:
        beta: weight of the teacher in the JSD.
        divergence: in place of the JSD; None: the JSD of ``beta``.
        temperature: of the JSD; log-probs and entropies are always at temperature 1.
        vocabulary: rows of the student's head that are real tokens (None: all of them).
        common: the first so many tokens are the teacher's too, and the JSD is over those (None: all
            of ``vocabulary``).
        dtype: of the matrix products (their result is widened to float32 before the softmax).
        chunk: tokens per chunk (None: see ``chunk_length``).
        norms: measure the norms below: one more product where the loss has both scores.
        entropy_N, teacher_entropy_N: filled by forward, in nats; the teacher's over ``common``.
        jsd_norm_N, logp_norm_N: filled by backward: |dJSD_n / dh_n| and |dlog q(y_n) / dh_n|; None
            for a score that the loss lacks.
        bound_N: at most so much is missing from the JSD (stored top-k); None: it is exact.
    """

    beta: float = 0.5
    divergence: Divergence | None = None
    temperature: float = 1.0
    vocabulary: int | None = None
    common: int | None = None
    dtype: torch.dtype = torch.float32
    chunk: int | None = None
    norms: bool = True
    entropy_N: torch.Tensor | None = field(default=None)
    teacher_entropy_N: torch.Tensor | None = field(default=None)
    jsd_norm_N: torch.Tensor | None = field(default=None)
    logp_norm_N: torch.Tensor | None = field(default=None)
    bound_N: torch.Tensor | None = field(default=None)

    @property
    def compared(self) -> Divergence:
        """The divergence that ``jsd_N`` is."""
        return self.divergence or jsd_divergence(self.beta)


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
    rows = [len(head_S)] if head_T is None else [len(head_S), len(head_T)]
    if vocabulary > rows[0] or common > min(vocabulary, *rows):
        raise ValueError(
            f"vocabulary {vocabulary}, common {common} for heads of {' and '.join(map(str, rows))} "
            "rows; expected common <= vocabulary and a row for each token"
        )
    trained = torch.is_grad_enabled() and (hidden_S.requires_grad or head_S.requires_grad)
    return _TokenScores.apply(hidden_S, head_S, hidden_T, head_T, targets, settings, trained)  # pyright: ignore[reportReturnType]


def chunk_length(width: int, dtype: torch.dtype, device: torch.device) -> int:
    """Tokens of a chunk, ``width`` numbers each, however many tokens there are in all."""
    fitting = CHUNK_BYTES[device.type != "cpu"] // (width * dtype.itemsize)
    return min(max(fitting, SHORTEST_CHUNK), LONGEST_CHUNK)


def _widths(head_S: torch.Tensor, settings: ScoreSettings) -> tuple[int, int]:
    """(tokens of the student, tokens of both models)."""
    vocabulary = head_S.shape[0] if settings.vocabulary is None else settings.vocabulary
    return vocabulary, vocabulary if settings.common is None else settings.common


class _Logits:
    """The logits of one chunk of tokens under both models, in buffers that every chunk reuses."""

    def __init__(self, saved: tuple[Any, ...], settings: ScoreSettings) -> None:
        hidden_S, head_S, hidden_T, head_T, targets = saved
        dtype = torch.float64 if hidden_S.dtype == torch.float64 else settings.dtype
        vocabulary, common = _widths(head_S, settings)
        width = vocabulary + (0 if head_T is None else common)
        self.settings, self.common, self.targets = settings, common, targets
        self.hidden_S, self.hidden_T = hidden_S.detach(), hidden_T
        # Slices of rows are views; a conversion copies, and there is none where the dtypes agree.
        self.head_S = head_S.detach()[:vocabulary].to(dtype)
        self.head_T = None if head_T is None else head_T.detach()[:common].to(dtype)
        length = settings.chunk or chunk_length(width, dtype, hidden_S.device)
        self.starts = range(0, len(targets), length)
        rows = min(length, len(targets))
        self._S = hidden_S.new_empty(rows, vocabulary, dtype=dtype)
        self._T = None if head_T is None else hidden_S.new_empty(rows, common, dtype=dtype)
        self.at: int | None = None

    def load(self, start: int, *, teacher: bool = True) -> None:
        """Makes the logits of the chunk that begins with this token, if they are not there."""
        if self.at == start:
            return
        self.tokens = slice(start, min(start + len(self._S), len(self.targets)))
        rows = self.tokens.stop - start
        self.z_S, self.z_T = self._S[:rows], None if self._T is None else self._T[:rows]
        h_CD = self.hidden_S[self.tokens].to(self.head_S.dtype)
        torch.mm(h_CD, self.head_S.T, out=self.z_S)
        if teacher and self.head_T is not None:
            h_CD = self.hidden_T[self.tokens].to(self.head_T.dtype)
            torch.mm(h_CD, self.head_T.T, out=self.z_T)
        self.at = start

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor, Any, torch.Tensor]]:
        """(rows of the chunk, views of both models' logits, targets [B, 1]) of a few tokens."""
        step = max(1, BLOCK[self.z_S.device.type != "cpu"] // self.z_S.shape[1])
        y_C = self.targets[self.tokens, None]
        for first in range(0, len(y_C), step):
            b = slice(first, first + step)
            yield b, self.z_S[b], None if self.z_T is None else self.z_T[b], y_C[b]

    def divergence(
        self, z_S: torch.Tensor, z_T: torch.Tensor, log_q_BV: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(D, log(Q / mix), KL(Q || mix), log P, log Q); ``log_q_BV`` is used where it is that."""
        temperature = self.settings.temperature
        if log_q_BV is None or temperature != 1.0 or self.common != z_S.shape[1]:
            log_q_BV = log_probs(z_S[:, : self.common], temperature)
        log_p_BW = log_probs(z_T, temperature)
        found = divergence_from_log_probs(log_p_BW, log_q_BV, self.settings.compared)
        return *found, log_p_BW, log_q_BV


def log_probs(z_BV: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of logits, float32 or wider."""
    z_BV = z_BV if z_BV.dtype == torch.float64 else z_BV.float()
    return log_softmax(z_BV / temperature if temperature != 1.0 else z_BV, dim=-1)


class _TokenScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_S, head_S, hidden_T, head_T, targets, settings, trained):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden_S, head_S, hidden_T, head_T, targets)
        logits = _Logits((hidden_S, head_S, hidden_T, head_T, targets), settings)
        wide = torch.promote_types(logits.head_S.dtype, torch.float32)
        outputs = [hidden_S.new_zeros(len(targets), dtype=wide) for _ in range(4)]
        for start in reversed(logits.starts):
            logits.load(start)
            jsd_C, logp_C, entropy_C, teacher_C = (x[logits.tokens] for x in outputs)
            for rows, z_S, z_T, y in logits.blocks():
                log_q_BV = log_probs(z_S)
                logp_C[rows] = log_q_BV.gather(1, y)[:, 0]
                entropy_C[rows] = entropy_from_log_probs(log_q_BV)
                if z_T is not None:
                    teacher_C[rows] = entropy_from_log_probs(log_probs(z_T))
                    jsd_C[rows] = logits.divergence(z_S, z_T, log_q_BV)[0]
        jsd_N, logp_N, settings.entropy_N, teacher_N = outputs
        settings.teacher_entropy_N = None if hidden_T is None else teacher_N
        ctx.settings, ctx.wide = settings, wide
        # Forward ends with the first chunk, which is never a short one, and backward begins there.
        ctx.kept = logits if trained else None
        return jsd_N, logp_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_jsd_N, grad_logp_N):  # pyright: ignore
        hidden_S, head_S, hidden_T = ctx.saved_tensors[:3]
        slope_N = {"logp": grad_logp_N, "jsd": grad_jsd_N if hidden_T is not None else None}
        slope_N = {name: slope for name, slope in slope_N.items() if slope is not None}
        # Overwritten here: a second backward through the same graph makes all logits anew.
        logits, ctx.kept = ctx.kept or _Logits(ctx.saved_tensors, ctx.settings), None
        norm_N = {name: torch.zeros_like(slope) for name, slope in slope_N.items()}
        grad_hidden = torch.zeros_like(hidden_S) if ctx.needs_input_grad[0] else None
        grad_head = torch.zeros_like(head_S) if ctx.needs_input_grad[1] else None
        for start in logits.starts if slope_N else ():
            logits.load(start, teacher="jsd" in slope_N)
            slope_C = {name: slope[logits.tokens, None] for name, slope in slope_N.items()}
            dz_CV = _logit_gradients(logits, slope_C)
            if grad_hidden is not None or ctx.settings.norms:
                total_CD = torch.zeros((), dtype=ctx.wide, device=hidden_S.device)
                for name, dz in dz_CV.items():
                    towards_CD = (dz @ logits.head_S[: dz.shape[1]]).to(ctx.wide)
                    if name in slope_C:
                        norm_N[name][logits.tokens] = towards_CD.norm(dim=1)
                        towards_CD *= slope_C[name]
                    total_CD = total_CD + towards_CD
                if grad_hidden is not None:
                    grad_hidden[logits.tokens] = total_CD.to(grad_hidden.dtype)
            if grad_head is not None:
                h_CD = logits.hidden_S[logits.tokens].to(ctx.wide)
                if len(dz_CV) == 2:
                    dz_CV = {"both": _weighted(dz_CV["logp"], dz_CV["jsd"], slope_C)}
                ((name, dz),) = dz_CV.items()
                _add_product(grad_head, dz, (h_CD * slope_C.get(name, 1)).to(dz.dtype))
        if ctx.settings.norms:
            ctx.settings.jsd_norm_N = norm_N.get("jsd")
            ctx.settings.logp_norm_N = norm_N.get("logp")
        return grad_hidden, grad_head, *[None] * 5


def _logit_gradients(logits: _Logits, slope_C: dict[str, torch.Tensor]) -> dict[str, Any]:
    """d score / d student logits of each score in ``slope_C``, written over the chunk's logits.

    Two scores whose norms nobody wants become one gradient, that of the loss, named ``both``.
    """
    settings, common = logits.settings, logits.common
    for rows, z_S, z_T, y in logits.blocks():
        log_q_BV = djsd_BW = dlogp_BV = cast(Any, None)
        if "logp" in slope_C:
            log_q_BV = log_probs(z_S)
            dlogp_BV = log_q_BV.exp().neg_()
            dlogp_BV.scatter_add_(1, y, torch.ones_like(dlogp_BV[:, :1]))
        if "jsd" in slope_C:
            found = logits.divergence(z_S, z_T, log_q_BV)
            _, log_q_mix_BW, kl_q_B, log_p_BW, log_q_BW = found
            djsd_BW = divergence_slope(
                log_p_BW, log_q_BW, log_q_mix_BW, kl_q_B, settings.compared, settings.temperature
            )
        if dlogp_BV is None:
            z_S[:, :common] = djsd_BW
        elif djsd_BW is not None and settings.norms:
            # The teacher's logits are no longer needed and give their room.
            z_S[:], z_T[:] = dlogp_BV, djsd_BW
        elif djsd_BW is not None:
            z_S[:] = _weighted(dlogp_BV, djsd_BW, {n: x[rows] for n, x in slope_C.items()})
        else:
            z_S[:] = dlogp_BV
    if len(slope_C) == 2:
        return {"logp": logits.z_S, "jsd": logits.z_T} if settings.norms else {"both": logits.z_S}
    return {"logp": logits.z_S} if "logp" in slope_C else {"jsd": logits.z_S[:, :common]}


def _weighted(
    dlogp_BV: torch.Tensor, djsd_BW: torch.Tensor, slope_B: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The gradient of the loss from those of its two scores, written over the first."""
    dlogp_BV *= slope_B["logp"]
    dlogp_BV[:, : djsd_BW.shape[1]] += djsd_BW.mul_(slope_B["jsd"])
    return dlogp_BV


def _add_product(grad_head: torch.Tensor, dz_CV: torch.Tensor, h_CD: torch.Tensor) -> None:
    """grad_head[v] += sum_c dz[c, v] h[c], with no second tensor of the head's size."""
    for start in range(0, dz_CV.shape[1], HEAD_ROWS):
        dz = dz_CV[:, start : start + HEAD_ROWS].T
        rows = grad_head[start : start + len(dz)]
        if grad_head.dtype == dz.dtype:
            rows.addmm_(dz, h_CD)
        else:
            rows += dz @ h_CD
