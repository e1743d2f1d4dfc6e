"""VQA v2's soft accuracy: how many of the annotators gave the same answer."""

from __future__ import annotations

from collections.abc import Sequence

from masters.rewards.rules.vqa_wording import vqa_wording

FEWEST_ANSWERS = 4
"""With fewer annotators no answer at all could be worth 1."""


def vqa_accuracy(response: str, golds: Sequence[str]) -> float:
    """min(n / 3, 1), averaged over all sets of the annotators but one (Antol et al., ICCV 2015).

    n is how many of the others gave the response, both in the wording of ``vqa_wording``. With ten
    annotators of whom k gave it: 0, 0.3, 0.6, 0.9 for k of 0 to 3, and 1 from 4 on.

    Args:
        golds: every annotator's answer, ``FEWEST_ANSWERS`` at least.
    """
    said = vqa_wording(response)
    same = [vqa_wording(gold) == said for gold in golds]
    k, n = sum(same), len(same)
    # Integers until the end: ten annotators who all agree give 1, not 1 - 1e-16.
    thirds = k * min(k - 1, 3) + (n - k) * min(k, 3)
    return thirds / (3 * n)
