"""Stage 4: responses -> log-probs of every stored token under the reference."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from masters.artifacts import StageContext
from masters.data.questions import Questions
from masters.data.sources import open_questions
from masters.data.tables import KEY_COLUMNS, RESPONSES, SCORES, list_shards, read_shard, write_shard
from masters.models.encode import EncodedPrompt
from masters.models.load import DTYPES, TokenIds
from masters.models.memory import doing
from masters.specs import ScoreSpec
from masters.stages.opening import OpenedModel, Prompts, model_folder, open_model
from masters.stages.responses_index import rows_outside
from masters.stages.sight import check_sees_image
from masters.training.group_forward import Form, first_use, group_inputs
from masters.training.groups import Group, Response, make_rows, micro_batches
from masters.training.student import Student
from masters.training.token_scores import ScoreSettings


def run(spec: ScoreSpec, context: StageContext) -> dict[str, Any]:
    """Writes one shard of scores for each shard of responses, row for row.

    The reference is scored by the student's own module under training's precision policy (float32
    weights, autocast), so that the KL at a phase's first step is rounding and no more. A response
    with ids that the reference doesn't have gets an empty list, and training leaves it out.
    """
    questions = open_questions(spec.data)
    shards = list_shards(context.inputs["responses"] / "responses")
    paths = [context.folder / "scores" / shard.name for shard in shards]
    todo = {shards[n]: paths[n] for n in context.part.take(paths)}
    waited = _make(spec, context, questions, todo) if todo else 0.0
    context.part.finish(paths)
    tokens, outside = _counted(paths)
    return {
        "tokens": tokens,
        "responses_without_scores": outside,
        "seconds_waiting": round(waited, 3),
    }


def _make(
    spec: ScoreSpec, context: StageContext, questions: Questions, todo: Mapping[Path, Path]
) -> float:
    """Scores these shards of responses into their paths; returns seconds of waiting."""
    opened = open_model(
        model_folder(spec.reference, context.inputs),
        spec.prompt,
        context.runtime,
        precision=spec.precision,
        trained=True,
    )
    student = Student(opened.model, precision=DTYPES[spec.precision]).eval()
    prompts = Prompts(questions, opened.processor, spec.prompt)
    check_sees_image(opened, prompts, role="reference", precision=DTYPES[spec.precision])
    tokens = 0
    begin = time.perf_counter()
    with prompts.ahead(_asked(list(todo), questions), context.runtime.workers) as encoded:
        for done, (shard, path) in enumerate(todo.items()):
            table = read_shard(shard, RESPONSES, [*KEY_COLUMNS, "token_ids"])
            rows = _readable(table, opened.ids)
            with doing("scoring responses"):
                scored = _score(rows, student, opened, questions, encoded, context)
            write_shard(path, scored, SCORES)
            tokens += sum(len(row["token_ids"]) for row in rows)
            rate = tokens / (time.perf_counter() - begin)
            context.progress(done + 1, len(todo), f"{rate:.0f} tokens/s")
    return encoded.seconds_waiting


def _counted(paths: Sequence[Path]) -> tuple[int, int]:
    """(tokens, responses without scores) of all shards."""
    tokens = outside = 0
    for path in paths:
        scores = read_shard(path, SCORES, ["reference_logprobs"]).column(0)
        lengths = pc.call_function("list_value_length", [scores]).to_pylist()
        tokens += sum(lengths)
        outside += lengths.count(0)
    return tokens, outside


def _asked(shards: list[Path], questions: Questions) -> Iterator[int]:
    """The questions that the shards answer, in their order."""
    for shard in shards:
        ids = read_shard(shard, RESPONSES, ["question_id"]).column("question_id").to_pylist()
        yield from (questions.find(question_id) for question_id, _ in groupby(ids))


def _readable(table: pa.Table, ids: TokenIds) -> list[dict[str, Any]]:
    """The rows; those with ids the reference doesn't have are emptied: they get no scores."""
    rows = table.to_pylist()
    tokens = table.column("token_ids").combine_chunks()
    for i in rows_outside(tokens, ids.vocabulary, ids.banned):
        rows[i]["token_ids"] = []
    return rows


@torch.no_grad()
def _score(
    rows: list[dict[str, Any]],
    student: Student,
    opened: OpenedModel,
    questions: Questions,
    encoded: Callable[[int], EncodedPrompt],
    context: StageContext,
) -> list[dict[str, Any]]:
    """One row of scores for each row; one without tokens has none."""
    settings = ScoreSettings(vocabulary=opened.ids.vocabulary, dtype=student.precision)
    device, limit = opened.model.device, context.runtime.micro_batch_responses
    form: Form | None = None
    known: dict[tuple[Any, ...], list[float]] = {}
    waiting: deque[list[dict[str, Any]]] = deque()
    groups = _groups(rows, questions, encoded, waiting)
    for part in micro_batches(groups, size=context.runtime.micro_batch_questions, limit=limit):
        if form is None:
            verdict = first_use(
                opened.model, part, context.runtime.group_forward, teacher=False,
                pad=opened.ids.pad, precision=student.precision, vocabulary=opened.ids.vocabulary,
                limit=limit,
            )  # fmt: skip
            form = None if verdict is None else verdict.form
        batch = make_rows(part).to(device)
        values: list[float] = []
        for piece in batch.passes(limit):
            inputs, row_N, column_N = group_inputs(
                opened.model, piece, form=form or "repeat", teacher=False, pad=opened.ids.pad,
                device=device,
            )  # fmt: skip
            _, logp_N = student(inputs, row_N, column_N, piece.targets_N, None, None, settings)
            values += logp_N.tolist()
        for row_of in batch.row_of:
            for u, row in zip(row_of, waiting.popleft(), strict=True):
                first, last = batch.spans[u]
                known[tuple(row[name] for name in KEY_COLUMNS)] = values[first:last]
    keys = [{name: row[name] for name in KEY_COLUMNS} for row in rows]
    return [{**key, "reference_logprobs": known.get(tuple(key.values()), [])} for key in keys]


def _groups(
    rows: list[dict[str, Any]],
    questions: Questions,
    encoded: Callable[[int], EncodedPrompt],
    waiting: deque[list[dict[str, Any]]],
) -> Iterator[Group]:
    """A group of each question's rows that have tokens, which are put into ``waiting`` as well."""
    for question_id, own in groupby(rows, key=lambda row: row["question_id"]):
        prompt = encoded(questions.find(question_id))  # asked for as announced, needed or not
        told = [row for row in own if row["token_ids"]]
        if told:
            waiting.append(told)
            yield Group(
                question_id=question_id,
                student_prompt=prompt,
                teacher_prompt=None,
                responses=tuple(
                    Response(token_ids=tuple(row["token_ids"]), source=row["source"])
                    for row in told
                ),
            )
