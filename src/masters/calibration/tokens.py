"""What a mask does to the teacher's distribution over the tokens of a fixed text.

Shape suffixes: N response tokens, D hidden, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from masters.training.losses import entropy_from_log_probs, jsd_from_log_probs
from masters.training.token_scores import log_probs

CHUNK = 1024


class TokenMeasures(NamedTuple):
    """For each token: divergence, entropy, and whether greedy decoding still gives it."""

    jsd_N: torch.Tensor
    entropy_N: torch.Tensor
    kept_N: torch.Tensor


@torch.no_grad()
def token_measures(
    whole_ND: torch.Tensor,
    masked_ND: torch.Tensor,
    head_VD: torch.Tensor,
    targets_N: torch.Tensor,
    *,
    vocabulary: int,
    banned: tuple[int, ...] = (),
    chunk: int = CHUNK,
) -> TokenMeasures:
    """Compares the masked teacher with the whole one, token by token.

    With P_0 the whole teacher's distribution over the real tokens and P_r the masked one's, behind
    the same text: JSD_0.5(P_0 || P_r) and H(P_r) = -sum_v P_r log P_r, full softmax at temperature
    1, in nats; and whether argmax P_r, banned tokens aside, is the text's next token.

    Vocabulary-sized tensors exist for one chunk of tokens at a time; the head is the same for both,
    since masks leave it whole.

    Args:
        whole_ND: last hidden states that predict the targets, of the whole teacher, on any device.
        masked_ND: the same of the masked one.
        head_VD: output head, in the dtype of the products.
        targets_N: ids of the text's tokens.
        vocabulary: rows of the head that are real tokens.
        banned: ids that decoding never gives.

    Returns:
        Float32 (float64 for float64), float32 and bool, on the CPU.
    """
    device = head_VD.device
    pieces: list[TokenMeasures] = []
    for start in range(0, len(targets_N), chunk):
        c = slice(start, start + chunk)
        log_p_CV, log_q_CV = (
            log_probs(hidden_ND[c].to(device, head_VD.dtype) @ head_VD[:vocabulary].T)
            for hidden_ND in (whole_ND, masked_ND)
        )
        jsd_C = jsd_from_log_probs(log_p_CV, log_q_CV, 0.5)[0]
        entropy_C = entropy_from_log_probs(log_q_CV)
        log_q_CV[:, [token for token in banned if token < vocabulary]] = -torch.inf
        kept_C = log_q_CV.argmax(dim=-1) == targets_N[c].to(device)
        pieces.append(TokenMeasures(jsd_C.cpu(), entropy_C.cpu(), kept_C.cpu()))
    return TokenMeasures(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))
