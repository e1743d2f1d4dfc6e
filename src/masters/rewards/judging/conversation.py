"""Judging many responses at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from masters.rewards.judging.asking import Asker
from masters.rewards.judging.cache import VerdictCache
from masters.rewards.judging.items import JudgeItem, JudgeSettings, JudgeVerdict


def judge_responses(
    items: Sequence[JudgeItem], asker: Asker, settings: JudgeSettings, cache: VerdictCache
) -> Iterator[tuple[int, JudgeVerdict]]:
    """Each item's place with its verdict, each exactly once, as they come."""
    raise NotImplementedError


def check_missing(missing: Counter[str], total: int, max_missing: float) -> None:
    """Refuses a run in which more verdicts are missing than may be.

    Args:
        missing: how many verdicts are missing so far, by reason.
        total: how many responses the run judges in all, those still to come too: so a run stops
            as soon as the limit cannot be kept any more.
        max_missing: the largest share of ``total``.

    Raises:
        StageError: the limit is passed; with the reasons and what to do.
    """
    raise NotImplementedError
