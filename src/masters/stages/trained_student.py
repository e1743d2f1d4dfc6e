"""The student as its training begins: where it comes from, and what of it is trained."""

from __future__ import annotations

import shutil
from pathlib import Path

from masters.artifacts import StageContext
from masters.data.scenes import scene_vocabulary
from masters.data.sources import open_questions
from masters.models import lora
from masters.models.layers import meta_model
from masters.models.load import DTYPES, load_config
from masters.models.tiny import write_tiny_model
from masters.models.trainable import LoraSettings, freeze_parts, lora_layers
from masters.specs import ModelRef, TinyInit, TrainSpec
from masters.stages.opening import OpenedModel, model_folder, open_model
from masters.training.optimiser import eight_bit_library
from masters.training.student import Student

TOKENIZER_TEXTS = 2_000


def open_student(spec: TrainSpec, context: StageContext) -> tuple[OpenedModel, Student]:
    """The opened model and the root module that trains it: parts frozen, adapters in place."""
    precision = spec.optimiser.precision
    source = _initial_model(spec, context)
    opened = open_model(source, spec.prompt, context.runtime, precision=precision, trained=True)
    model = opened.model
    runtime = context.runtime
    checkpointing = runtime.gradient_checkpointing
    auto = model.device.type == "cuda" or runtime.activation_offload
    if checkpointing is True or (checkpointing == "auto" and auto):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    resting = freeze_parts(model, spec.freeze)
    if spec.lora is not None:
        _adapt(spec, context, opened)
    student = Student(
        model,
        precision=DTYPES[precision],
        resting=resting,
        adapted=spec.lora is not None,
        offload=runtime.activation_offload,
    )
    return opened, student.train()


def check_settings(spec: TrainSpec) -> None:
    """Looks, before anything runs, for what ``open_student`` would refuse.

    Raises:
        ModelError, StageError: a package is missing, or parts and patterns do not fit the model.
    """
    if spec.optimiser.moments == "8bit":
        eight_bit_library()
    if spec.lora is not None:
        lora.library()
    if not isinstance(spec.init, ModelRef) or spec.init.path is None:
        return
    folder = Path(spec.init.path).expanduser()
    if (spec.lora is None and not spec.freeze) or not folder.is_dir():
        return
    model = meta_model(load_config(str(folder)))
    freeze_parts(model, spec.freeze)
    if spec.lora is not None:
        lora_layers(model, spec.lora.parts, spec.lora.targets)


def _adapt(spec: TrainSpec, context: StageContext, opened: OpenedModel) -> None:
    assert spec.lora is not None
    settings = LoraSettings(
        rank=spec.lora.rank,
        alpha=spec.lora.alpha,
        dropout=spec.lora.dropout,
        parts=spec.lora.parts,
        targets=spec.lora.targets,
        seed=spec.seed,
    )
    layers = lora_layers(opened.model, settings.parts, settings.targets)
    lora.attach(opened.model, layers, settings)
    if spec.carry_optimiser:
        lora.go_on_with(opened.model, context.inputs["student"] / "adapter")


def _initial_model(spec: TrainSpec, context: StageContext) -> Path:
    match spec.init:
        case TinyInit():
            folder = context.folder / "init"
            if not folder.exists():
                partial = context.folder / ".init.partial"
                shutil.rmtree(partial, ignore_errors=True)
                texts = _texts(spec.init)
                write_tiny_model(partial, spec.init.preset, seed=spec.init.seed, texts=texts)
                partial.rename(folder)
            return folder
        case _:
            return model_folder(spec.init, context.inputs)


def _texts(init: TinyInit) -> list[str]:
    """What a tiny model's tokenizer is trained on: the same texts for teacher and student."""
    if init.texts.kind == "scenes":
        return scene_vocabulary()
    questions = open_questions(init.texts)
    texts: dict[str, None] = {}
    for i in range(min(TOKENIZER_TEXTS, len(questions))):
        texts.update(dict.fromkeys((questions[i].text, questions[i].label or "")))
    return list(texts)
