"""The rule that tells one model from another by what an engine answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from masters.errors import StageError
from masters.generation.engine_check import GreedyPair, compare_greedy, compare_logprobs
from masters.stages.engine_check import EngineNotes


@pytest.mark.parametrize(
    ("off", "precision", "same"),
    [
        (1e-5, "fp32", True), (0.5, "fp32", False), (0.03, "fp32", False),
        (0.03, "bf16", True), (0.5, "bf16", False), (float("nan"), "bf16", False),
    ],
)  # fmt: skip
def test_log_probs(off: float, precision: str, same: bool) -> None:
    theirs = [[-1.0, -2.0], [-0.5]]
    ours = [[x + off * (-1) ** i for i, x in enumerate(row)] for row in theirs]
    found = compare_logprobs(theirs, ours, precision)
    assert found.compared == 3
    assert found.same is same, found.said


def test_nothing_compared_is_not_the_same() -> None:
    assert not compare_logprobs([], [], "fp32").same
    assert not compare_greedy([], "fp32").same
    assert "no answer" in compare_greedy([], "fp32").said


def pair(theirs: list[int], ours: list[int], a: list[float], b: list[float]) -> GreedyPair:
    return GreedyPair(theirs=theirs, ours=ours, theirs_logprobs=a, ours_logprobs=b, sure=len(ours))


def test_greedy_answers_are_compared_where_they_first_differ() -> None:
    equal = pair([1, 2, 3], [1, 2, 3], [-1, -1, -1], [-1, -1, -1])
    assert equal.gap == 0.0
    # After the first difference the contexts are two: what comes there says nothing.
    tie = pair([1, 5, 9], [1, 2, 3], [-1, -0.701, -9], [-1, -0.7, -0.1])
    assert tie.gap == pytest.approx(0.001)
    other = pair([4, 5], [1, 2], [-3.0, -1.0], [-0.5, -0.1])
    assert other.gap == pytest.approx(2.5)
    assert compare_greedy([equal, tie], "fp32").same
    found = compare_greedy([equal, tie, other], "bf16")
    assert not found.same and found.difference == pytest.approx(2.501 / 3)
    unsure = replace(other, sure=0)
    assert compare_greedy([equal, unsure], "fp32").compared == 1, "nothing can be said of it"
    later = replace(tie, sure=1)
    assert later.gap == 0.0, "they differ behind what is sure"
    shorter = pair([1], [1, 2], [-1], [-1, -1])
    assert shorter.gap == 0.0, "one was cut or ended on text that says the same"


def test_notes_keep_findings_and_refuse_a_second_engine(tmp_path: Path) -> None:
    notes = EngineNotes(tmp_path, "vllm 1")
    finding = compare_logprobs([[-1.0]], [[-1.0]], "fp32")
    assert not notes.passed("m", 500)
    notes.note("m", 500, finding)
    again = EngineNotes(tmp_path, "vllm 1")
    assert again.passed("m", 500) and not again.passed("m", 0)
    again.note("m", 0, compare_logprobs([[-1.0]], [[-2.0]], "fp32"))
    assert not EngineNotes(tmp_path, "vllm 1").passed("m", 0), "a refusal is kept, not passed"
    again.note("m", 100, None)
    kept = json.loads((tmp_path / "engine.json").read_text())
    assert kept["checks"]["m at ratio 100/10000"] == {"skipped": True}
    assert not EngineNotes(tmp_path, "vllm 2").passed("m", 500), "nothing was made: all anew"
    (tmp_path / "responses").mkdir()
    (tmp_path / "responses" / "shard-00000.parquet").touch()
    with pytest.raises(StageError, match=r"made by vllm 1, and this is vllm 2"):
        EngineNotes(tmp_path, "vllm 2")
