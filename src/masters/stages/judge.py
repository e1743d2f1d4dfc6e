"""Stage 3: responses -> accuracy rewards."""

from __future__ import annotations

from collections import Counter
from typing import Any

from masters.artifacts import StageContext
from masters.data.sources import open_questions
from masters.data.tables import (
    KEY_COLUMNS,
    RESPONSES,
    REWARDS,
    list_shards,
    read_shard,
    write_shard,
)
from masters.errors import StageError
from masters.rewards.verifiers import verify
from masters.specs import JudgeSpec


def run(spec: JudgeSpec, context: StageContext) -> dict[str, Any]:
    """Writes one shard of rewards for each shard of responses, row for row."""
    if spec.rule.kind != "rule":
        raise StageError(
            f"method.rewards.accuracy.kind is {spec.rule.kind}; only 'rule' can be run so far. "
            "Set method.rewards.accuracy.kind=rule"
        )
    questions = open_questions(spec.data)
    shards = list_shards(context.inputs["responses"] / "responses")
    reasons: Counter[str] = Counter()
    right = missing = total = 0
    marks = 0.0
    for done, shard in enumerate(shards):
        path = context.folder / "rewards" / shard.name
        if path.exists():
            rows = read_shard(path, REWARDS).to_pylist()
        else:
            rows = []
            question = None
            for row in read_shard(shard, RESPONSES, [*KEY_COLUMNS, "text"]).to_pylist():
                if question is None or question.id != row["question_id"]:
                    question = questions[questions.find(row["question_id"])]
                verdict = verify(spec.rule.rule, row.pop("text"), question)
                judge = f"rule:{spec.rule.rule}"
                rows.append(
                    {**row, "reward": verdict.reward, "reason": verdict.reason, "judge": judge}
                )
            write_shard(path, rows, REWARDS)
        reasons.update(row["reason"] for row in rows)
        right += sum(row["reward"] == 1.0 for row in rows)
        marks += sum(round(row["reward"] or 0.0, 6) for row in rows)  # as stored, in float32
        missing += sum(row["reward"] is None for row in rows)
        total += len(rows)
        context.progress(done + 1, len(shards), f"{right / max(1, total):.1%} right")
    mean = marks / (total - missing) if total > missing else None
    return {
        "responses": total,
        "right": right,  # full marks only: a graded rule gives part of them too
        "missing": missing,
        "mean_reward": mean,
        "reasons": dict(reasons),
    }
