"""What finished stage folders say, as plain values: records, results, answers, curves, rewards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from masters.data.tables import ANSWERS, REWARDS, read_shards
from masters.errors import StageError

if TYPE_CHECKING:
    from masters.artifacts import RunInfo

Row = dict[str, Any]

METRICS = ("accuracy", "score")
"""What an evaluation's rows hold: a share of right answers, or a graded rule's mean."""

FULL = 10_000
"""Masking ratios in files are integers out of this."""


@dataclass(frozen=True, kw_only=True)
class TrainingCurve:
    """The steps of one run, its phases laid end to end.

    Args:
        rows: one mapping a step, the keys of metrics.jsonl, ``step`` counted through the run.
        validation: one mapping a validation, same step axis.
        phases: (name, first step) of each train stage, in order.
    """

    rows: list[Row]
    validation: list[Row]
    phases: list[tuple[str, int]]

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values where ``key`` was logged as a finite number."""
        return finite_series(self.rows, key)


@dataclass(frozen=True, kw_only=True)
class RewardCounts:
    """Accuracy rewards of one judged half: how often each value, and how many are missing."""

    phase: str
    source: str
    values: dict[float, int] = field(default_factory=dict)
    missing: int = 0

    @property
    def total(self) -> int:
        return sum(self.values.values()) + self.missing


def finite_series(rows: Sequence[Row], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows where ``key`` holds a finite number."""
    steps: list[float] = []
    values: list[float] = []
    for row in rows:
        value = row.get(key)
        if isinstance(value, int | float) and abs(value) < float("inf"):
            steps.append(float(row["step"]))
            values.append(float(value))
    return steps, values


def read_json(path: Path) -> Any:
    """The content of a JSON file that a finished stage must have.

    Raises:
        StageError: the file is missing or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StageError(
            f"{path}: missing, though its stage counts as done. Delete {path.parent} and run the "
            "recipe again to make it anew."
        ) from error
    except (OSError, ValueError) as error:
        raise StageError(
            f"{path}: cannot be read as JSON ({error}). Delete {path.parent} and run the recipe "
            "again to make it anew."
        ) from error


def read_json_lines(path: Path) -> list[Row]:
    """One mapping per line of a JSON-lines file; an empty list where the stage wrote none.

    Raises:
        StageError: a line is no JSON object.
    """
    if not path.exists():
        return []
    rows: list[Row] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise StageError(
                f"{path}:{number}: got {line[:60]!r}; expected one JSON object a line. Delete "
                f"{path.parent} and run the recipe again to make it anew."
            )
        rows.append(row)
    return rows


def measure(rows: Sequence[Row]) -> str:
    """What the result rows measure, as headings call it."""
    return "mean score" if any(row["metric"] == "score" for row in rows) else "accuracy"


def read_answers(folder: Path) -> dict[str, Row]:
    """Answers of an evaluate stage to unmasked questions, by question id, in the stored order.

    Args:
        folder: the stage's folder.

    Returns:
        question id -> {"text", "correct", "score", "kind", "label", "fields", "finish"}.
    """
    table = read_shards(folder / "answers", ANSWERS)
    return {row["question_id"]: row for row in table.to_pylist() if not row.get("ratio")}


def training_curve(run: RunInfo) -> TrainingCurve:
    """The run's metrics and validations, its train stages laid end to end.

    A stage whose steps start again at the beginning is moved behind the one before it.
    """
    rows: list[Row] = []
    validation: list[Row] = []
    phases: list[tuple[str, int]] = []
    last = -1
    for name, stage in run.stages.items():
        if not name.startswith("train/"):
            continue
        fresh = read_json_lines(stage.folder / "metrics.jsonl")
        if not fresh:
            continue
        first = int(fresh[0]["step"])
        shift = last + 1 - first if first <= last else 0
        checks = read_json_lines(stage.folder / "validation.jsonl")
        rows += [{**row, "step": int(row["step"]) + shift} for row in fresh]
        validation += [{**row, "step": int(row["step"]) + shift} for row in checks]
        phases.append((name.removeprefix("train/"), first + shift))
        last = rows[-1]["step"]
    return TrainingCurve(rows=rows, validation=validation, phases=phases)


def recipe_models(recipe_yaml: str) -> tuple[Row, list[Row]]:
    """The student and the teachers as a resolved recipe gives them; empty where it doesn't."""
    try:
        models = yaml.safe_load(recipe_yaml)["models"]
        student, teachers = models.get("student"), models.get("teachers")
    except (yaml.YAMLError, TypeError, KeyError, AttributeError):
        return {}, []
    known = [teacher for teacher in teachers or [] if isinstance(teacher, dict)]
    return (student if isinstance(student, dict) else {}), known


def model_curves(runs: Sequence[RunInfo]) -> dict[str, list[Row]]:
    """Validations of the models trained on the spot: name -> rows; ``student`` comes first.

    The student is called so whatever name its recipe gives it.
    """
    curves: dict[str, list[Row]] = {}
    for run in runs:
        for name, stage in run.stages.items():
            model = name.removeprefix("model/")
            if model == recipe_models(run.recipe_yaml)[0].get("name"):
                model = "student"
            if name.startswith("model/") and model not in curves:
                rows = read_json_lines(stage.folder / "validation.jsonl")
                if rows:
                    curves[model] = rows
    return dict(sorted(curves.items(), key=lambda item: item[0] != "student"))


def last_third_gain(rows: Sequence[Row]) -> float | None:
    """Validation accuracy gained over the last third of the steps, in 0..1.

    The accuracy at two thirds of the last step is interpolated linearly between the validations
    around it. None where fewer than three validations exist or none lies before that point.
    """
    steps, values = finite_series(rows, "accuracy")
    if len(steps) < 3:
        return None
    pivot = steps[-1] * 2 / 3
    for (left, before), (right, after) in zip(
        zip(steps, values, strict=True), zip(steps[1:], values[1:], strict=True), strict=False
    ):
        if left <= pivot <= right and right > left:
            at_pivot = before + (after - before) * (pivot - left) / (right - left)
            return values[-1] - at_pivot
    return None


def reward_counts(runs: Sequence[RunInfo]) -> list[RewardCounts]:
    """Accuracy rewards of every judge stage of the runs, each folder once."""
    seen: set[Path] = set()
    counts: list[RewardCounts] = []
    for run in runs:
        for name, stage in run.stages.items():
            if not name.startswith("judge/") or stage.folder in seen:
                continue
            seen.add(stage.folder)
            phase, source = name.split("/")[1:3]
            rewards = read_shards(stage.folder / "rewards", REWARDS, ["reward"]).column("reward")
            values: dict[float, int] = {}
            for reward in rewards.to_pylist():
                if reward is not None:
                    value = round(float(reward), 6)
                    values[value] = values.get(value, 0) + 1
            missing = rewards.null_count
            counts.append(RewardCounts(phase=phase, source=source, values=values, missing=missing))
    return counts


def merge_counts(counts: Sequence[RewardCounts]) -> list[RewardCounts]:
    """Counts of the same phase and source added up (mask stages judged apart, several recipes)."""
    merged: dict[tuple[str, str], RewardCounts] = {}
    for count in counts:
        key = (count.phase, count.source)
        old = merged.get(key, RewardCounts(phase=key[0], source=key[1]))
        values: Mapping[float, int] = old.values
        total = {v: values.get(v, 0) + count.values.get(v, 0) for v in {*values, *count.values}}
        merged[key] = RewardCounts(
            phase=key[0], source=key[1], values=total, missing=old.missing + count.missing
        )
    return [merged[key] for key in sorted(merged)]


def difference_of(report: Mapping[str, Any], run: str, against: str) -> Row | None:
    """The paired difference the page and the table show: over seeds where there are several."""
    seed = None if len(report["seeds"]) > 1 else report["seed"]
    for row in report["summary"]["differences"]:
        if (row["run"], row["against"], row["seed"]) == (run, against, seed):
            return row
    return None
