"""Stage 6: a model -> its answers to held-out questions and accuracy with intervals."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from masters.artifacts import StageContext, atomic_write_text
from masters.data.questions import Question, Questions
from masters.data.sources import open_questions, verify_images
from masters.data.tables import ANSWERS, read_shard, shard_name, write_shard
from masters.errors import StageError
from masters.evaluation.categories import category_fields, score_row
from masters.generation.engine import Completion, TransformersEngine
from masters.models.load import DTYPES
from masters.models.memory import doing
from masters.rewards.judging.items import JudgeItem
from masters.rewards.verifiers import GRADED
from masters.specs import EvaluateSpec
from masters.stages.features import answer_features
from masters.stages.jury import Jury, Shards, gather_verdicts, open_jury, stop_if_missing
from masters.stages.opening import (
    OpenedModel,
    Prompts,
    greedy_answers,
    model_folder,
    open_model,
    open_teacher,
)
from masters.stages.sight import check_sees_image
from masters.teachers.thresholds import load_thresholds

SHARD = 512


def run(spec: EvaluateSpec, context: StageContext) -> dict[str, Any]:
    """Writes answers and ``results.json``: accuracy over all and per kind, at every ratio."""
    questions = open_questions(spec.data)
    parts = [
        (ratio, range(start, min(start + SHARD, len(questions))))
        for ratio in spec.ratios
        for start in range(0, len(questions), SHARD)
    ]
    paths = [context.folder / "answers" / shard_name(n) for n in range(len(parts))]
    todo = {paths[n]: parts[n] for n in context.part.take(paths)}
    opened, waited = _make(spec, context, questions, todo) if todo else (None, 0.0)
    context.part.finish(paths)
    answers = [row for path in paths for row in read_shard(path, ANSWERS).to_pylist()]
    _stop_if_missing(spec, context, answers, len(answers), paths)
    gather_verdicts(context)
    opened = opened or _open(spec, context)
    results = {
        "rows": _results(spec, answers, _zeros(context, spec.ratios)),
        "parameters": opened.model.num_parameters(),
    }
    atomic_write_text(context.folder / "results.json", json.dumps(results, indent=1) + "\n")
    headline = next(row for row in results["rows"] if row["kind"] == "all")
    return {
        "questions": len(questions),
        "accuracy": headline["value"],
        "missing": sum(row["score"] is None for row in answers),
        "seconds_waiting": round(waited, 3),
    }


def _open(spec: EvaluateSpec, context: StageContext) -> OpenedModel:
    return open_model(
        model_folder(spec.model, context.inputs, checkpoint=spec.checkpoint),
        spec.prompt,
        context.runtime,
        precision=spec.precision,
        teacher=spec.side == "teacher",
    )


def _make(
    spec: EvaluateSpec,
    context: StageContext,
    questions: Questions,
    todo: Mapping[Path, tuple[int, range]],
) -> tuple[OpenedModel, float]:
    """Makes shards of answers to (ratio, questions); returns the model and seconds of waiting."""
    verify_images(questions, context.runtime.images_checked)
    opened = _open(spec, context)
    teacher = open_teacher(opened, context)
    prompts = Prompts(questions, opened.processor, spec.prompt)
    check_sees_image(opened, prompts, role="model", precision=DTYPES[spec.precision])
    engine = TransformersEngine(
        opened.model,
        opened.processor,
        opened.ids,
        batch_rows=context.runtime.generation_batch,
        precision=DTYPES[spec.precision],
        features=answer_features(
            context.runtime, teacher, samples=1,
            asked=len(spec.ratios) * len(questions), questions=len(questions),
        ),
    )  # fmt: skip
    total = sum(len(part) for _, part in todo.values())
    wanted = (i for _, part in todo.values() for i in part)
    answers: list[dict[str, Any]] = []
    begin = time.perf_counter()
    with (
        prompts.ahead(wanted, context.runtime.workers) as encoded,
        open_jury(spec.rule, None, context) as jury,
    ):
        for path, (ratio, part) in todo.items():
            teacher.set_ratio(ratio)
            with doing("generating answers"):
                answered = list(
                    greedy_answers(
                        engine, prompts, part, max_new_tokens=spec.max_new_tokens,
                        chunk=SHARD, encoded=encoded,
                    )
                )  # fmt: skip
            rows = _answers(answered, ratio, jury)
            write_shard(path, rows, ANSWERS)
            answers += rows
            rate = len(answers) / (time.perf_counter() - begin)
            judged = [row["score"] for row in answers if row["score"] is not None]
            share = sum(judged) / max(1, len(judged))
            said = "right" if _metric(spec) == "accuracy" else "of full marks"
            context.progress(len(answers), total, f"{rate:.1f} questions/s, {share:.1%} {said}")
            _stop_if_missing(spec, context, answers, total, list(todo))
    return opened, encoded.seconds_waiting


def _stop_if_missing(
    spec: EvaluateSpec,
    context: StageContext,
    answers: Sequence[Mapping[str, Any]],
    total: int,
    paths: Sequence[Path],
) -> None:
    lacking = sum(row["score"] is None for row in answers)
    stop_if_missing(
        spec.rule,
        Counter({"no verdict": lacking}),
        seen=len(answers),
        total=total,
        shards=Shards(paths=paths, schema=ANSWERS, column="score"),
        context=context,
    )


def _answers(
    answered: Sequence[tuple[int, Question, Completion]], ratio: int, jury: Jury
) -> list[dict[str, Any]]:
    """The rows of the table of answers, each with its score; null where a judge gave none."""
    items = [JudgeItem(question=question, response=said.text) for _, question, said in answered]
    rows = []
    found = jury(items, lambda _: None)
    for (_, question, completion), finding in zip(answered, found, strict=True):
        rows.append(
            {
                "question_id": question.id,
                "ratio": ratio,
                "text": completion.text,
                "correct": finding.reward == 1.0,
                "score": finding.reward,
                "kind": question.kind,
                "label": question.label or "",
                "fields": category_fields(question),
                "finish": completion.finish,
            }
        )
    return rows


def _metric(spec: EvaluateSpec) -> str:
    """What the mean of the scores is: the share of right answers, or of the marks to be had."""
    graded = spec.rule.kind == "rule" and spec.rule.rule in GRADED
    return "score" if graded else "accuracy"


def _zeros(context: StageContext, ratios: tuple[int, ...]) -> dict[int, float]:
    folder = context.inputs.get("thresholds")
    if folder is None:
        return dict.fromkeys(ratios, 0.0)
    thresholds = load_thresholds(folder / "thresholds.json")
    return {ratio: thresholds.share_of_zeros(ratio) for ratio in ratios}


def _results(
    spec: EvaluateSpec, answers: list[dict[str, Any]], zeros: dict[int, float]
) -> list[dict[str, Any]]:
    groups: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for row in answers:
        groups[row["ratio"], "all"].append(row)
        if row["kind"] != "all":
            groups[row["ratio"], row["kind"]].append(row)
    rows = []
    for (ratio, kind), group in sorted(groups.items(), key=lambda g: (g[0][0], g[0][1] != "all")):
        found = score_row(group)
        if found is None:
            if kind == "all":
                raise StageError(
                    f"none of {len(group)} answers at ratio {ratio} has a verdict; expected most "
                    "to have one. Look at evaluation.rule"
                )
            continue
        about = {"benchmark": spec.benchmark, "kind": kind, "metric": _metric(spec), "ratio": ratio}
        rows.append({**about, **found, "zeros": zeros[ratio]})
    return rows
