"""Sampling whose every draw is a pure function of the recipe: inverse CDF on hashed uniforms.

Each sample of a question owns u_t = hash(seed, question, source, ratio, round, sample, t) in
[0, 1).
The processor below is the last (and only) one ``generate`` runs: it applies repetition penalty,
temperature, top-k and top-p itself, picks by inverse CDF in float64, and leaves one finite score.
So tokens do not depend on batch size, order or a generator's state. Shape suffixes: R rows,
T tokens, V vocabulary, K kept candidates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import LogitsProcessor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How responses are drawn.

    Args:
        temperature: above 0; 0 is greedy.
        top_p: in (0, 1].
        top_k: 0 keeps all.
        repetition_penalty: 1 is none; counts prompt and response tokens, never padding.
        max_new_tokens: a response that reaches it without an end token has finish ``length``.
    """

    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int = 50
    repetition_penalty: float = 1.05
    max_new_tokens: int = 256

    @classmethod
    def greedy(cls, max_new_tokens: int) -> Sampling:
        """The most likely token each time, unpenalised."""
        return cls(
            temperature=0.0, top_p=1.0, top_k=0, repetition_penalty=1.0,
            max_new_tokens=max_new_tokens,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SampleKey:
    """Who a sample is: the part of its key that its randomness is drawn from."""

    seed: int
    question_id: str
    source: str
    ratio: int
    round: int
    sample: int

    @property
    def stream(self) -> bytes:
        """Canonical bytes of the key."""
        parts = (self.seed, self.question_id, self.source, self.ratio, self.round, self.sample)
        return "\x1f".join(map(str, parts)).encode()

    @property
    def engine_seed(self) -> int:
        """A seed below 2**30 + 2**15 for engines that draw by a seed of their own.

        Samples of one question have consecutive seeds: that is how vLLM seeds the ``n`` samples of
        one request, so those asked one by one are the same.
        """
        digest = hashlib.blake2b(replace(self, sample=0).stream, digest_size=4).digest()
        return (int.from_bytes(digest, "little") >> 2) + self.sample


def uniform(stream: bytes, step: int) -> float:
    """u in [0, 1) with 53 bits, from a key's stream and the token's index."""
    digest = hashlib.blake2b(stream + step.to_bytes(8, "little"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def pick(
    logits_RV: torch.Tensor, seen_RV: torch.Tensor, u_R: torch.Tensor, sampling: Sampling
) -> torch.Tensor:
    """The chosen token of each row, [R].

    Args:
        logits_RV: raw logits; tokens that may not be chosen are -inf.
        seen_RV: bool, tokens the repetition penalty applies to.
        u_R: float64 in [0, 1).
    """
    scores_RV = logits_RV.double()
    if sampling.repetition_penalty != 1.0:
        penalty = sampling.repetition_penalty
        penalised = torch.where(scores_RV < 0, scores_RV * penalty, scores_RV / penalty)
        scores_RV = torch.where(seen_RV, penalised, scores_RV)
    if sampling.temperature == 0:
        return scores_RV.argmax(dim=-1)
    width = scores_RV.shape[1]
    keep = min(sampling.top_k, width) if sampling.top_k else width
    kept_RK, tokens_RK = (scores_RV / sampling.temperature).topk(keep, dim=-1)
    p_RK = kept_RK.softmax(dim=-1)
    before_RK = p_RK.cumsum(dim=-1) - p_RK
    p_RK = p_RK * (before_RK < sampling.top_p)
    cdf_RK = p_RK.cumsum(dim=-1)
    chosen_R1 = (cdf_RK <= u_R[:, None] * cdf_RK[:, -1:]).sum(dim=-1, keepdim=True)
    return tokens_RK.gather(1, chosen_R1.clamp_max(keep - 1))[:, 0]


class KeyedSampler(LogitsProcessor):
    """Picks each row's next token by its own key and records the raw model's log-prob of it.

    Args:
        keys: one per row.
        prompt_mask_RT: attention mask of the left-padded prompts: padding is never penalised.
        banned: ids that may not be chosen (placeholders).
        vocabulary: rows of the head beyond it are padding: never chosen, and in no softmax.
    """

    def __init__(
        self,
        keys: Sequence[SampleKey],
        sampling: Sampling,
        *,
        prompt_mask_RT: torch.Tensor,
        banned: Sequence[int],
        vocabulary: int,
    ) -> None:
        self.logps: list[torch.Tensor] = []
        self._streams = [key.stream for key in keys]
        self._sampling = sampling
        self._mask_RT = prompt_mask_RT.bool()
        self._banned = torch.tensor(list(banned), dtype=torch.long, device=prompt_mask_RT.device)
        self._vocabulary = vocabulary

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [R, V] with one finite entry per row: the chosen token."""
        step = input_ids.shape[1] - self._mask_RT.shape[1]
        logits_RV = scores.float()
        allowed_RV = logits_RV.index_fill(1, self._banned, -torch.inf)
        allowed_RV[:, self._vocabulary :] = -torch.inf
        u_R = torch.tensor(
            [uniform(stream, step) for stream in self._streams],
            dtype=torch.float64,
            device=scores.device,
        )
        token_R = pick(allowed_RV, self._seen(input_ids, logits_RV.shape[1]), u_R, self._sampling)
        real_RV = logits_RV[:, : self._vocabulary]  # as tokens are scored: padding rows are none
        logp_R = real_RV.log_softmax(dim=-1).gather(1, token_R[:, None])[:, 0]
        self.logps.append(logp_R)
        return torch.full_like(scores, -torch.inf).scatter_(1, token_R[:, None], 0.0)

    def _seen(self, input_ids: torch.Tensor, width: int) -> torch.Tensor:
        new = input_ids.shape[1] - self._mask_RT.shape[1]
        real_RT = torch.nn.functional.pad(self._mask_RT, (0, new), value=True)
        counts_RV = torch.zeros((len(input_ids), width), device=input_ids.device)
        return counts_RV.scatter_add_(1, input_ids, real_RT.float()) > 0
