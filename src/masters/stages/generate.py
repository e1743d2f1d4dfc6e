"""Stage 2: questions -> responses, from the student or from the masked teachers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from masters import curriculum
from masters.artifacts import StageContext
from masters.data.questions import Questions
from masters.data.sources import open_questions, verify_images
from masters.data.tables import RESPONSES, read_shard, shard_name, write_shard
from masters.errors import StageError
from masters.generation.sampling import SampleKey, Sampling
from masters.specs import GenerateSpec
from masters.stages.answering import Answering, Job, open_answering
from masters.stages.engine_check import engine_facts, refused

#: A larger share of a shard's responses that a server gave none of stops the stage.
MOST_FAILED = 0.05


def run(spec: GenerateSpec, context: StageContext) -> dict[str, Any]:
    """Makes whole shards of responses; shards that are there already are left as they are."""
    questions = open_questions(spec.data)
    plan = planned_pairs(spec, len(questions))
    starts = range(0, len(plan), spec.shard_questions)
    paths = [context.folder / "responses" / shard_name(n) for n in range(len(starts))]
    parts = [plan[start : start + spec.shard_questions] for start in starts]
    todo = {paths[n]: parts[n] for n in context.part.take(paths)}
    job = Job(
        spec=spec,
        context=context,
        questions=questions,
        sampling=_sampling(spec),
        plan=plan,
        wanted=np.concatenate([_in_order(part) for part in todo.values()] or [plan[:0]]),
    )
    idle = {"seconds_waiting": 0.0} if spec.engine == "transformers" else {}
    facts = _make(job, todo) if todo else {**idle, **engine_facts(context.folder)}
    context.part.finish(paths)
    counts = _counted(paths)
    if spec.engine != "server":
        del counts["failed"]
    return {
        "questions": len(plan),
        "responses": len(plan) * spec.samples,
        **counts,
        "skipped_rows": questions.skipped,
        **facts,
    }


def _make(job: Job, todo: Mapping[Path, np.ndarray]) -> Mapping[str, Any]:
    """Makes the shards of these (question index, ratio) pairs; returns what is said of that."""
    verify_images(job.questions, job.context.runtime.images_checked)
    total, done = sum(map(len, todo.values())), 0
    begin = time.perf_counter()
    with open_answering(job) as answering:
        for path, part in todo.items():
            rows: list[dict[str, object]] = []
            for ratio, same in curriculum.by_ratio(part):
                rows += _respond(job.spec, answering, job.questions, same, ratio)
            write_shard(path, rows, RESPONSES)
            done += len(part)
            rate = done / (time.perf_counter() - begin)
            job.context.progress(done, total, f"{rate:.1f} questions/s")
    return answering.facts()


def _counted(paths: Sequence[Path]) -> dict[str, int]:
    """Tokens, and responses cut at the limit or failed, of all shards."""
    tokens = 0
    finishes: Counter[str] = Counter()
    for path in paths:
        table = read_shard(path, RESPONSES, ["token_ids", "finish"])
        tokens += sum(
            pc.call_function("list_value_length", [table.column("token_ids")]).to_pylist()
        )
        finishes.update(table.column("finish").to_pylist())
    return {
        "tokens": tokens,
        "cut_at_limit": finishes["length"],
        "failed": finishes["failed"],
    }


def _sampling(spec: GenerateSpec) -> Sampling:
    return Sampling(
        temperature=spec.temperature,
        top_p=spec.top_p,
        top_k=spec.top_k,
        repetition_penalty=spec.repetition_penalty,
        max_new_tokens=spec.max_new_tokens,
    )


def _in_order(part: np.ndarray) -> np.ndarray:
    """A shard's pairs in the order in which they are answered: int64 [P, 2]."""
    pairs = [(index, ratio) for ratio, same in curriculum.by_ratio(part) for index in same]
    return np.array(pairs, dtype=np.int64)


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
    answering: Answering,
    questions: Questions,
    indices: list[int],
    ratio: int,
) -> list[dict[str, object]]:
    keys = [
        tuple(
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
        for index in indices
    ]
    results = answering(ratio, indices, keys)
    failures = [c.error for completions in results for c in completions if c.finish == "failed"]
    if len(failures) > MOST_FAILED * len(indices) * spec.samples:
        raise StageError(
            f"{len(failures)} of {len(indices) * spec.samples} responses could not be had; at most "
            f"{MOST_FAILED:.0%} of a shard may lack. {refused(answering.model(ratio), failures[0])}"
        )
    return [
        {
            "question_id": key.question_id,
            "source": key.source,
            "ratio": key.ratio,
            "round": key.round,
            "sample": key.sample,
            "model": answering.model(ratio),
            "text": completion.text,
            "token_ids": completion.token_ids,
            "logprobs": completion.logprobs,
            "finish": completion.finish,
            "seed": spec.seed if completion.seed is None else completion.seed,
        }
        for own, completions in zip(keys, results, strict=True)
        for key, completion in zip(own, completions, strict=True)
    ]
