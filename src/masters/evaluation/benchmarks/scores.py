"""A benchmark's score with its interval, and the difference of two models question by question."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist, fmean, variance

from masters.errors import DataError
from masters.evaluation.benchmarks.catalogue import Benchmark
from masters.evaluation.benchmarks.questions import Question
from masters.evaluation.statistics import (
    Interval,
    paired_difference,
    paired_share_difference,
    t_interval,
    wilson,
)

_Z = NormalDist().inv_cdf(0.975)
_ROUNDING = 1.5e-4
"""Harnesses round to as little as two decimals of a per cent."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A model's score on one benchmark.

    Args:
        value: 0 to 1, as the harness reports it; ``low`` and ``high`` its 95 % interval, None
            where nothing tells how many questions there were.
        n: questions that count; None where the harness left no log of them.
        partial: whether only some of the benchmark's questions were asked.
        judge: the judge's name; "" where none is needed, None where it was not recorded.
        judge_failed: questions without a verdict; None where that cannot be told.
        harness: name and version; the version is "" where it was not recorded.
        questions: by key; empty where there is no log.
        source: what it was read from.
    """

    benchmark: Benchmark
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    partial: bool = False
    judge: str | None = ""
    judge_failed: int | None = None
    harness: str = "lmms-eval"
    questions: Mapping[str, Question] = field(default_factory=dict, repr=False)
    source: Path = Path()


def interval_of(
    benchmark: Benchmark, value: float, questions: Mapping[str, Question]
) -> tuple[float, float]:
    """The 95 % interval of a reported value, from its questions.

    A share has Wilson's; scores in between, and questions asked in two settings, Student's t over
    questions; a mean of groups the normal one with the groups' variances, each with one right and
    one wrong answer added so that a group answered all alike keeps a spread.
    """
    if benchmark.counting == "share":
        return wilson(round(value * len(questions)), len(questions))[1:]
    scores = [question.score for question in questions.values() if question.score is not None]
    if benchmark.counting == "groups":
        spread = 0.0
        groups = _by_group(questions)
        for of_group in groups:
            share = (sum(of_group) + 1) / (len(of_group) + 2)
            spread += share * (1 - share) / len(of_group)
        half = _Z * math.sqrt(spread) / len(groups)
    elif len(scores) > 1:
        half = t_interval(scores).high - fmean(scores)
    else:
        half = 1.0
    return max(0.0, value - half), min(1.0, value + half)


def check_agreement(
    benchmark: Benchmark, value: float, questions: Mapping[str, Question], where: Path
) -> None:
    """That the questions' scores give the reported value; unknown ones may be right or wrong.

    Raises:
        DataError: they do not: the log belongs to another run, or is not whole.
    """
    low, high = (_total(benchmark, questions, unknown) for unknown in (0.0, 1.0))
    if low - _ROUNDING <= value <= high + _ROUNDING:
        return
    made = f"{100 * low:.2f}" if low == high else f"{100 * low:.2f} to {100 * high:.2f}"
    raise DataError(
        f"{where}: {benchmark.name} is reported as {100 * value:.2f}, but the {len(questions):,} "
        f"logged questions give {made}; expected the same. The log is cut, or two runs were "
        "written into one file: run this benchmark again into an empty folder."
    )


def difference_of(new: Score, old: Score) -> Interval | None:
    """``new - old`` over the questions that both logs tell the score of; None where there are none.

    A question whose judge gave no verdict is left out: its score is no answer's.

    Raises:
        DataError: the two were not asked the same questions.
    """
    keys = [key for key in new.questions if _told(new, key) and _told(old, key)]
    for key in keys:
        if new.questions[key].target != old.questions[key].target:
            raise DataError(
                f"{new.source} and {old.source}: question {key} of {new.benchmark.name} has the "
                f"labels {new.questions[key].target!r} and {old.questions[key].target!r}; expected "
                "one. The data set has changed between the runs: run both again."
            )
    if not keys:
        return None
    after = [new.questions[key] for key in keys]
    before = [old.questions[key] for key in keys]
    if new.benchmark.counting == "groups":
        return _grouped_difference(after, before)
    pairs = [(_score(one), _score(two)) for one, two in zip(after, before, strict=True)]
    if new.benchmark.counting == "share":
        gained = sum(one > two for one, two in pairs)
        lost = sum(one < two for one, two in pairs)
        return paired_share_difference(gained, lost, len(pairs))
    return paired_difference([one for one, _ in pairs], [two for _, two in pairs])


def _told(score: Score, key: str) -> bool:
    question = score.questions.get(key)
    return question is not None and question.score is not None and not question.judge_failed


def _grouped_difference(after: Sequence[Question], before: Sequence[Question]) -> Interval:
    groups: dict[str, list[float]] = {}
    for one, two in zip(after, before, strict=True):
        groups.setdefault(one.group, []).append(_score(one) - _score(two))
    value = fmean(fmean(differences) for differences in groups.values())
    # A group in which nothing differs still has the spread of one gained and one lost.
    spread = sum(variance([*found, 1.0, -1.0]) / len(found) for found in groups.values())
    half = _Z * math.sqrt(spread) / len(groups)
    return Interval(value, value - half, value + half)


def _total(benchmark: Benchmark, questions: Mapping[str, Question], unknown: float) -> float:
    if benchmark.counting == "groups":
        return fmean(fmean(of_group) for of_group in _by_group(questions))
    return fmean(
        unknown if question.score is None else question.score for question in questions.values()
    )


def _by_group(questions: Mapping[str, Question]) -> list[list[float]]:
    groups: dict[str, list[float]] = {}
    for question in questions.values():
        groups.setdefault(question.group, []).append(_score(question))
    return list(groups.values())


def _score(question: Question) -> float:
    if question.score is None:
        raise ValueError(f"question {question.key} has no score")
    return question.score
