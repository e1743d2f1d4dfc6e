"""Stage 2: questions -> responses, from the student or from the masked teachers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from masters import curriculum
from masters.artifacts import StageContext
from masters.data.questions import Questions
from masters.data.sources import open_questions, verify_images
from masters.data.tables import RESPONSES, read_shard, shard_name, write_shard
from masters.generation.engine import Request, TransformersEngine
from masters.generation.sampling import SampleKey, Sampling
from masters.models.encode import EncodedPrompt
from masters.models.load import DTYPES
from masters.models.memory import doing
from masters.specs import GenerateSpec
from masters.stages.features import answer_features
from masters.stages.opening import (
    Prompts,
    model_folder,
    open_model,
    open_teacher,
)
from masters.stages.sight import check_sees_image


def run(spec: GenerateSpec, context: StageContext) -> dict[str, Any]:
    """Makes whole shards of responses; shards that are there already are left as they are."""
    questions = open_questions(spec.data)
    plan = planned_pairs(spec, len(questions))
    starts = range(0, len(plan), spec.shard_questions)
    paths = [context.folder / "responses" / shard_name(n) for n in range(len(starts))]
    parts = [plan[start : start + spec.shard_questions] for start in starts]
    todo = {paths[n]: parts[n] for n in context.part.take(paths)}
    waited = _make(spec, context, questions, plan, todo) if todo else 0.0
    context.part.finish(paths)
    tokens, cut = _counted(paths)
    return {
        "questions": len(plan),
        "responses": len(plan) * spec.samples,
        "tokens": tokens,
        "cut_at_limit": cut,
        "skipped_rows": questions.skipped,
        "seconds_waiting": round(waited, 3),
    }


def _make(
    spec: GenerateSpec,
    context: StageContext,
    questions: Questions,
    plan: np.ndarray,
    todo: Mapping[Path, np.ndarray],
) -> float:
    """Makes these shards of the plan's (question index, ratio) pairs; returns seconds waited."""
    verify_images(questions, context.runtime.images_checked)
    opened = open_model(
        model_folder(spec.model, context.inputs),
        spec.prompt,
        context.runtime,
        precision=spec.precision,
        teacher=spec.source == "teacher",
    )
    teacher = open_teacher(opened, context)
    prompts = Prompts(questions, opened.processor, spec.prompt)
    check_sees_image(opened, prompts, role=spec.source, precision=DTYPES[spec.precision])
    different = len(curriculum.distinct(plan * [1, 0]))
    engine = TransformersEngine(
        opened.model,
        opened.processor,
        opened.ids,
        batch_rows=context.runtime.generation_batch,
        precision=DTYPES[spec.precision],
        features=answer_features(
            context.runtime, teacher, samples=spec.samples, asked=len(plan), questions=different
        ),
    )
    wanted = (
        index
        for part in todo.values()
        for _, same in curriculum.by_ratio(part)
        for index in same
    )
    total, done = sum(map(len, todo.values())), 0
    begin = time.perf_counter()
    with prompts.ahead(wanted, context.runtime.workers) as encoded:
        for path, part in todo.items():
            rows = []
            for ratio, same in curriculum.by_ratio(part):
                teacher.set_ratio(ratio)
                with doing("generating responses"):
                    rows += _respond(
                        spec, engine, encoded, questions, same, ratio, str(opened.folder)
                    )
            write_shard(path, rows, RESPONSES)
            done += len(part)
            rate = done / (time.perf_counter() - begin)
            context.progress(done, total, f"{rate:.1f} questions/s")
    return encoded.seconds_waiting


def _counted(paths: Sequence[Path]) -> tuple[int, int]:
    """(tokens, responses cut at the limit) of all shards."""
    tokens = cut = 0
    for path in paths:
        table = read_shard(path, RESPONSES, ["token_ids", "finish"])
        tokens += sum(
            pc.call_function("list_value_length", [table.column("token_ids")]).to_pylist()
        )
        cut += table.column("finish").to_pylist().count("length")
    return tokens, cut


def planned_pairs(spec: GenerateSpec, n_questions: int) -> np.ndarray:
    """(question index, ratio) of everything to answer, in the plan's order: int64 [P, 2].

    The student is never masked: its ratio is 0 and it answers each question once per round.
    """
    used = curriculum.pairs(spec.schedule, n_questions, spec.start, spec.stop)
    unmasked = curriculum.distinct(used * [1, 0])
    if spec.source == "student":
        return unmasked
    if spec.on_full_cross:
        return np.concatenate([unmasked + [0, ratio] for ratio in spec.schedule.ratios])
    return used


def _respond(
    spec: GenerateSpec,
    engine: TransformersEngine,
    encoded: Callable[[int], EncodedPrompt],
    questions: Questions,
    indices: list[int],
    ratio: int,
    model: str,
) -> list[dict[str, object]]:
    sampling = Sampling(
        temperature=spec.temperature,
        top_p=spec.top_p,
        top_k=spec.top_k,
        repetition_penalty=spec.repetition_penalty,
        max_new_tokens=spec.max_new_tokens,
    )
    requests = []
    for index in indices:
        keys = tuple(
            SampleKey(
                seed=spec.seed,
                question_id=questions[index].id,
                source=spec.source,
                ratio=ratio,
                round=spec.round,
                sample=sample,
            )
            for sample in range(spec.samples)
        )
        requests.append(Request(prompt=encoded(index), keys=keys))
    results = engine.generate(requests, sampling)
    return [
        {
            "question_id": key.question_id,
            "source": key.source,
            "ratio": key.ratio,
            "round": key.round,
            "sample": key.sample,
            "model": spec.model.path or spec.model.role or model,
            "text": completion.text,
            "token_ids": completion.token_ids,
            "logprobs": completion.logprobs,
            "finish": completion.finish,
            "seed": spec.seed,
        }
        for request, completions in zip(requests, results, strict=True)
        for key, completion in zip(request.keys, completions, strict=True)
    ]
