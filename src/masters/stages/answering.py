"""Who answers the questions of a generate stage: transformers here, vLLM, or a server."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from masters import curriculum
from masters.artifacts import StageContext
from masters.data.questions import Questions
from masters.errors import StageError
from masters.generation.engine import Completion, Request, TransformersEngine
from masters.generation.pictures import png_files
from masters.generation.sampling import SampleKey, Sampling
from masters.generation.server_engine import ChatQuestion, ServerEngine, question_messages
from masters.generation.vllm_engine import VllmEngine, VllmRequest
from masters.models.encode import EncodedPrompt, PromptText, prompt_text, special_tokens
from masters.models.load import DTYPES, local_folder
from masters.models.memory import doing
from masters.read_ahead import ReadAhead
from masters.specs import GenerateSpec
from masters.stages.engine_check import (
    EngineNotes,
    Sample,
    check_engine,
    engine_facts,
    take_sample,
)
from masters.stages.features import answer_features
from masters.stages.opening import (
    OpenedModel,
    Prompts,
    describe_model,
    model_folder,
    open_model,
    open_teacher,
)
from masters.stages.servers import open_server
from masters.stages.sight import check_sees_image
from masters.teachers.masked import MaskedTeacher
from masters.teachers.materialise import write_masked
from masters.teachers.thresholds import load_thresholds

VLLM_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
FIRST = 8
_MASKED = "checkpoints"  # goes when the stage is done


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a stage wants answered, as every engine is told.

    Args:
        plan: (question index, ratio) of all that the stage answers: int64 [P, 2].
        wanted: of what is to be answered now, in order: int64 [W, 2].
    """

    spec: GenerateSpec
    context: StageContext
    questions: Questions
    sampling: Sampling
    plan: np.ndarray
    wanted: np.ndarray

    @property
    def ratios(self) -> list[int]:
        """Those that are wanted, by first use."""
        return list(dict.fromkeys(self.wanted[:, 1].tolist()))

    def first(self, ratio: int) -> list[int]:
        """The first few questions wanted at a ratio."""
        return self.wanted[self.wanted[:, 1] == ratio, 0][:FIRST].tolist()


class Answering(Protocol):
    """Answers questions at one ratio, which come in the plan's order; samples in key order."""

    def __call__(
        self, ratio: int, indices: Sequence[int], keys: Sequence[tuple[SampleKey, ...]]
    ) -> Sequence[Sequence[Completion]]: ...

    def model(self, ratio: int) -> str:
        """What the table calls the model."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """What the stage's record keeps of it."""
        ...


@contextmanager
def open_answering(job: Job) -> Iterator[Answering]:
    """The engine of the spec, checked."""
    match job.spec.engine:
        case "transformers":
            with _transformers(job) as answering:
                yield answering
        case "server":
            yield _server(job)
        case "vllm":
            answering = _Vllm(job)
            try:
                answering.check()
                yield answering
            finally:
                answering.close()


def _path(job: Job) -> str:
    ref = job.spec.model
    return ref.path or ref.role or str(model_folder(ref, job.context.inputs))


# ------------------------------------------------------------------------------- transformers


@dataclass
class _Transformers:
    engine: TransformersEngine
    teacher: MaskedTeacher
    encoded: ReadAhead[int, EncodedPrompt]
    sampling: Sampling
    name: str

    def __call__(
        self, ratio: int, indices: Sequence[int], keys: Sequence[tuple[SampleKey, ...]]
    ) -> Sequence[Sequence[Completion]]:
        self.teacher.set_ratio(ratio)
        with doing("generating responses"):
            requests = [
                Request(prompt=self.encoded(index), keys=own)
                for index, own in zip(indices, keys, strict=True)
            ]
            return self.engine.generate(requests, self.sampling)

    def model(self, ratio: int) -> str:
        return self.name

    def facts(self) -> Mapping[str, Any]:
        return {"seconds_waiting": round(self.encoded.seconds_waiting, 3)}


@contextmanager
def _transformers(job: Job) -> Iterator[_Transformers]:
    spec, runtime = job.spec, job.context.runtime
    opened = open_model(
        model_folder(spec.model, job.context.inputs),
        spec.prompt,
        runtime,
        precision=spec.precision,
        teacher=spec.source == "teacher",
    )
    teacher = open_teacher(opened, job.context)
    prompts = Prompts(job.questions, opened.processor, spec.prompt)
    check_sees_image(opened, prompts, role=spec.source, precision=DTYPES[spec.precision])
    engine = TransformersEngine(
        opened.model,
        opened.processor,
        opened.ids,
        batch_rows=runtime.generation_batch,
        precision=DTYPES[spec.precision],
        features=answer_features(
            runtime,
            teacher,
            samples=spec.samples,
            asked=len(job.plan),
            questions=len(curriculum.distinct(job.plan * [1, 0])),
        ),
    )
    with prompts.ahead((int(index) for index in job.wanted[:, 0]), runtime.workers) as encoded:
        yield _Transformers(engine, teacher, encoded, job.sampling, _path(job))


# ------------------------------------------------------------------------- what others are told


def _described(job: Job) -> OpenedModel:
    """Processor and special ids of the model; its weights are fetched for the check alone."""
    ref = job.spec.model
    if ref.path is not None and not job.context.runtime.engine_check:
        folder = local_folder(ref.path, revision=ref.revision, weights=False)
    else:
        folder = model_folder(ref, job.context.inputs)
    return describe_model(folder, image_backend=job.spec.prompt.image_backend)


def _pictures(job: Job, index: int) -> list[bytes]:
    images = job.questions.open_images(job.questions[index])
    return png_files(images, job.spec.prompt.max_pixels)


def _text(job: Job) -> PromptText:
    return PromptText(system=job.spec.prompt.system, suffix=job.spec.prompt.suffix)


# ------------------------------------------------------------------------------------ a server


@dataclass(frozen=True, kw_only=True)
class _Server:
    job: Job
    engines: Mapping[int, ServerEngine]
    names: Mapping[int, str]

    def __call__(
        self, ratio: int, indices: Sequence[int], keys: Sequence[tuple[SampleKey, ...]]
    ) -> Sequence[Sequence[Completion]]:
        chats = [_chat(self.job, i, own) for i, own in zip(indices, keys, strict=True)]
        return self.engines[ratio].generate(chats, self.job.sampling)

    def model(self, ratio: int) -> str:
        return f"server:{self.names[ratio]}"

    def facts(self) -> Mapping[str, Any]:
        return engine_facts(self.job.context.folder)


def _chat(job: Job, index: int, keys: tuple[SampleKey, ...]) -> ChatQuestion:
    question, text = job.questions[index], _text(job)
    return ChatQuestion(
        messages=lambda: question_messages(question, _pictures(job, index), text), keys=keys
    )


def _server(job: Job) -> _Server:
    names = {served.ratio: served.model for served in job.spec.served or ()}
    opened = _described(job)
    notes = EngineNotes(job.context.folder, "server")
    engines: dict[int, ServerEngine] = {}
    samples: dict[int, Sample] = {}
    for ratio in job.ratios:
        name = names[ratio]
        server = open_server(job.context.runtime, name, does="answers")
        server.check()
        tokenizer, end = opened.processor.tokenizer, opened.ids.end[0]
        engines[ratio] = ServerEngine(server, tokenizer, end=end)
        shown = f"server:{name}"
        if notes.passed(shown, ratio):
            continue
        if not job.context.runtime.engine_check:
            notes.note(shown, ratio, None)
        else:
            asks = [_asks(job, ServerEngine(server, tokenizer, end=end, logprobs=True))]
            asks.append(_asks(job, engines[ratio]))
            samples[ratio] = _first_sample(job, ratio, shown, asks)
    if samples:
        check_engine(job.spec, job.context, job.questions, job.sampling, notes, samples)
    return _Server(job=job, engines=engines, names=names)


def _asks(job: Job, engine: ServerEngine) -> Callable[..., list[list[Completion]]]:
    return lambda indices, keys, sampling: engine.generate(
        [_chat(job, i, own) for i, own in zip(indices, keys, strict=True)], sampling
    )


def _first_sample(job: Job, ratio: int, name: str, asks: Sequence[Any]) -> Sample:
    """With log-probs, or where the server refuses to give any, without."""
    for ask in asks[:-1]:
        try:
            return take_sample(job.spec, job.questions, job.first(ratio), job.sampling, name, ask)
        except StageError:
            continue
    return take_sample(job.spec, job.questions, job.first(ratio), job.sampling, name, asks[-1])


# --------------------------------------------------------------------------------------- vLLM


@dataclass
class _Vllm:
    """One worker at a time; another ratio is another checkpoint, and another worker.

    A teacher's masked checkpoints are written into the stage's folder, where other workers of the
    stage find them too, and go when it is done.
    """

    job: Job
    opened: OpenedModel = field(init=False)
    engine: VllmEngine | None = None
    ratio: int = -1

    def __post_init__(self) -> None:
        self.opened = describe_model(
            model_folder(self.job.spec.model, self.job.context.inputs),
            image_backend=self.job.spec.prompt.image_backend,
        )

    def check(self) -> None:
        """Compares the first ratio's model; vLLM is away while transformers has it in memory."""
        job = self.job
        first = job.ratios[0]
        name = f"vllm:{_path(job)}"
        engine = self._at(first)
        notes = EngineNotes(job.context.folder, f"vllm {engine.version}")
        if notes.passed(name, first):
            return
        if not job.context.runtime.engine_check:
            notes.note(name, first, None)
        else:
            sample = take_sample(
                job.spec, job.questions, job.first(first), job.sampling, name,
                lambda indices, keys, sampling: engine.generate(
                    self._requests(indices, keys), sampling
                ),
            )  # fmt: skip
            self.close()
            check_engine(job.spec, job.context, job.questions, job.sampling, notes, {first: sample})

    def __call__(
        self, ratio: int, indices: Sequence[int], keys: Sequence[tuple[SampleKey, ...]]
    ) -> Sequence[Sequence[Completion]]:
        return self._at(ratio).generate(self._requests(indices, keys), self.job.sampling)

    def model(self, ratio: int) -> str:
        return _path(self.job)

    def facts(self) -> Mapping[str, Any]:
        return engine_facts(self.job.context.folder)

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
            self.engine = None

    def _requests(
        self, indices: Sequence[int], keys: Sequence[tuple[SampleKey, ...]]
    ) -> list[VllmRequest]:
        job, processor = self.job, self.opened.processor
        requests = []
        for index, own in zip(indices, keys, strict=True):
            text = prompt_text(processor, job.questions[index], _text(job))
            ids = processor.tokenizer(text, **special_tokens(processor, text))["input_ids"]
            requests.append(VllmRequest(ids=ids, images=_pictures(job, index), keys=own))
        return requests

    def _at(self, ratio: int) -> VllmEngine:
        if self.engine is not None and self.ratio == ratio:
            return self.engine
        self.close()
        vllm = self.job.context.runtime.vllm
        if vllm is None:
            raise StageError("method.responses.engine is vllm, but runtime.vllm is null")
        self.engine = VllmEngine(
            python=vllm.python,
            options={
                "model": str(self._checkpoint(ratio)),
                "dtype": VLLM_DTYPES[self.job.spec.precision],
                "tensor_parallel_size": vllm.tensor_parallel,
                "gpu_memory_utilization": vllm.memory,
                "max_model_len": vllm.max_length,
                "enforce_eager": vllm.eager,
                "enable_prefix_caching": True,
                "generation_config": "vllm",  # nothing of the checkpoint's own merges in
                "logprobs_mode": "raw_logprobs",
                "seed": 0,
                **vllm.options,
            },
            tokenizer=self.opened.processor.tokenizer,
            ids=self.opened.ids,
            rows=self.opened.model.get_output_embeddings().weight.shape[0],
            log=self.job.context.folder / "vllm.log",
            start_seconds=vllm.start_seconds,
            answer_seconds=vllm.answer_seconds,
        )
        self.ratio = ratio
        return self.engine

    def _checkpoint(self, ratio: int) -> Path:
        if ratio == 0:
            return self.opened.folder
        masked = self.job.context.folder / _MASKED
        masked.mkdir(exist_ok=True)
        target = masked / f"masked-{ratio}"
        with (masked / ".lock").open("w") as file:  # freed when it is closed, or its owner dies
            fcntl.flock(file, fcntl.LOCK_EX)
            if not target.exists():
                folder = self.job.context.inputs["thresholds"]
                thresholds = load_thresholds(folder / "thresholds.json")
                write_masked(self.opened.folder, target, thresholds, ratio)
        return target
