"""Stage 2: questions -> responses, from the student or from the masked teachers."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from masters import curriculum
from masters.artifacts import StageContext
from masters.data.questions import Questions
from masters.data.sources import open_questions, verify_images
from masters.data.tables import RESPONSES, read_shard, shard_name, write_shard
from masters.errors import StageError
from masters.generation.sampling import SampleKey, Sampling
from masters.specs import GenerateSpec
from masters.stages.answering import Answering, Job, open_answering
from masters.stages.engine_check import refused

#: A larger share of a shard's responses that a server gave none of stops the stage.
MOST_FAILED = 0.05


def run(spec: GenerateSpec, context: StageContext) -> dict[str, Any]:
    """Appends whole shards of responses; shards that are there already are left as they are."""
    questions = open_questions(spec.data)
    verify_images(questions, context.runtime.images_checked)
    plan = planned_pairs(spec, len(questions))
    starts = range(0, len(plan), spec.shard_questions)
    paths = [context.folder / "responses" / shard_name(n) for n in range(len(starts))]
    missing = {path for path in paths if not path.exists()}
    parts = [plan[start : start + spec.shard_questions] for start in starts]
    wanted = [_in_order(part) for path, part in zip(paths, parts, strict=True) if path in missing]
    job = Job(
        spec=spec,
        context=context,
        questions=questions,
        sampling=_sampling(spec),
        wanted=np.concatenate(wanted or [plan[:0]]),
    )
    tokens = cut = failed = done = 0
    begin = time.perf_counter()
    with open_answering(job) as answering:
        for path, part in zip(paths, parts, strict=True):
            if path in missing:
                rows = []
                for ratio, same in _by_ratio(part):
                    rows += _respond(spec, answering, questions, same, ratio)
                write_shard(path, rows, RESPONSES)
            else:
                rows = read_shard(path, RESPONSES).to_pylist()
            tokens += sum(len(row["token_ids"]) for row in rows)
            cut += sum(row["finish"] == "length" for row in rows)
            failed += sum(row["finish"] == "failed" for row in rows)
            done += len(part)
            rate = done / (time.perf_counter() - begin)
            context.progress(done, len(plan), f"{rate:.1f} questions/s")
    return {
        "questions": len(plan),
        "responses": len(plan) * spec.samples,
        "tokens": tokens,
        "cut_at_limit": cut,
        **({"failed": failed} if spec.engine == "server" else {}),
        "skipped_rows": questions.skipped,
        **answering.facts(),
    }


def _sampling(spec: GenerateSpec) -> Sampling:
    return Sampling(
        temperature=spec.temperature,
        top_p=spec.top_p,
        top_k=spec.top_k,
        repetition_penalty=spec.repetition_penalty,
        max_new_tokens=spec.max_new_tokens,
    )


def _by_ratio(part: np.ndarray) -> list[tuple[int, list[int]]]:
    """(ratio, indices of its questions) of a shard's pairs, ratios by first use."""
    pairs: list[list[int]] = part.tolist()
    ratios = dict.fromkeys(ratio for _, ratio in pairs)
    return [(ratio, [index for index, r in pairs if r == ratio]) for ratio in ratios]


def _in_order(part: np.ndarray) -> np.ndarray:
    """A shard's pairs in the order in which they are answered: int64 [P, 2]."""
    pairs = [(index, ratio) for ratio, same in _by_ratio(part) for index in same]
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
