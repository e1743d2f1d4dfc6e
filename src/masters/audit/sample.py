"""Which judged responses a person looks at: some of every kind, the same ones each time."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any

from masters.data.answers import accepted_answers
from masters.data.questions import Question
from masters.data.sources import open_questions
from masters.data.tables import RESPONSES, REWARDS, list_shards, read_shard
from masters.errors import DataError, StageError
from masters.plan import Plan, Stage
from masters.rewards.verifiers import verify
from masters.specs import JudgeSpec

Stratum = tuple[str, bool]
"""(source, whether it counts as right); the rewards of a graded rule would be too many strata."""

_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class AuditItem:
    """One judged response to be marked.

    Args:
        id: the same for the same question, labels and response, in any run.
        reward: of the judge, 1.0 or 0.0; of a graded rule also between.
        judge: who gave it, as the table of rewards has it.
        rule: what the stage's rule gives the same response; None where it cannot judge it, say a
            label that is none of the choices, which a judge takes as it is.
    """

    id: str
    question: Question
    response: str
    source: str
    reward: float
    judge: str
    rule: float | None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The items in the order they are asked in, and how many verdicts they stand for."""

    items: tuple[AuditItem, ...]
    judged: int
    missing: int


def draw(plan: Plan, count: int, seed: int) -> Sample:
    """A sample of the plan's verdicts: of each source right and wrong ones, in proportion.

    A larger count holds nearly all of a smaller one. Missing verdicts are counted, not drawn.

    Args:
        plan: its judge stages are done.

    Raises:
        StageError: nothing was judged.
    """
    stages = [stage for stage in plan.stages if isinstance(stage.spec, JudgeSpec)]
    kept: dict[Stratum, dict[tuple[str, str], _Found]] = defaultdict(dict)
    sizes: Counter[Stratum] = Counter()
    missing = 0
    for stage in stages:
        for found in _verdicts(plan, stage, seed):
            if found.reward is None:
                missing += 1
                continue
            stratum = (found.source, found.reward == 1.0)
            sizes[stratum] += 1
            mine = kept[stratum]
            mine.setdefault((found.question_id, found.text), found)
            if len(mine) > 4 * count + 64:  # memory follows the sample, not the data
                kept[stratum] = {(f.question_id, f.text): f for f in _first(mine, count)}
    if not sizes:
        raise StageError(f"{plan.recipe.name}: no response has a verdict; nothing to audit")
    chosen: dict[tuple[str, str], _Found] = {}
    for stratum, share in sorted(allocate(sizes, count).items()):
        for found in _first(kept[stratum], share):
            chosen.setdefault((found.question_id, found.text), found)
    ordered = sorted(chosen.values(), key=lambda found: found.rank)
    return Sample(items=tuple(_items(ordered)), judged=sizes.total() + missing, missing=missing)


def allocate(sizes: Mapping[Stratum, int], count: int) -> dict[Stratum, int]:
    """How many of each stratum: in proportion by largest remainders, at least one of each."""
    total = sum(sizes.values())
    count = min(count, total)
    exact = {stratum: count * size / total for stratum, size in sizes.items()}
    given = {stratum: max(1, int(share)) for stratum, share in exact.items()}
    by_remainder = sorted(
        exact, key=lambda stratum: (int(exact[stratum]) - exact[stratum], stratum)
    )
    for stratum in by_remainder:
        if sum(given.values()) < count and given[stratum] < exact[stratum]:
            given[stratum] += 1
    return given


@dataclass(frozen=True, kw_only=True)
class _Found:
    """One row of a judge stage; ``rank`` is its place in the draw."""

    rank: bytes
    question_id: str
    text: str
    source: str
    reward: float | None
    judge: str
    stage: Stage


def _first(found: Mapping[Any, _Found], count: int) -> list[_Found]:
    return nsmallest(count, found.values(), key=lambda one: one.rank)


def _verdicts(plan: Plan, stage: Stage, seed: int) -> Iterator[_Found]:
    """The rows of a judge stage with the texts they are about."""
    responses = list_shards(plan.by_name[stage.inputs["responses"]].folder / "responses")
    rewards = list_shards(stage.folder / "rewards")
    for said, judged in zip(responses, rewards, strict=True):
        texts = read_shard(said, RESPONSES, ["question_id", "text"])
        verdicts = read_shard(judged, REWARDS, ["source", "reward", "judge"])
        for text, verdict in zip(texts.to_pylist(), verdicts.to_pylist(), strict=True):
            yield _Found(
                rank=_digest(str(seed), text["question_id"], text["text"]),
                question_id=text["question_id"],
                text=text["text"],
                source=verdict["source"],
                reward=verdict["reward"],
                judge=verdict["judge"],
                stage=stage,
            )


def _items(found: Sequence[_Found]) -> Iterator[AuditItem]:
    opened: dict[str, Any] = {}
    for one in found:
        spec = one.stage.spec
        assert isinstance(spec, JudgeSpec) and one.reward is not None
        key = spec.data.model_dump_json()
        if key not in opened:
            opened[key] = open_questions(spec.data)
        questions = opened[key]
        question: Question = questions[questions.find(one.question_id)]
        labels = accepted_answers(question)
        yield AuditItem(
            id=_digest(question.id, question.text, *labels, one.text).hex()[:_DIGITS],
            question=question,
            response=one.text,
            source=one.source,
            reward=one.reward,
            judge=one.judge,
            rule=_by_rule(spec, one.text, question),
        )


def _by_rule(spec: JudgeSpec, text: str, question: Question) -> float | None:
    try:
        return verify(spec.rule.rule, text, question).reward
    except DataError:
        return None


def _digest(*parts: str) -> bytes:
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=16).digest()
