"""Is what an engine runs the model that it is taken for? The rule, on numbers alone.

An engine that loads weights in its own way can be wrong without an error: vLLM reads
``tie_word_embeddings`` from another place than transformers, and a checkpoint with the flag only at
the top level has log-probs that are off by half a nat. A server may serve another model under the
right name, or another masking ratio of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

#: Mean |difference| of log-probs, nats. Two engines in float32 differ by about 1e-5, and by some
#: 1e-3 when their image processors resize differently; in bf16, whose logits of about 16 have steps
#: of 0.06, by 0.01 to 0.03. Another model differs by tenths and more.
LOGPROB_LIMITS = {"fp32": 0.01, "bf16": 0.1}
#: Mean gap at the first token that differs, nats. An equal model leaves the greedy path of another
#: engine only where two tokens are about as likely: by twice what rounding moves one.
GAP_LIMITS = {"fp32": 0.02, "bf16": 0.2}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a comparison found.

    Args:
        rule: what was compared.
        compared: how many tokens (log-probs) or answers (text).
        difference: nats.
        limit: a larger difference means another model.
    """

    rule: Literal["log-probs", "text"]
    compared: int
    difference: float
    limit: float

    @property
    def same(self) -> bool:
        """Whether it may be the same model; never so where nothing could be compared."""
        return self.compared > 0 and self.difference <= self.limit

    @property
    def said(self) -> str:
        """The finding in words."""
        if not self.compared:
            return "it gave no answer that could be compared"
        what = {
            "log-probs": f"the log-probs of {self.compared} of its tokens differ by a mean of",
            "text": f"its greedy answers to {self.compared} questions leave the likeliest path by "
            "a mean of",
        }
        return (
            f"{what[self.rule]} {self.difference:.3g} nats from transformers', expected at most "
            f"{self.limit:g}"
        )


def compare_logprobs(
    theirs: Sequence[Sequence[float]], ours: Sequence[Sequence[float]], precision: str
) -> Finding:
    """Log-probs of the same tokens after the same prompts, by the engine and by transformers."""
    pairs = zip(chain.from_iterable(theirs), chain.from_iterable(ours), strict=True)
    differences = [abs(a - b) for a, b in pairs]
    mean = math.fsum(differences) / max(1, len(differences))
    return Finding(
        rule="log-probs",
        compared=len(differences),
        difference=mean if math.isfinite(mean) else math.inf,
        limit=LOGPROB_LIMITS[precision],
    )


@dataclass(frozen=True, kw_only=True)
class GreedyPair:
    """A greedy answer of the engine and our own, each with its log-probs under *our* model.

    Args:
        theirs: ids of its text.
        ours: ids of our answer's text, tokenised anew as theirs was.
        sure: so many first ids of ``ours`` are those that were chosen. A text may be cut into
            other tokens than those it was made of; behind such a place nothing is compared.
    """

    theirs: Sequence[int]
    ours: Sequence[int]
    theirs_logprobs: Sequence[float]
    ours_logprobs: Sequence[float]
    sure: int

    @property
    def gap(self) -> float:
        """How much likelier our token is than theirs where the answers first differ; else 0.

        Up to there both were read after the same tokens, so the two log-probs can be compared.
        """
        pairs = zip(self.theirs, self.ours[: self.sure], strict=False)
        for place, (a, b) in enumerate(pairs):
            if a != b:
                return abs(self.ours_logprobs[place] - self.theirs_logprobs[place])
        return 0.0


def compare_greedy(pairs: Sequence[GreedyPair], precision: str) -> Finding:
    """For an engine that gives text alone: are its greedy answers greedy for our model too?

    The answers' texts are tokenised anew on both sides, so that only what they say counts.
    """
    gaps = [pair.gap for pair in pairs if pair.sure]
    return Finding(
        rule="text",
        compared=len(gaps),
        difference=math.fsum(gaps) / max(1, len(gaps)),
        limit=GAP_LIMITS[precision],
    )
