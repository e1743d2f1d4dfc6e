"""From a stage's spec to the job it is: who computes what, how often, with what in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import assert_never

from masters import lineage
from masters.curriculum import count_pairs
from masters.drafts import Draft
from masters.errors import MastersError
from masters.estimate import memory, passes
from masters.estimate.cluster import Cluster
from masters.estimate.jobs import Job, none, shares
from masters.estimate.memory import Bytes
from masters.estimate.passes import ITEM
from masters.estimate.shapes import shape_of_source
from masters.estimate.training import train_job
from masters.estimate.work import Work
from masters.estimate.workload import Workload
from masters.fingerprints import Contents
from masters.models import counts
from masters.models.counts import ModelShape
from masters.phases import draft_stages, phase_name
from masters.recipe import DataSource, ModelSource, Precision, Recipe, ScenesSource
from masters.specs import (
    EvaluateSpec,
    GenerateSpec,
    JudgeSpec,
    MaskSpec,
    ModelRef,
    ScoreSpec,
    SignalSpec,
    TrainSpec,
)
from masters.stages.generate import planned_pairs

#: Answers in a shard: `stages/evaluate.py`.
EVALUATED_SHARD = 512
#: Bytes of a stored token: its id and its log-probability, as Parquet packs them.
TOKEN_BYTES = 8
SERVED = "by a server: counted as vLLM on these GPUs, over as many as its weights need"
AWAY = "the teacher runs on the host's processor: not counted"


class Jobs:
    """The jobs of a recipe's stages.

    Args:
        recipe: resolved.
        questions: the size of ``data.train``, limits applied.
    """

    def __init__(
        self, recipe: Recipe, questions: int, cluster: Cluster, workload: Workload
    ) -> None:
        self.recipe, self.questions = recipe, questions
        self.cluster, self.workload = cluster, workload
        self.drafts: Mapping[str, Draft] = {
            draft.name: draft for draft in draft_stages(recipe, questions)
        }

    def job(self, name: str) -> Job:
        """The job of the stage of that name."""
        draft = self.drafts[name]
        match draft.spec:
            case TrainSpec():
                return train_job(self, draft, draft.spec)
            case MaskSpec():
                return self._mask(draft, draft.spec)
            case GenerateSpec():
                return self._generate(draft, draft.spec)
            case JudgeSpec():
                return self._judge(draft, draft.spec)
            case ScoreSpec():
                return self._score(draft, draft.spec)
            case SignalSpec():
                return self._signal(draft, draft.spec)
            case EvaluateSpec():
                return self._evaluate(draft, draft.spec)
            case _:
                assert_never(draft.spec)

    # ---------------------------------------------------------------------------------- models

    def source(self, draft: Draft, reference: ModelRef, role: str) -> ModelSource:
        """What the recipe says of the model that a stage refers to."""
        sources = (self.recipe.models.student, *self.recipe.models.teachers)
        if reference.role is None:
            return next(
                one for one in sources
                if (one.path, one.revision) == (reference.path, reference.revision)
            )  # fmt: skip
        kind, name = draft.inputs[role].split("/")[:2]
        if kind == "train":
            phases = self.recipe.method.phases
            name = next(p.student for i, p in enumerate(phases) if phase_name(i, p) == name)
        return next(one for one in sources if one.name == name)

    def shape(self, draft: Draft, reference: ModelRef, role: str) -> ModelShape:
        """The shape of that model."""
        return shape_of_source(self.source(draft, reference, role))

    def size(self, source: DataSource, fallback: float) -> float:
        """How many questions a data set has; ``fallback`` where its files are not here."""
        if isinstance(source, ScenesSource):
            return min(source.count, source.limit or source.count)
        try:
            return Contents(None).size(source)
        except MastersError:
            return min(fallback, source.limit or fallback)

    def phase_teacher(self, draft: Draft) -> ModelShape:
        """The shape of the teacher of the phase that a stage belongs to."""
        phases, phase = self.recipe.method.phases, draft.name.split("/")[1]
        index = next(i for i, one in enumerate(phases) if phase_name(i, one) == phase)
        version = lineage.teacher(phases, index)
        assert version is not None
        sources = (self.recipe.models.student, *self.recipe.models.teachers)
        return shape_of_source(next(one for one in sources if one.name == version.model))

    def spread(self, engine: str, needed: float) -> int:
        """GPUs that one copy of an engine's model takes: as told, or as its memory needs."""
        told = self.recipe.runtime.vllm
        if engine == "vllm" and told is not None:
            return told.tensor_parallel
        free = self.cluster.bytes - 1e9 * self.cluster.efficiency.reserved_gb.value
        counts = (n for n in (1, 2, 4, 8) if needed / n <= free and n <= self.cluster.gpus)
        return next(counts, min(8, self.cluster.gpus))

    def streamed(self, side: str) -> bool:
        """Whether a model of that side visits its device layer by layer."""
        return side == "teacher" and self.recipe.runtime.teacher_device in ("offload", "cpu")

    def loaded(self, shape: ModelShape, precision: Precision, processes: int) -> Work:
        """Opening a stage with this model; the processes of a node read side by side."""
        at_once = min(processes, self.cluster.gpus_per_node)
        return Work(stages=1, disk_bytes=ITEM[precision] * shape.parameters * at_once)

    def encoded(self, shape: ModelShape, questions: float) -> Work:
        """Questions read and encoded for a model."""
        patches = questions * self.workload.image_tokens * shape.patches
        return Work(questions=questions, patches=patches)

    # ---------------------------------------------------------------------------------- stages

    def _mask(self, draft: Draft, spec: MaskSpec) -> Job:
        shape = self.shape(draft, spec.teacher, "teacher")
        stored = 2 if self.cluster.device == "cuda" else 4
        work = Work(
            stages=1, masked=shape.parameters, matrices=shape.matrices,
            disk_bytes=stored * shape.parameters,
        )  # fmt: skip
        note = "on the host's processor; its GPU waits"
        return Job(
            precision="bf16", work=lambda n: work, memory=none, shared=False,
            notes=(note,) if self.cluster.device == "cuda" else (),
        )  # fmt: skip

    def _generate(self, draft: Draft, spec: GenerateSpec) -> Job:
        prompts = asked(spec, self.questions)
        shape = self.shape(draft, spec.model, "model")
        return self._answers(
            shape, spec.precision, spec.source, prompts, spec.samples, spec.max_new_tokens,
            shard=spec.shard_questions, engine=spec.engine,
            token_bytes=TOKEN_BYTES,
        )  # fmt: skip

    def _evaluate(self, draft: Draft, spec: EvaluateSpec) -> Job:
        count = self.size(spec.data, self.workload.test_questions) * len(spec.ratios)
        shape = self.shape(draft, spec.model, "model")
        return self._answers(
            shape, spec.precision, spec.side, count, 1, spec.max_new_tokens,
            shard=EVALUATED_SHARD, sampled=False, repeats=len(spec.ratios),
        )  # fmt: skip

    def _answers(
        self, shape: ModelShape, precision: Precision, side: str, prompts: float, samples: int,
        limit: int, *, shard: int, engine: str = "transformers", sampled: bool = True,
        token_bytes: int = 0, repeats: int = 1,
    ) -> Job:  # fmt: skip
        """Answers of one model, shared by shards; what was encoded is kept for its repeats."""
        workload, runtime, cluster = self.workload, self.recipe.runtime, self.cluster
        own = engine == "transformers"
        streamed = own and self.streamed(side)
        if own and side == "teacher" and runtime.teacher_device == "cpu":
            return _elsewhere(precision)
        batch = min(runtime.generation_batch, max(samples, shard * samples))

        def work(processes: int) -> Work:
            answered = passes.generated(
                shape, workload, cluster, prompts=shares(prompts, processes, shard),
                samples=samples, batch=batch, limit=limit, precision=precision, engine=engine,
                sampled=sampled,
            )  # fmt: skip
            questions = self.encoded(shape, shares(prompts, processes, shard) / repeats)
            brought = Work(host_bytes=answered.passes * ITEM[precision] * shape.layer_parameters)
            total = answered + questions + (brought if streamed else Work())
            return total * (1 / each) + self.loaded(shape, precision, processes)

        def needed(_: int) -> Bytes:
            longest = workload.answer(limit)[1]
            taken = memory.answering(
                shape, workload, precision, rows=batch, longest=longest, prompt=workload.prompt,
                image=workload.image_tokens,
            )  # fmt: skip
            held = {"weights": memory.weights(shape, precision, offload=streamed), **taken}
            return {name: value / each for name, value in held.items()}

        each = 1
        each = 1 if own else self.spread(engine, sum(needed(1).values()))
        return Job(
            precision=precision, work=work, memory=needed, each=each,
            most=math.ceil(prompts / shard), notes=(SERVED,) if engine == "server" else (),
            disk_gb=prompts * samples * workload.answer(limit)[0] * token_bytes / 1e9,
        )  # fmt: skip

    def _judge(self, draft: Draft, spec: JudgeSpec) -> Job:
        answers = self.drafts[draft.inputs["responses"]].spec
        assert isinstance(answers, GenerateSpec)
        prompts, shard = asked(answers, self.questions), answers.shard_questions
        if spec.rule.judge is None:
            return Job(
                precision="fp32", memory=none, most=math.ceil(prompts / shard),
                work=lambda n: Work(stages=1, rows=shares(prompts, n, shard) * answers.samples),
            )  # fmt: skip
        judge, engine = spec.rule.judge, "server" if spec.judge is None else "transformers"
        if spec.judge is None:
            # The paper's judge is the model that generates; whatever is served counts as that.
            shape, precision = self.phase_teacher(draft), self.recipe.method.optimiser.precision
        else:
            shape = self.shape(draft, spec.judge.model, "judge")
            precision = spec.judge.precision
        workload, batch = self.workload, self.recipe.runtime.generation_batch
        distinct = answers.samples * workload.distinct
        streamed = engine == "transformers" and self.streamed("teacher")
        explained = _chat(workload, workload.judge_tokens, workload.explanation_tokens)
        scored = _chat(workload, 150 + workload.explanation_tokens, 3)

        def work(processes: int) -> Work:
            calls = shares(prompts, processes, shard) * distinct
            total = Work(rows=calls)
            for chat, limit in ((explained, judge.max_new_tokens), (scored, 16)):
                own = passes.generated(
                    shape, chat, self.cluster, prompts=calls, samples=1, batch=batch,
                    limit=limit, precision=precision, sampled=False, engine=engine,
                )  # fmt: skip
                brought = own.passes * ITEM[precision] * shape.layer_parameters
                total = total + own + Work(host_bytes=brought if streamed else 0.0)
            return total * (1 / each) + self.loaded(shape, precision, processes)

        def needed(_: int) -> Bytes:
            taken = memory.answering(
                shape, explained, precision, rows=batch, longest=judge.max_new_tokens,
                prompt=workload.judge_tokens + workload.response_tokens, image=0,
            )  # fmt: skip
            held = {"weights": memory.weights(shape, precision, offload=streamed), **taken}
            return {name: value / each for name, value in held.items()}

        each = 1
        each = self.spread(engine, sum(needed(1).values())) if engine == "server" else 1
        return Job(
            precision=precision, work=work, memory=needed, each=each,
            most=math.ceil(prompts / shard), notes=(SERVED,) if engine == "server" else (),
        )  # fmt: skip

    def _score(self, draft: Draft, spec: ScoreSpec) -> Job:
        answers = self.drafts[draft.inputs["responses"]].spec
        assert isinstance(answers, GenerateSpec)
        shape = self.shape(draft, spec.reference, "reference")
        return self._read(
            shape, None, spec.precision, asked(answers, self.questions), answers.samples,
            answers.max_new_tokens, shard=answers.shard_questions, trained=True,
        )  # fmt: skip

    def _signal(self, draft: Draft, spec: SignalSpec) -> Job:
        stored = [self.drafts[name].spec for name in draft.inputs.values()]
        answers = [one for one in stored if isinstance(one, GenerateSpec)]
        shape = self.shape(draft, spec.teacher, "teacher")
        pairs = (spec.stop - spec.start) * spec.schedule.questions_per_step
        group = sum(one.samples for one in answers)
        limit = max(one.max_new_tokens for one in answers)
        each = ITEM[spec.precision] * shape.hidden if spec.k is None else spec.k * 6 + 4
        tokens = pairs * group * self.workload.distinct * self.workload.answer(limit)[0]
        return self._read(
            shape, None if spec.k is None else shape, spec.precision, pairs, group, limit,
            shard=spec.shard_questions, disk=tokens * each,
        )  # fmt: skip

    def _read(
        self, shape: ModelShape, head: ModelShape | None, precision: Precision, prompts: float,
        samples: int, limit: int, *, shard: int, trained: bool = False, disk: float = 0.0,
    ) -> Job:  # fmt: skip
        """Passes without gradient over stored responses, shared by shards."""
        workload, runtime, device = self.workload, self.recipe.runtime, self.cluster.device
        streamed = not trained and self.streamed("teacher")
        response, _ = workload.answer(limit)
        group = max(1.0, samples * workload.distinct)
        split = runtime.micro_batch_responses
        pieces = 1 if split is None else math.ceil(group / split)
        row = passes.group_row(workload, response, group / pieces, runtime, device)
        at_once = runtime.micro_batch_questions if pieces == 1 else 1
        scored = counts.logits(shape, group * response) if trained or head else 0.0

        def work(processes: int) -> Work:
            questions = shares(prompts, processes, shard)
            one = passes.read(shape, workload, row) * pieces
            # Questions of a micro-batch share a pass.
            fewer = {"layer_passes": one.layer_passes / at_once, "passes": one.passes / at_once}
            one = Work(forward_flops=one.forward_flops, head_flops=scored, **fewer)
            brought = fewer["passes"] * ITEM[precision] * shape.layer_parameters
            one += self.encoded(shape, 1)
            one += Work(rows=samples, host_bytes=brought if streamed else 0.0)
            return one * questions + self.loaded(shape, precision, processes)

        def needed(_: int) -> Bytes:
            tokens, image = at_once * row.tokens, at_once * row.pictures * workload.image_tokens
            chunk = passes.chunk_tokens(shape, device, precision)
            logits = memory.scoring(shape, head, at_once * group / pieces * response, chunk)
            held = 4.0 * shape.parameters if trained else memory.weights(
                shape, precision, offload=streamed
            )  # fmt: skip
            inside = memory.inside(shape, tokens, image) * ITEM[precision]
            return {"weights": held, "activations": inside, "logits": logits if scored else 0.0}

        return Job(
            precision=precision, work=work, memory=needed, most=math.ceil(prompts / shard),
            disk_gb=disk / 1e9,
        )  # fmt: skip


def asked(spec: GenerateSpec, n_questions: int) -> int:
    """How many (question, ratio) pairs the stage asks."""
    if spec.on_full_cross:
        return len(planned_pairs(spec, n_questions))
    return count_pairs(spec.schedule, n_questions, spec.start, spec.stop)


def _chat(workload: Workload, prompt: float, answer: float) -> Workload:
    """A judge's call as a workload of its own: no picture."""
    return Workload(
        image_tokens=0, text_tokens=prompt + workload.response_tokens, response_tokens=answer,
        longest_response=2 * answer,
    )  # fmt: skip


def _elsewhere(precision: Precision) -> Job:
    return Job(
        precision=precision, work=lambda n: Work(stages=1), memory=none, shared=False,
        notes=(AWAY,),
    )  # fmt: skip
