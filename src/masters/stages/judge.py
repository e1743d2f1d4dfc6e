"""Stage 3: responses -> accuracy rewards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from masters.artifacts import VERDICTS, StageContext
from masters.data.questions import Question, Questions
from masters.data.sources import open_questions
from masters.data.tables import (
    KEY_COLUMNS,
    RESPONSES,
    REWARDS,
    list_shards,
    read_shard,
    write_shard,
)
from masters.recipe import AccuracyRule, Judge
from masters.rewards.judging.asking import Asker
from masters.rewards.judging.cache import VerdictCache
from masters.rewards.judging.conversation import check_missing, judge_responses
from masters.rewards.judging.items import JudgeItem, JudgeSettings, JudgeVerdict
from masters.rewards.verifiers import verify
from masters.specs import JudgeSpec
from masters.stages.asking import open_asker

Row = dict[str, Any]
Said = Callable[[int], None]
"""Is told how many of a shard's responses have a verdict."""


def run(spec: JudgeSpec, context: StageContext) -> dict[str, Any]:
    """Writes one shard of rewards for each shard of responses, row for row.

    Raises:
        StageError: more verdicts are missing than the judge's ``max_missing`` allows. What is known
            is kept; what is missing is asked again.
    """
    questions = open_questions(spec.data)
    shards = list_shards(context.inputs["responses"] / "responses")
    paths = [context.folder / "rewards" / shard.name for shard in shards]
    total = sum(pq.read_metadata(shard).num_rows for shard in shards)
    tally = _Tally()
    with _judged_by(spec, context) as judged:
        for shard, path in zip(shards, paths, strict=True):
            if path.exists():
                rows = read_shard(path, REWARDS).to_pylist()
            else:
                rows = read_shard(shard, RESPONSES, [*KEY_COLUMNS, "text"]).to_pylist()
                items = _items(rows, questions)
                rows = judged(
                    rows, items, lambda n: context.progress(tally.rows + n, total, tally.note)
                )
                write_shard(path, rows, REWARDS)
            tally.add(rows)
            context.progress(tally.rows, total, tally.note)
            if spec.rule.judge is not None:
                _enough(tally, total, spec.rule.judge, paths)
    return tally.metrics()


@dataclass
class _Tally:
    """What the rows so far say."""

    rows: int = 0
    right: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    judges: Counter[str] = field(default_factory=Counter)

    def add(self, rows: Sequence[Row]) -> None:
        self.rows += len(rows)
        self.right += sum(row["reward"] == 1.0 for row in rows)
        self.reasons.update(row["reason"] for row in rows)
        self.missing.update(row["reason"] for row in rows if row["reward"] is None)
        self.judges.update(row["judge"] for row in rows)

    @property
    def note(self) -> str:
        lacking = self.missing.total()
        said = f", {lacking} without a verdict" if lacking else ""
        return f"{self.right / max(1, self.rows - lacking):.1%} right{said}"

    def metrics(self) -> dict[str, Any]:
        return {
            "responses": self.rows,
            "right": self.right,
            "missing": self.missing.total(),
            "reasons": dict(self.reasons),
            "missing_reasons": dict(self.missing),
            "judges": dict(self.judges),
        }


def _enough(tally: _Tally, total: int, judge: Judge, paths: Sequence[Path]) -> None:
    """Stops where the share of missing verdicts cannot be kept any more, or nothing is a verdict.

    Shards with missing verdicts go, so that those are asked again; the others' are in the cache.
    """
    speechless = tally.missing.total() == tally.rows
    try:
        check_missing(tally.missing, tally.rows if speechless else total, judge.max_missing)
    except Exception:
        for path in paths:
            if path.exists() and read_shard(path, REWARDS, ["reward"]).column(0).null_count:
                path.unlink()
        raise


def _items(rows: Sequence[Row], questions: Questions) -> list[JudgeItem]:
    """Each response with its question, which stand together in a shard."""
    items: list[JudgeItem] = []
    question: Question | None = None
    for row in rows:
        if question is None or question.id != row["question_id"]:
            question = questions[questions.find(row["question_id"])]
        items.append(JudgeItem(question=question, response=row["text"]))
    return items


# ------------------------------------------------------------------------------------- who judges

Judged = Callable[[Sequence[Row], Sequence[JudgeItem], Said], list[Row]]
"""Rows of responses -> rows of rewards."""


@contextmanager
def _judged_by(spec: JudgeSpec, context: StageContext) -> Iterator[Judged]:
    """The rule, or the judge with the verdicts that all runs of an output folder share."""
    judge = spec.rule.judge
    if judge is None:
        yield lambda rows, items, _: [
            _rewarded(
                row, verify(spec.rule.rule, item.response, item.question), _by_rule(spec.rule)
            )
            for row, item in zip(rows, items, strict=True)
        ]
        return
    asker = open_asker(judge, spec.judge, context)
    with VerdictCache(context.folder.parents[1] / VERDICTS) as cache:
        yield lambda rows, items, said: _asked(rows, items, spec.rule, asker, cache, said)


def settings_of(judge: Judge) -> JudgeSettings:
    """The recipe's words as the judging's own."""
    return JudgeSettings(
        prompt=judge.prompt,
        max_tokens=judge.max_new_tokens,
        retries=judge.retries,
        rules_first=judge.rules_first,
        max_missing=judge.max_missing,
    )


def _asked(
    rows: Sequence[Row],
    items: Sequence[JudgeItem],
    rule: AccuracyRule,
    asker: Asker,
    cache: VerdictCache,
    said: Said,
) -> list[Row]:
    """Rewards by the judge; equal responses to a question are judged once."""
    assert rule.judge is not None
    firsts: dict[tuple[str, str], JudgeItem] = {}
    for item in items:
        firsts.setdefault((item.question.id, item.response), item)
    distinct = list(firsts.values())
    places = {key: place for place, key in enumerate(firsts)}
    share = len(rows) / max(1, len(distinct))
    verdicts: dict[int, JudgeVerdict] = {}
    for place, verdict in judge_responses(distinct, asker, settings_of(rule.judge), cache):
        verdicts[place] = verdict
        said(int(len(verdicts) * share))
    names = {"judge": asker.name, "rule": _by_rule(rule)}
    found = (verdicts[places[item.question.id, item.response]] for item in items)
    return [
        _rewarded(row, verdict, names[verdict.by]) for row, verdict in zip(rows, found, strict=True)
    ]


def _by_rule(rule: AccuracyRule) -> str:
    return f"rule:{rule.rule}"


def _rewarded(row: Row, verdict: Any, judge: str) -> Row:
    key = {name: row[name] for name in KEY_COLUMNS}
    return {**key, "reward": verdict.reward, "reason": verdict.reason, "judge": judge}
