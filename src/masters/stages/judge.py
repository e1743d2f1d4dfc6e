"""Stage 3: responses -> accuracy rewards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from masters.artifacts import StageContext
from masters.data.questions import Question, Questions
from masters.data.sources import open_questions
from masters.data.tables import (
    KEY_COLUMNS,
    RESPONSES,
    REWARDS,
    count_rows,
    list_shards,
    read_shard,
    write_shard,
)
from masters.rewards.judging.items import JudgeItem
from masters.specs import JudgeSpec
from masters.stages.jury import (
    Jury,
    Shards,
    Told,
    gather_verdicts,
    open_jury,
    stop_if_missing,
)

Row = dict[str, Any]


def run(spec: JudgeSpec, context: StageContext) -> dict[str, Any]:
    """Writes one shard of rewards for each shard of responses, row for row.

    Raises:
        StageError: more verdicts are missing than the judge's ``max_missing`` allows. What is known
            is kept; what is missing is asked again when the stage runs again.
    """
    questions = open_questions(spec.data)
    shards = list_shards(context.inputs["responses"] / "responses")
    paths = [context.folder / "rewards" / shard.name for shard in shards]
    todo = context.part.take(paths)
    there = [n for n, path in enumerate(paths) if n not in todo and path.exists()]
    mine = sorted([*todo, *(n for n in there if context.part.share.mine(n))])
    tally = _judge(spec, context, questions, {shards[n]: paths[n] for n in mine})
    context.part.finish(paths)
    if len(mine) < len(paths):  # what other workers made counts too
        tally = _judge(spec, context, questions, dict(zip(shards, paths, strict=True)))
    gather_verdicts(context)
    return tally.metrics()


def _judge(
    spec: JudgeSpec, context: StageContext, questions: Questions, pairs: Mapping[Path, Path]
) -> _Tally:
    """Judges the responses of each shard into its path, unless that is there; counts them all."""
    paths = list(pairs.values())
    total = sum(count_rows(shard) for shard in pairs)
    tally = _Tally()

    def told(more: int) -> None:
        context.progress(tally.rows + more, total, tally.note)

    with open_jury(spec.rule, spec.judge, context) as jury:
        for shard, path in pairs.items():
            if path.exists():
                rows = read_shard(path, REWARDS).to_pylist()
            else:
                rows = _judged(shard, jury, questions, told)
                write_shard(path, rows, REWARDS)
            tally.add(rows)
            told(0)
            stop_if_missing(
                spec.rule,
                tally.missing,
                seen=tally.rows,
                total=total,
                shards=Shards(paths=paths, schema=REWARDS, column="reward"),
                context=context,
            )
    return tally


@dataclass
class _Tally:
    """What the rows so far say."""

    rows: int = 0
    right: int = 0
    marks: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    judges: Counter[str] = field(default_factory=Counter)

    def add(self, rows: Sequence[Row]) -> None:
        self.rows += len(rows)
        self.right += sum(row["reward"] == 1.0 for row in rows)
        self.marks += sum(round(row["reward"] or 0.0, 6) for row in rows)  # stored in float32
        self.reasons.update(row["reason"] for row in rows)
        self.missing.update(row["reason"] for row in rows if row["reward"] is None)
        self.judges.update(row["judge"] for row in rows)

    @property
    def note(self) -> str:
        lacking = self.missing.total()
        said = f", {lacking} without a verdict" if lacking else ""
        return f"{self.right / max(1, self.rows - lacking):.1%} right{said}"

    def metrics(self) -> dict[str, Any]:
        judged = self.rows - self.missing.total()
        return {
            "responses": self.rows,
            "right": self.right,  # full marks only: a graded rule gives part of them too
            "missing": self.missing.total(),
            "mean_reward": self.marks / judged if judged else None,
            "reasons": dict(self.reasons),
            "missing_reasons": dict(self.missing),
            "judges": dict(self.judges),
        }


def _judged(shard: Path, jury: Jury, questions: Questions, told: Told) -> list[Row]:
    """The rewards of a shard of responses; those to one question stand together in it."""
    rows = read_shard(shard, RESPONSES, [*KEY_COLUMNS, "text"]).to_pylist()
    items: list[JudgeItem] = []
    question: Question | None = None
    for row in rows:
        if question is None or question.id != row["question_id"]:
            question = questions[questions.find(row["question_id"])]
        items.append(JudgeItem(question=question, response=row.pop("text")))
    found = jury(items, told)
    return [{**row, **vars(finding)} for row, finding in zip(rows, found, strict=True)]
