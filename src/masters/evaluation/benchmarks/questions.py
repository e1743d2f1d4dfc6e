"""What lmms-eval logged of one question: its score, its group, and whether the judge failed on it.

One function for each shape of a line of ``*_samples_<task>.jsonl``. The shapes are those of
lmms-eval's ``process_results`` of each task; docs/benchmarks.md cites the files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Sample = Mapping[str, Any]
_ROTATIONS = 1_000_000
"""MMBench numbers the rotations of question i as i + k * 1,000,000."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question of a benchmark as a model answered it.

    Args:
        key: the same for the same question under another model.
        score: 0 to 1; None where the log does not tell it.
        group: what a benchmark that averages over groups averages over.
        target: the label, to see that two models were asked the same.
        judge_failed: whether the judge gave no verdict. The harness counts it all the same.
    """

    key: str
    score: float | None
    group: str = ""
    target: str = ""
    judge_failed: bool = False


Reader = Callable[[Sample], Question | None]
"""A line of the log as a question; None where the line does not count. KeyError, TypeError,
ValueError: the line is not of this shape."""


def plain(metric: str) -> Reader:
    """Lines that hold the score itself under the metric's name (AI2D, ChartQA, RealWorldQA)."""

    def read(sample: Sample) -> Question:
        return _question(sample, float(sample[metric]))

    return read


def letters(metric: str) -> Reader:
    """SEED-Bench: {"pred", "answer"}; lines without the metric are of another part (videos)."""

    def read(sample: Sample) -> Question | None:
        if metric not in sample:
            return None
        found = sample[metric]
        same = found["pred"].strip().lower() == found["answer"].strip().lower()
        return _question(sample, float(same))

    return read


def mathvista(sample: Sample) -> Question:
    """{"true_false", "extraction"}; nothing extracted from a response means that no judge spoke."""
    found = sample["llm_as_judge_eval"]
    failed = found["extraction"] == "" and bool(_response(sample).strip())
    return _question(sample, float(found["true_false"]), judge_failed=failed)


def mmbench(sample: Sample) -> Question | None:
    """Rotations are no questions of their own, and right or wrong is not logged."""
    return None if int(sample["gpt_eval_score"]["index"]) >= _ROTATIONS else _question(sample, None)


def mmvet(sample: Sample) -> Question:
    """{"score", "eval_model"}: a judge that never answered leaves no name and a score of 0."""
    found = sample["gpt_eval_score"]
    return _question(sample, float(found["score"]), judge_failed=not found["eval_model"])


def mmmu(sample: Sample) -> Question:
    """{"question_type", "answer", "parsed_pred"}: one parsed answer for each repetition.

    Open questions have a score of None: whether lmms-eval took one for right is not logged.
    """
    found = sample["mmmu_acc"]
    if found["question_type"] != "multiple-choice":
        return _question(sample, None)
    return _question(sample, float(found["answer"] in list(found["parsed_pred"])))


def mmmu_pro(sample: Sample) -> Question:
    """{"id", "answer", "parsed_pred"}: a question has one id in both settings."""
    found = sample["mmmu_acc"]
    return Question(
        key=str(found["id"]),
        score=float(found["answer"] == found["parsed_pred"]),
        target=str(found["answer"]),
    )


def mmstar(sample: Sample) -> Question:
    """{"score", "l2_category"}: the benchmark is the mean over its categories."""
    found = sample["average"]
    return _question(sample, float(found["score"]), group=str(found["l2_category"]))


def blink(sample: Sample) -> Question:
    """{"is_correct", "sub_task"}: the benchmark is the mean over its tasks."""
    found = sample["blink_acc"]
    return _question(sample, float(found["is_correct"]), group=str(found["sub_task"]))


def _question(
    sample: Sample, score: float | None, *, group: str = "", judge_failed: bool = False
) -> Question:
    if score is not None and not 0 <= score <= 1:
        raise ValueError(f"a score of {score}; expected 0 to 1")
    return Question(
        key=str(sample["doc_id"]),
        score=score,
        group=group,
        target=str(sample.get("target", "")),
        judge_failed=judge_failed,
    )


def _response(sample: Sample) -> str:
    """lmms-eval writes a single response bare and several as a list."""
    found = sample["filtered_resps"]
    while isinstance(found, list) and found:
        found = found[0]
    return found if isinstance(found, str) else ""
