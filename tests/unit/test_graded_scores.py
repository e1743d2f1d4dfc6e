"""Scores between 0 and 1 on their way through judge, evaluate and report: means, never shares."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

from masters.artifacts import StageContext
from masters.data.tables import ANSWERS, RESPONSES, REWARDS, read_shards, shard_name, write_shard
from masters.evaluation.report import build_report, terminal_table, write_report
from masters.evaluation.statistics import mean_score, t_interval, wilson
from masters.recipe import AccuracyRule, Runtime
from masters.recipe_parts import JsonlSource
from masters.specs import EvaluateSpec, JudgeSpec
from masters.stages import evaluate, judge
from tests.unit.test_report import make_runs


def test_mean_score_by_hand() -> None:
    # Mean 0.6, standard deviation 0.2309, t(3) = 3.1824: 0.6 +- 3.1824 * 0.2309 / 2.
    value, low, high = mean_score([0.4, 0.8, 0.8, 0.4])
    assert (value, low, high) == pytest.approx((0.6, 0.6 - 0.3675, 0.6 + 0.3675), abs=1e-4)
    # Right and wrong only: a share.
    assert mean_score([1.0, 0.0, 1.0]) == wilson(2, 3)
    # No spread to go by, yet no certainty.
    assert mean_score([0.5] * 4) == wilson(2, 4)
    assert mean_score([0.3]) == wilson(0.3, 1)
    # Scores end at 0 and 1, and so do intervals.
    assert mean_score([1.0, 1.0, 0.9]).high == 1.0 < t_interval([1.0, 1.0, 0.9]).high
    for bad in ([], [1.1], [-0.1], [math.nan]):
        with pytest.raises(ValueError, match="expected at least one, all inside"):
            mean_score(bad)


def test_mean_score_covers_the_truth_as_often_as_it_says() -> None:
    # VQA's scores of a model, drawn anew 1,000 times.
    rng = random.Random(5)
    values, weights = [0.0, 0.3, 0.6, 0.9, 1.0], [4, 1, 1, 1, 5]
    truth = sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
    covered = 0
    for _ in range(1000):
        _, low, high = mean_score(rng.choices(values, weights=weights, k=60))
        covered += low <= truth <= high
    assert 0.93 <= covered / 1000 <= 0.97


def _half_right(folder: Path) -> JsonlSource:
    """Four questions of DocVQA's kind."""
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    row = {"image": "a.png", "question": "?", "answer": ["Paris"]}
    rows = [row | {"id": str(n)} for n in range(4)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonlSource(kind="jsonl", path=str(folder / "data.jsonl"))


def test_judge_keeps_graded_rewards_and_counts_full_marks_alone(tmp_path: Path) -> None:
    data = _half_right(tmp_path)
    said = ["Paris", "Pariz", "London", "paris"]
    rows = [
        {"question_id": str(n), "source": "student", "ratio": 0, "round": 0, "sample": 0}
        | {"model": "m", "text": text, "token_ids": [1], "logprobs": None, "finish": "stop"}
        | {"seed": 0}
        for n, text in enumerate(said)
    ]
    write_shard(tmp_path / "in" / "responses" / shard_name(0), rows, RESPONSES)
    context = StageContext(
        folder=tmp_path / "out",
        inputs={"responses": tmp_path / "in"},
        runtime=Runtime(),
        progress=lambda *_: None,
    )
    spec = JudgeSpec(source="student", data=data, rule=AccuracyRule(rule="anls"))
    record = judge.run(spec, context)
    assert (record["right"], record["missing"]) == (2, 0)
    assert record["mean_reward"] == pytest.approx(0.7)
    assert record["reasons"] == {"match": 2, "partly": 1, "mismatch": 1}
    stored = read_shards(tmp_path / "out" / "rewards", REWARDS)["reward"].to_pylist()
    assert stored == pytest.approx([1, 0.8, 0, 1])
    # Read again from its shards it says the same.
    assert judge.run(spec, context) == record


@pytest.mark.parametrize(("rule", "metric"), [("vqa", "score"), ("auto", "accuracy")])
def test_evaluate_gives_the_mean_and_its_own_interval(rule: str, metric: str) -> None:
    scores = [0.3, 0.6, 0.6, 0.9] if metric == "score" else [0.0, 0.0, 1.0, 1.0]
    answers = [{"ratio": 0, "kind": "a", "score": score} for score in scores]
    spec = SimpleNamespace(rule=SimpleNamespace(kind="rule", rule=rule), benchmark="held_out")
    rows = evaluate._results(cast("EvaluateSpec", spec), answers, {0: 0.0})
    assert [row["metric"] for row in rows] == [metric, metric]
    expected = t_interval(scores) if metric == "score" else wilson(2, 4)
    got = (rows[0]["value"], rows[0]["low"], rows[0]["high"])
    assert got == pytest.approx(tuple(expected))


def test_the_report_compares_scores_and_calls_them_so(tmp_path: Path) -> None:
    runs = make_runs(tmp_path / "stages", recipes=("sft",))
    folders = {stage.folder for stage in runs[0].stages.values() if stage.kind == "evaluate"}
    for folder in folders:
        results = json.loads((folder / "results.json").read_text())
        for row in results["rows"]:
            row["metric"] = "score"
        (folder / "results.json").write_text(json.dumps(results))
        rows = read_shards(folder / "answers", ANSWERS).to_pylist()
        start = folder.name == "e-start"
        graded = [row | {"correct": False, "score": 0.5 if start else 0.75} for row in rows]
        (folder / "answers" / shard_name(0)).unlink()  # a shard that is there stays as it is
        write_shard(folder / "answers" / shard_name(0), graded, ANSWERS)
    report = build_report(runs)
    differences: list[dict[str, Any]] = report["summary"]["differences"]
    assert [row["difference"] for row in differences] == pytest.approx([0.25])
    assert {row["run"] for row in report["summary"]["runs"]} == {"start", "sft", "teacher"}
    table = terminal_table(report)
    assert table.title == "Mean score on held_out"
    assert table.columns[1].header == "mean score"
    write_report(tmp_path / "report", runs)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Mean score by kind of question" in page
    assert "questions correctly" not in page
