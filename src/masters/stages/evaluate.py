"""Stage 6: a model -> its answers to held-out questions and accuracy with intervals."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from masters.artifacts import StageContext, atomic_write_text
from masters.data.sources import open_questions, verify_images
from masters.data.tables import ANSWERS, read_shard, shard_name, write_shard
from masters.errors import StageError
from masters.evaluation.categories import category_fields, score_row
from masters.generation.engine import TransformersEngine
from masters.models.encode import EncodedPrompt
from masters.models.load import DTYPES
from masters.models.memory import doing
from masters.rewards.verifiers import GRADED, verify
from masters.specs import EvaluateSpec
from masters.stages.features import answer_features
from masters.stages.opening import (
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
    verify_images(questions, context.runtime.images_checked)
    opened = open_model(
        model_folder(spec.model, context.inputs, checkpoint=spec.checkpoint),
        spec.prompt,
        context.runtime,
        precision=spec.precision,
        teacher=spec.side == "teacher",
    )
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
    total = len(spec.ratios) * len(questions)
    parts = [
        (ratio, range(start, min(start + SHARD, len(questions))))
        for ratio in spec.ratios
        for start in range(0, len(questions), SHARD)
    ]
    paths = [context.folder / "answers" / shard_name(n) for n in range(len(parts))]
    missing = {path for path in paths if not path.exists()}
    wanted = (
        i for path, (_, part) in zip(paths, parts, strict=True) if path in missing for i in part
    )
    answers: list[dict[str, Any]] = []
    begin = time.perf_counter()
    with prompts.ahead(wanted, context.runtime.workers) as encoded:
        for path, (ratio, part) in zip(paths, parts, strict=True):
            if path in missing:
                teacher.set_ratio(ratio)
                with doing("generating answers"):
                    rows = _answer(spec, engine, prompts, part, ratio, encoded)
                write_shard(path, rows, ANSWERS)
            answers += read_shard(path, ANSWERS).to_pylist()
            rate = len(answers) / (time.perf_counter() - begin)
            share = sum(row["score"] for row in answers) / len(answers)
            said = "right" if _metric(spec) == "accuracy" else "of full marks"
            note = f"{rate:.1f} questions/s, {share:.1%} {said}"
            context.progress(len(answers), total, note)
    results = {
        "rows": _results(spec, answers, _zeros(context, spec.ratios)),
        "parameters": opened.model.num_parameters(),
    }
    atomic_write_text(context.folder / "results.json", json.dumps(results, indent=1) + "\n")
    headline = next(row for row in results["rows"] if row["kind"] == "all")
    return {
        "questions": len(questions),
        "accuracy": headline["value"],
        "seconds_waiting": round(encoded.seconds_waiting, 3),
    }


def _answer(
    spec: EvaluateSpec,
    engine: TransformersEngine,
    prompts: Prompts,
    indices: Sequence[int],
    ratio: int,
    encoded: Callable[[int], EncodedPrompt],
) -> list[dict[str, Any]]:
    answered = greedy_answers(
        engine, prompts, indices, max_new_tokens=spec.max_new_tokens, chunk=SHARD, encoded=encoded
    )
    rows = []
    for _, question, completion in answered:
        score = verify(spec.rule.rule, completion.text, question).reward
        rows.append(
            {
                "question_id": question.id,
                "ratio": ratio,
                "text": completion.text,
                "correct": score == 1.0,
                "score": score,
                "kind": question.kind,
                "label": question.label or "",
                "fields": category_fields(question),
                "finish": completion.finish,
            }
        )
    return rows


def _metric(spec: EvaluateSpec) -> str:
    """What the mean of the scores is: the share of right answers, or of the marks to be had."""
    return "score" if spec.rule.rule in GRADED else "accuracy"


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
