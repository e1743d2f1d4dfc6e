"""What training changed: questions wrong at the start and right now, and the other way round."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from masters.evaluation.comparison import pair
from masters.evaluation.contrasts import Tables, pairs
from masters.evaluation.evaluated import Evaluated, is_end
from masters.evaluation.readings import Row

MOST = 12
"""Examples each way, over all runs."""
LEAST = 2
"""Examples each way of every run, where it has them."""
RULE = (
    "those whose ids have the smallest SHA-256, which has nothing to do with what they ask or "
    "where they stand"
)


def changes(found: Sequence[Evaluated], answers: Tables, seed: int) -> list[Row]:
    """Each run of ``seed`` against its start, question by question.

    Returns:
        ``run``, ``against``, ``seed``, ``n`` (questions that both have judged), ``no_verdict``,
        ``graded``; ``better`` and ``worse``: how many questions score more, or less, than at the
        start (of right and wrong ones: became right, became wrong); ``same``;
        ``examples``: ids of some ``better`` and ``worse`` ones, chosen by ``RULE``.
    """
    both = {
        run: of_seed[seed]
        for run in dict.fromkeys(item.run for item in found if is_end(item.run))
        if seed in (of_seed := pairs(found, run, "start"))
    }
    count = max(LEAST, MOST // max(1, len(both)))
    return [_change(one, start, answers, count) for one, start in both.values()]


def sample(ids: Sequence[str], count: int) -> list[str]:
    """At most ``count`` of the ids, by ``RULE``; the same whatever their order."""
    return sorted(ids, key=lambda key: hashlib.sha256(key.encode()).digest())[:count]


def _change(one: Evaluated, start: Evaluated, answers: Tables, count: int) -> Row:
    now, before = answers[one.folder], answers[start.folder]
    pairing = pair(before, now)
    moved = {key: now[key]["score"] - before[key]["score"] for key in pairing.shared}
    better = [key for key, difference in moved.items() if difference > 0]
    worse = [key for key, difference in moved.items() if difference < 0]
    scores = {rows[key]["score"] for rows in (now, before) for key in pairing.shared}
    return {
        "run": one.run,
        "against": start.run,
        "seed": one.seed,
        "n": len(pairing.shared),
        "no_verdict": len(pairing.no_verdict),
        "graded": not scores <= {0.0, 1.0},
        "better": len(better),
        "worse": len(worse),
        "same": len(moved) - len(better) - len(worse),
        "examples": {"better": sample(better, count), "worse": sample(worse, count)},
    }
