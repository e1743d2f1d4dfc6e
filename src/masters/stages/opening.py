"""What every stage opens: models by reference, questions as prompts, answers to them."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from masters.artifacts import StageContext, fingerprint, read_record
from masters.data.questions import Question, Questions
from masters.fingerprints import Contents
from masters.generation.engine import Completion, Engine, Request
from masters.generation.sampling import SampleKey, Sampling
from masters.models.checkpoint import checkpoint_tensors
from masters.models.devices import check_attention, find_device
from masters.models.encode import EncodedPrompt, PromptText, encode_prompt, fit_pixels
from masters.models.layers import meta_model
from masters.models.load import (
    DTYPES,
    TokenIds,
    check_head,
    load_config,
    load_model,
    load_processor,
    local_folder,
    token_ids,
)
from masters.models.memory import doing
from masters.models.offload import stream_blocks
from masters.read_ahead import ReadAhead
from masters.recipe import Prompt, Runtime
from masters.specs import ModelRef
from masters.teachers.masked import MaskedTeacher
from masters.teachers.thresholds import load_thresholds

if TYPE_CHECKING:
    from PIL.Image import Image

CACHE_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A model in memory with its processor, special ids and folder."""

    model: Any
    processor: Any
    ids: TokenIds
    folder: Path


def device_of(runtime: Runtime, *, teacher: bool = False) -> torch.device:
    """The device that a stage's model computes on; a teacher may have its own."""
    if teacher and runtime.teacher_device not in ("same", "offload"):
        return find_device(runtime.teacher_device, key="runtime.teacher_device")
    return find_device(runtime.device, key="runtime.device")


def model_folder(ref: ModelRef, inputs: Mapping[str, Path], *, checkpoint: str = "last") -> Path:
    """The transformers folder a reference means."""
    if ref.role is None:
        assert ref.path is not None
        return local_folder(ref.path, revision=ref.revision)
    best = inputs[ref.role] / "best"
    return best if checkpoint == "best" and best.is_dir() else inputs[ref.role] / "model"


def open_model(
    folder: Path,
    prompt: Prompt,
    runtime: Runtime,
    *,
    precision: str,
    trained: bool = False,
    teacher: bool = False,
    spread: bool = False,
) -> OpenedModel:
    """Loads a model for a stage; a frozen one in its compute dtype, a trained one in float32.

    A frozen one is read through a map of its files, so the host holds no copy of what goes to a
    device. ``teacher``: ``runtime.teacher_device`` says where it computes. ``spread``: it stays in
    the host's memory for whoever spreads it over ranks.
    """
    checkpoint_tensors(folder)  # a file that is cut is named before it is loaded
    device = device_of(runtime, teacher=teacher)
    check_attention(runtime.attention, device, DTYPES[precision])
    streamed = teacher and runtime.teacher_device == "offload" and not spread
    with doing(f"loading the {'teacher' if teacher else 'model'} {folder}"):
        model = load_model(
            str(folder),
            dtype=torch.float32 if trained else DTYPES[precision],
            device="cpu" if streamed or spread else device,
            attention=runtime.attention,
        )
        if streamed:
            stream_blocks(model, device)
    check_head(model)
    processor = load_processor(str(folder), backend=prompt.image_backend)
    return OpenedModel(
        model=model, processor=processor, ids=token_ids(model, processor), folder=folder
    )


def describe_model(folder: Path, *, image_backend: str) -> OpenedModel:
    """The model of a folder without its weights: on the meta device, with processor and ids."""
    from transformers import GenerationConfig

    model = meta_model(load_config(str(folder)))
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    processor = load_processor(str(folder), backend=image_backend)
    return OpenedModel(
        model=model, processor=processor, ids=token_ids(model, processor), folder=folder
    )


def model_identity(ref: ModelRef, inputs: Mapping[str, Path]) -> str:
    """A fingerprint of the model a reference means, by the same rule for every stage."""
    if ref.role is not None:
        return str(read_record(inputs[ref.role])["fingerprint"])
    assert ref.path is not None
    return fingerprint(Contents().model(ref.path, ref.revision))


def stage_identity(role: str, inputs: Mapping[str, Path]) -> str | None:
    """The fingerprint of the stage in this role; None without one."""
    return str(read_record(inputs[role])["fingerprint"]) if role in inputs else None


def open_teacher(opened: OpenedModel, context: StageContext) -> MaskedTeacher:
    """The opened model as a teacher that can be masked, if the stage has thresholds."""
    folder = context.inputs.get("thresholds")
    thresholds = None if folder is None else load_thresholds(folder / "thresholds.json")
    return MaskedTeacher(opened.model, opened.folder, thresholds)


class Prompts:
    """Questions encoded for one model, each once while there is room to keep it.

    Args:
        questions: the data set.
        processor: of the model that reads them.
        prompt: the recipe's prompt block.
        cache: bytes kept in memory. What does not fit is encoded again: the next epoch's order is
            another one, and whoever kept the newest would drop what comes back first.

    Threads may share it: tokenizers keep settings between calls, so each thread has a copy of the
    processor.
    """

    def __init__(
        self, questions: Questions, processor: Any, prompt: Prompt, *, cache: int = CACHE_BYTES
    ) -> None:
        self.questions = questions
        self._processor = processor
        self._prompt = prompt
        self._text = PromptText(system=prompt.system, suffix=prompt.suffix)
        self._kept: dict[int, EncodedPrompt] = {}
        self._room = cache
        self._lock = threading.Lock()
        self._home = threading.get_ident()
        self._at_home = threading.Lock()
        self._threads = threading.local()

    def __call__(self, index: int) -> EncodedPrompt:
        """The encoded prompt of question ``index``."""
        known = self._kept.get(index)
        if known is not None:
            return known
        encoded = self._encode(index)
        with self._lock:
            known = self._kept.get(index)  # another thread may have been quicker
            if known is None and encoded.size <= self._room:
                self._kept[index] = encoded
                self._room -= encoded.size
        return known or encoded

    def encode(self, index: int, *, change: Callable[[Image], Image]) -> EncodedPrompt:
        """Question ``index`` with each of its pictures changed; not kept."""
        return self._encode(index, change)

    def ahead(self, indices: Iterable[int], workers: int) -> ReadAhead[int, EncodedPrompt]:
        """The prompts of these questions, made by threads and asked for in this order."""
        return ReadAhead(self, indices, workers=workers, size=lambda prompt: prompt.size)

    def _encode(self, index: int, change: Callable[[Image], Image] | None = None) -> EncodedPrompt:
        question = self.questions[index]
        images = self.questions.open_images(question)
        if change is not None:
            images = [change(image) for image in images]
        if self._prompt.max_pixels is not None:
            images = [fit_pixels(image, self._prompt.max_pixels) for image in images]
        with self._own_processor() as processor:
            return encode_prompt(processor, question, images, self._text)

    @contextmanager
    def _own_processor(self) -> Iterator[Any]:
        """This thread's processor; nobody copies the original while it is at work."""
        if threading.get_ident() == self._home:
            with self._at_home:
                yield self._processor
            return
        if not hasattr(self._threads, "processor"):
            with self._at_home:
                self._threads.processor = copy.deepcopy(self._processor)
        yield self._threads.processor


def label_ids(tokenizer: Any, ids: TokenIds, text: str) -> tuple[int, ...]:
    """A label as response ids, end token included; text that spells a special token stays text."""
    tokens = tokenizer(ids.lead + text, add_special_tokens=False, split_special_tokens=True)
    return (*tokens["input_ids"], ids.end[0])


def greedy_answers(
    engine: Engine,
    prompts: Prompts,
    indices: Sequence[int],
    *,
    max_new_tokens: int,
    chunk: int,
    encoded: Callable[[int], EncodedPrompt] | None = None,
) -> Iterator[tuple[int, Question, Completion]]:
    """(index, question, greedy completion), ``chunk`` questions encoded at a time.

    ``encoded``: where the prompts come from, if not from ``prompts`` itself.
    """
    encoded = encoded or prompts
    sampling = Sampling.greedy(max_new_tokens)
    for start in range(0, len(indices), chunk):
        part = indices[start : start + chunk]
        requests = []
        for i in part:
            key = SampleKey(
                seed=0, question_id=prompts.questions[i].id, source="greedy",
                ratio=0, round=0, sample=0,
            )  # fmt: skip
            requests.append(Request(prompt=encoded(i), keys=(key,)))
        results = engine.generate(requests, sampling)
        for i, completions in zip(part, results, strict=True):
            yield i, prompts.questions[i], completions[0]
