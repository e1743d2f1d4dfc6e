"""Stage 4b: responses -> what the masked teacher says of each of their tokens, stored."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from masters import curriculum
from masters.artifacts import StageContext
from masters.data.questions import Questions
from masters.data.sources import open_questions
from masters.data.tables import SIGNALS, read_shards
from masters.models.encode import EncodedPrompt, pad_rows
from masters.models.load import DTYPES
from masters.models.output_head import check_head_product
from masters.specs import SignalSpec
from masters.stages.opening import (
    Prompts,
    describe_model,
    model_folder,
    model_identity,
    open_model,
    open_teacher,
    stage_identity,
)
from masters.stages.pairing import Pair, check_stored, pair
from masters.stages.responses_index import ResponseIndex
from masters.stages.sight import check_sees_image
from masters.teachers.masked import MaskedTeacher
from masters.training.group_forward import Form, first_use, make_ready, read_forms, write_verdicts
from masters.training.groups import Group, Rows, make_rows, micro_batches
from masters.training.stored_signal import (
    MANIFEST,
    Manifest,
    index_file,
    save_head,
    save_manifest,
    write_signal_shard,
)
from masters.training.student import autocast
from masters.training.teacher_signal import teacher_head, teacher_states
from masters.training.topk_scores import top_tokens

SIDES = ("teacher", "student")


def run(spec: SignalSpec, context: StageContext) -> dict[str, Any]:
    """Writes whole shards of the teacher's signal; those that are there are left as they are.

    The (question, ratio) pairs come in the order of training, so the mask falls as it does there.
    """
    questions = open_questions(spec.data)
    plan = curriculum.pairs(spec.schedule, len(questions), spec.start, spec.stop)
    starts = range(0, len(plan), spec.shard_questions)
    paths = [index_file(context.folder, n) for n in range(len(starts))]
    todo = {n: plan[starts[n] : starts[n] + spec.shard_questions] for n in context.part.take(paths)}
    made = _make(spec, context, questions, plan, todo) if todo else {}
    context.part.finish(paths)
    return {"questions": len(plan), **_counted(context.folder), **made}


def _make(
    spec: SignalSpec,
    context: StageContext,
    questions: Questions,
    plan: np.ndarray,
    todo: Mapping[int, np.ndarray],
) -> dict[str, Any]:
    """Makes these shards; returns what was counted on the way."""
    opened = open_model(
        model_folder(spec.teacher, context.inputs), spec.prompt, context.runtime,
        precision=spec.precision, teacher=True,
    )  # fmt: skip
    student = describe_model(
        model_folder(spec.student, context.inputs), image_backend=spec.prompt.image_backend
    )
    both = pair(student, opened)
    prompts = Prompts(questions, opened.processor, spec.prompt)
    check_sees_image(opened, prompts, role="teacher", precision=DTYPES[spec.precision])
    for side in SIDES:
        if f"responses.{side}" in context.inputs:
            check_stored(context.inputs[f"responses.{side}"], opened, student, both.common)
    teacher = open_teacher(opened, context)
    wanted = (
        index for part in todo.values() for _, same in curriculum.by_ratio(part) for index in same
    )
    total, done = sum(map(len, todo.values())), 0
    begin = time.perf_counter()
    with prompts.ahead(wanted, context.runtime.workers) as encoded:
        writer = _Writer(spec, context, teacher, questions, encoded, both)
        writer.describe(opened.ids.banned, sorted(set(plan[:, 1].tolist())))
        for shard, part in todo.items():
            writer.write(shard, part)
            done += len(part)
            rate = done / (time.perf_counter() - begin)
            context.progress(done, total, f"{rate:.1f} questions/s")
    return {**writer.counted(), "seconds_waiting": round(encoded.seconds_waiting, 3)}


def _counted(folder: Path) -> dict[str, Any]:
    """Sequences, tokens and bytes of all shards."""
    table = read_shards(folder / "index", SIGNALS, ["start", "stop"])
    start, stop = (table.column(name).to_numpy() for name in ("start", "stop"))
    tokens = int((stop - start).sum())
    held = sum(path.stat().st_size for path in (folder / "tokens").glob("*.safetensors"))
    return {
        "sequences": len(table),
        "tokens": tokens,
        "bytes": held,
        "bytes_per_token": round(held / max(1, tokens), 1),
    }


class _Writer:
    """Has the teacher read the responses and stores what it says."""

    def __init__(
        self,
        spec: SignalSpec,
        context: StageContext,
        teacher: MaskedTeacher,
        questions: Questions,
        encoded: Callable[[int], EncodedPrompt],
        both: Pair,
    ) -> None:
        self._spec, self._context, self._teacher = spec, context, teacher
        self._questions, self._encoded = questions, encoded
        self._both, self._precision = both, DTYPES[spec.precision]
        # Every length: what of the responses is trained on is for the train stage to say.
        self._stored = {
            side: ResponseIndex(
                context.inputs[f"responses.{side}"], None, None,
                limit=sys.maxsize, vocabulary=both.common, banned=both.banned,
            )
            for side in SIDES
            if f"responses.{side}" in context.inputs
        }  # fmt: skip
        self._checked = False
        model = teacher.model
        settings = (
            context.runtime.group_forward, model.device.type, model.dtype,
            model.config._attn_implementation,
        )  # fmt: skip
        self._seen_as = f"teacher: {', '.join(map(str, settings))}"
        # As the folder's first shards decided it under the same settings, whoever made them.
        self._form: Form | None = read_forms(context.folder).get(self._seen_as)
        make_ready(teacher.model, self._form or "repeat")

    def describe(self, banned: Sequence[int], ratios: Sequence[int]) -> None:
        """Writes the manifest, and the head where hidden states are stored."""
        spec, context = self._spec, self._context
        head_VD = self._teacher.model.get_output_embeddings().weight
        manifest = Manifest(
            kind=spec.signal,
            teacher=model_identity(spec.teacher, context.inputs),
            thresholds=stage_identity("thresholds", context.inputs),
            ratios=tuple(ratios),
            precision=spec.precision,
            common=self._both.common,
            banned=tuple(banned),
            width=head_VD.shape[1],
            k=None if spec.k is None else min(spec.k, self._both.common),
            temperature=spec.temperature,
        )
        # The manifest comes last: where it is, the head is whole, and another worker's.
        if (context.folder / MANIFEST).exists():
            return
        if spec.signal == "hidden":
            save_head(context.folder, head_VD[: self._both.common].to(self._precision))
        save_manifest(context.folder, manifest)

    def write(self, shard: int, pairs: np.ndarray) -> None:
        """Stores the signal of these (question index, ratio) pairs."""
        runtime = self._context.runtime
        sequences: list[tuple[str, int, tuple[int, ...]]] = []
        parts: list[dict[str, torch.Tensor]] = []
        for ratio, indices in curriculum.by_ratio(pairs):
            groups = (group for index in indices if (group := self._group(index, ratio)).responses)
            limit = runtime.micro_batch_responses
            self._teacher.set_ratio(ratio)
            for batch in micro_batches(groups, size=runtime.micro_batch_questions, limit=limit):
                self._look_at(batch)
                rows = make_rows(batch)
                # Not as an earlier batch was seen, for it may have been before the run was killed.
                shared = len(rows.spans) > len(batch)
                form = (self._form if shared else None) or "repeat"
                parts += [self._read(piece, form) for piece in rows.passes(limit)]
                sequences += [(name, ratio, ids) for name, ids in rows.sequences()]
        names = parts[0] if parts else {}
        tensors = {name: torch.cat([part[name] for part in parts]) for name in names}
        write_signal_shard(self._context.folder, shard, sequences, tensors)

    def _look_at(self, groups: Sequence[Group]) -> None:
        """Checks the teacher's head once, and decides how it sees a group when that can be told."""
        model, pad, group = self._teacher.model, self._both.ids.pad, groups[0]
        assert group.teacher_prompt is not None
        if not self._checked:
            row = (group.teacher_prompt, group.responses[0].token_ids)
            with autocast(model.device, self._precision):
                check_head_product(model, pad_rows([row], pad=pad, device=model.device))
            self._checked = True
        if self._form is None:
            runtime = self._context.runtime
            verdict = first_use(
                model, groups, runtime.group_forward, teacher=True, pad=pad,
                precision=self._precision, vocabulary=self._both.common,
                limit=runtime.micro_batch_responses,
            )  # fmt: skip
            if verdict is not None:
                write_verdicts(self._context.folder, {self._seen_as: verdict})
                self._form = verdict.form

    def counted(self) -> dict[str, Any]:
        """What was met while writing."""
        return {
            "responses_outside_vocabulary": sum(index.outside for index in self._stored.values()),
            "mask_bytes_read": self._teacher.bytes_read,
            "mask_seconds": self._teacher.seconds,
        }

    def _group(self, index: int, ratio: int) -> Group:
        question, prompt = self._questions[index], self._encoded(index)
        responses = [
            response
            for side, stored in self._stored.items()
            for response in stored.get(question.id, ratio if side == "teacher" else 0)
        ]
        return Group(
            question_id=question.id,
            student_prompt=prompt,
            teacher_prompt=prompt,
            responses=tuple(responses),
        )

    def _read(self, rows: Rows, form: Form) -> dict[str, torch.Tensor]:
        """The signal of some rows, by tensor, on the host."""
        spec, teacher, precision = self._spec, self._teacher, self._precision
        device = torch.device(teacher.model.device)
        ids = self._both.ids
        states_ND = teacher_states(teacher, rows, ids, precision, device, form).to(precision)
        if spec.k is None:
            return {"states": states_ND.cpu()}
        assert spec.temperature is not None
        top = top_tokens(
            states_ND, teacher_head(teacher, device), k=spec.k, common=self._both.common,
            temperature=spec.temperature,
        )  # fmt: skip
        return {"logits": top.logits_NK.cpu(), "ids": top.ids_NK.cpu(), "rest": top.rest_N.cpu()}
