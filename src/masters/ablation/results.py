"""What a suite's finished runs say, as one JSON value: every number that pages are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from masters.ablation.arms import (
    STUDENT,
    Arms,
    Key,
    Value,
    budget,
    has_tiny_models,
    student_stages,
    train_stages,
)
from masters.ablation.diagnostics import diagnose
from masters.ablation.suite import Suite
from masters.ablation.tuning import Tuned, Tuning, last_validation
from masters.errors import StageError
from masters.evaluation.readings import FULL, METRICS, Row, read_json, read_json_lines
from masters.plan import Plan, Stage, stage_is_done

SCHEMA = 1
MADE_BY = "masters ablate"
_START = "evaluate/start"
_TEACHER = "evaluate/teacher-"


def collect(arms: Arms, tuning: Tuning | None, command: str) -> Row:
    """Everything the suite's output folder holds of it, whatever was asked to run now.

    Args:
        command: what makes these numbers.

    Returns:
        {"schema", "made_by", "suite", "about", "command", "seeds", "vary", "models_vary", "data",
        "tune", "claims", "arms", "tuned", "runs", "missing"}; accuracies are shares.
    """
    suite = arms.suite
    tuned = [] if tuning is None else _tuned(arms, tuning)
    runs: list[Row] = []
    missing: list[Row] = []
    for data in suite.data:
        for arm in suite.arms:
            choice = tuned_value(tuning, data, arm)
            for seed in suite.seeds:
                key = Key(data=data, arm=arm, seed=seed)
                why = choice if isinstance(choice, str) else None
                plan = None if isinstance(choice, str) else arms.plan(key, choice)
                if plan is not None and all(stage_is_done(stage) for stage in plan.stages):
                    runs.append(vars(key) | read_run(plan))
                else:
                    missing.append(vars(key) | {"why": why or _why(plan)})
    return {
        "schema": SCHEMA,
        "made_by": MADE_BY,
        "suite": suite.name,
        "about": suite.about,
        "command": command,
        "seeds": list(suite.seeds),
        "vary": list(suite.vary),
        "models_vary": {data: models_vary(arms, data) for data in suite.data},
        "data": list(suite.data),
        "tune": None if suite.tune is None else suite.tune.model_dump(mode="json"),
        "claims": claims_of(suite),
        "arms": {
            name: {"recipe": arm.recipe, "set": arm.set, "tune_as": arm.tune_as}
            for name, arm in suite.arms.items()
        },
        "tuned": [choice.as_json() for choice in tuned],
        "runs": runs,
        "missing": missing,
    }


def claims_of(suite: Suite) -> list[Row]:
    """The claims as results hold them, each with the names of all its data sets."""
    return [
        claim.model_dump(mode="json") | {"data": list(suite.data_of(claim))}
        for claim in suite.claims
    ]


def models_vary(arms: Arms, data: str) -> bool:
    """Whether a seed gives other models too, in any arm on the data set."""
    suite = arms.suite
    return "models" in suite.vary and any(
        has_tiny_models(arms.recipe(data, arm)) for arm in suite.arms
    )


def tuned_value(tuning: Tuning | None, data: str, arm: str) -> Value | None | str:
    """The value of the tuned key for the arm's runs; None: it is not tuned; text: why not yet."""
    if tuning is None:
        return None
    found = tuning.found(data, arm)
    if found.value is not None:
        return found.value
    all_tried = len(found.tries) == len(tuning.tune.grid)
    return "every value that was tried diverged" if all_tried else "not tuned yet"


def read_run(plan: Plan) -> Row:
    """The numbers of a finished run.

    Returns:
        {"accuracy", "low", "high", "n": on the test questions, with an interval over them;
        "start": an accuracy; "teachers": name -> masking ratio -> accuracy; "validation": the last
        one of training, None without; "seconds": of the training steps; "tokens": of the
        responses trained on; "steps", "questions"; "diagnostics": see `diagnose`}.

    Raises:
        StageError: a stage's folder is damaged.
    """
    result = headline(plan.stage(STUDENT))[0]
    learned = student_stages(plan)
    metrics = [read_json_lines(stage.folder / "metrics.jsonl") for stage in train_stages(plan)]
    student = [row for stage in learned for row in read_json_lines(stage.folder / "metrics.jsonl")]
    steps = [row for rows in metrics for row in rows]
    taken = budget(plan)
    return {
        "accuracy": result["value"],
        "low": result["low"],
        "high": result["high"],
        "n": result["n"],
        "start": headline(plan.stage(_START))[0]["value"],
        "teachers": {
            stage.name.removeprefix(_TEACHER): {
                f"{row['ratio'] / FULL:g}": row["value"] for row in headline(stage)
            }
            for stage in plan.stages
            if stage.name.startswith(_TEACHER)
        },
        "validation": last_validation(learned[-1].folder),
        "seconds": round(sum(row["time/step_seconds"] for row in steps), 1),
        "tokens": round(sum(row["tokens"] for row in steps)),
        "steps": taken.steps,
        "questions": taken.questions,
        "diagnostics": diagnose(student),
    }


def headline(stage: Stage) -> list[Row]:
    """The evaluation's rows over all questions, by rising masking ratio."""
    path = stage.folder / "results.json"
    rows = [
        row for row in read_json(path)["rows"] if row["kind"] == "all" and row["metric"] in METRICS
    ]
    if not rows:
        raise StageError(f"{path}: has no accuracy over all questions; expected one")
    return sorted(({**row, "ratio": row.get("ratio") or 0} for row in rows), key=_ratio)


def as_text(results: Mapping[str, Any]) -> str:
    """The JSON text of a suite's results: a line for each run, the same for the same results."""
    parts = []
    for key, value in results.items():
        if key in ("runs", "missing", "claims", "tuned"):
            lines = ",\n".join(f"  {_line(row)}" for row in value)
            parts.append(f' "{key}": [\n{lines}\n ]' if value else f' "{key}": []')
        else:
            parts.append(f' "{key}": {_line(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def read_suites(folder: Path) -> list[Row]:
    """The results of every suite that lies in the folder, by name; other files are passed over."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and content.get("made_by") == MADE_BY:
            if content["schema"] != SCHEMA:
                raise StageError(
                    f"{path}: has schema {content['schema']}; expected {SCHEMA}. Run its command "
                    f"again: {content['command']}"
                )
            found.append(content)
    return found


def _why(plan: Plan | None) -> str:
    """What keeps a run from being complete, as its folders tell it."""
    for stage in () if plan is None else plan.stages:
        if not stage_is_done(stage) and (stage.folder / "error.log").exists():
            return f"{stage.name} failed"
    return "not done"


def _tuned(arms: Arms, tuning: Tuning) -> list[Tuned]:
    suite = arms.suite
    sources = dict.fromkeys(suite.tuned_as(arm) for arm in suite.arms)
    return [tuning.found(data, arm) for data in suite.data for arm in sources]


def _ratio(row: Row) -> int:
    return row["ratio"]


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
