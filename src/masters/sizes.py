"""How large a plan is: parameters, masked weights, bytes and steps, from configurations alone.

Models are built on the meta device, so no weight is read and none need be here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from masters import lineage
from masters.curriculum import count_pairs
from masters.models.checkpoint import checkpoint_tensors
from masters.models.families import Family, family_of
from masters.models.layers import maskable_layers, meta_model
from masters.models.load import DTYPES, load_config
from masters.models.tiny import SPECIAL_TOKENS, TINY_SIZES, VOCABULARY, tiny_config
from masters.models.trainable import freeze_parts, lora_layers
from masters.parts import PARTS
from masters.phases import phase_name
from masters.plan import Plan
from masters.recipe import ModelSource, Phase
from masters.signal_sizes import SignalSize, signal_sizes
from masters.specs import GenerateSpec, TrainSpec
from masters.stages.generate import planned_pairs

#: float32 weight, gradient and Adam's two moments: bytes of state for a trained parameter.
TRAINED_BYTES = {"fp32": 16, "8bit": 10}
FROZEN_BYTES = 4
#: Where a parameter lies that is in none of the three parts: the output head, mostly.
OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class Masked:
    """What a phase masks of its teacher.

    Args:
        phase: its name.
        tensors: parameters of the model that are masked, whole or matrix by matrix.
        matrices: each with thresholds of its own; more than ``tensors`` where experts are stacked.
        parameters: weights that the mask may set to zero.
    """

    phase: str
    tensors: int
    matrices: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class LargestTensor:
    """The parameter with the most elements: the least that reading by tensors must hold."""

    name: str
    shape: tuple[int, ...]
    parameters: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """One model of a plan.

    Args:
        role: student or teacher.
        path: as the recipe has it; ``tiny:PRESET`` for a tiny one.
        parameters: of the whole model; a tied head counts once, as the embedding.
        parts: the same by language, projector, vision and other (the head, mostly).
        head_rows, head_width: tokens that the output head scores, padding included, and how wide
            the hidden states are.
        checkpoint_bytes: of the files that are here; else as the configuration's dtype stores it.
        masked: a teacher's, phase by phase; empty where no phase masks it.
        training_bytes: the student's weights, gradients and moments, as much of it as is trained;
            an assistant's too.
        memory_bytes: the teacher's weights in the compute precision.
    """

    name: str
    role: str
    path: str
    parameters: int
    parts: Mapping[str, int]
    head_rows: int
    head_width: int
    checkpoint_bytes: int
    largest: LargestTensor
    masked: tuple[Masked, ...] = ()
    training_bytes: int | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class PlanSizes:
    """A plan's models, and what it does with them.

    Args:
        questions: training questions.
        responses: to generate for training, by who gives them.
        steps: optimiser steps of the phases.
        signals: what the teachers' stored signals take; none where teachers are live.
    """

    models: tuple[ModelSize, ...]
    questions: int
    responses: Mapping[str, int]
    steps: int
    signals: tuple[SignalSize, ...]

    def as_json(self) -> dict[str, Any]:
        """JSON values: ``models``, ``signals`` and ``totals``."""
        totals = {
            "questions": self.questions,
            "responses": {**self.responses, "all": sum(self.responses.values())},
            "optimiser_steps": self.steps,
        }
        return {
            "models": [asdict(model) for model in self.models],
            "signals": [asdict(signal) for signal in self.signals],
            "totals": totals,
        }


def plan_sizes(plan: Plan) -> PlanSizes:
    """The sizes of every model of the plan's recipe, and of the work.

    Raises:
        ModelError: a configuration cannot be read, or its architecture not be told.
    """
    recipe = plan.recipe
    phases = recipe.method.phases
    precision = DTYPES[recipe.method.optimiser.precision]
    moments = recipe.method.optimiser.moments
    taught: dict[str, list[tuple[str, Phase]]] = {}
    for index, phase in enumerate(phases):
        if version := lineage.teacher(phases, index):
            taught.setdefault(version.model, []).append((phase_name(index, phase), phase))
    student = recipe.models.student
    models = [model_size(student, "student", phases=taught.get(student.name, ()), moments=moments)]
    for teacher in recipe.models.teachers:
        models.append(
            model_size(
                teacher,
                "teacher",
                phases=taught.get(teacher.name, ()),
                precision=precision,
                moments=moments,
                trained=any(phase.student == teacher.name for phase in phases),
            )
        )
    return PlanSizes(
        models=tuple(models),
        questions=plan.questions,
        responses=_responses(plan),
        steps=sum(
            stage.spec.stop - stage.spec.start
            for stage in plan.stages
            if isinstance(stage.spec, TrainSpec) and stage.name.startswith("train/")
        ),
        signals=tuple(signal_sizes(plan, {model.name: model for model in models})),
    )


def model_size(
    source: ModelSource,
    role: str,
    *,
    phases: Sequence[tuple[str, Phase]] = (),
    precision: torch.dtype = torch.bfloat16,
    moments: str = "fp32",
    trained: bool = False,
) -> ModelSize:
    """The size of one model.

    Args:
        role: student or teacher.
        phases: those in which it teaches, with their names.
        precision: that a teacher computes in.
        moments: of its optimiser.
        trained: a teacher that a phase trains first.
    """
    model, folder, stored = unloaded(source)
    parameters = dict(model.named_parameters())
    total = sum(parameter.numel() for parameter in parameters.values())
    largest, weight = max(parameters.items(), key=lambda item: item[1].numel())
    student, head = role == "student", model.get_output_embeddings().weight
    return ModelSize(
        name=source.name,
        role=role,
        path=source.path or f"tiny:{source.tiny}",
        parameters=total,
        parts=_by_part(parameters, family_of(model)),
        head_rows=head.shape[0],
        head_width=head.shape[1],
        checkpoint_bytes=(
            total * stored.itemsize
            if folder is None
            else sum(entry.stop - entry.start for entry in checkpoint_tensors(folder).values())
        ),
        largest=LargestTensor(
            name=largest,
            shape=tuple(weight.shape),
            parameters=weight.numel(),
            bytes=weight.numel() * stored.itemsize,
        ),
        masked=tuple(_masked(model, phases)),
        training_bytes=_training_bytes(model, source, moments) if student or trained else None,
        memory_bytes=None if student else total * precision.itemsize,
    )


def _training_bytes(model: Any, source: ModelSource, moments: str) -> int:
    """Of a model on the meta device, whose parameters are marked as frozen or not."""
    freeze_parts(model, source.freeze)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trained = sum(size for size, own in sizes if own)
    frozen = sum(size for size, own in sizes if not own)
    if source.lora is not None:
        frozen += trained
        names = lora_layers(model, source.lora.parts, source.lora.targets)
        layers = [model.get_submodule(name) for name in names]
        trained = source.lora.rank * sum(one.in_features + one.out_features for one in layers)
    return TRAINED_BYTES[moments] * trained + FROZEN_BYTES * frozen


def unloaded(source: ModelSource) -> tuple[Any, Path | None, torch.dtype]:
    """The model on the meta device, the folder of its weights if they are here, their dtype."""
    if source.tiny is not None:
        config = tiny_config(TINY_SIZES[source.tiny], _FullTokenizer())
        return meta_model(config), None, torch.float32
    assert source.path is not None
    config = load_config(source.path, revision=source.revision)
    folder = Path(source.path).expanduser()
    here = folder if any(folder.glob("*.safetensors")) else None
    _settle_head(config, source.path, source.revision, here)
    stored = config.dtype or config.get_text_config().dtype or torch.bfloat16
    return meta_model(config), here, stored


def _settle_head(config: Any, path: str, revision: str | None, folder: Path | None) -> None:
    """Sets ``tie_word_embeddings`` where the file leaves it to the class.

    InternVL's class says tied by default, its published files say nothing, and their checkpoints
    have a head of their own; transformers notices when it loads both tensors. Here the checkpoint
    decides where it is at hand, else the language model's own flag.
    """
    from transformers import PreTrainedConfig

    written, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
    if "tie_word_embeddings" in written:
        return
    if folder is not None:
        names = checkpoint_tensors(folder)
        config.tie_word_embeddings = not any(name.endswith("lm_head.weight") for name in names)
    else:
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings


def _by_part(parameters: Mapping[str, torch.Tensor], family: Family) -> dict[str, int]:
    found: dict[str, int] = dict.fromkeys((*PARTS, OTHER), 0)
    for name, parameter in parameters.items():
        found[family.part_of(name.rpartition(".")[0]) or OTHER] += parameter.numel()
    return found


def _masked(model: Any, phases: Sequence[tuple[str, Phase]]) -> Iterator[Masked]:
    for name, phase in phases:
        mask = phase.mask
        if mask is None or not any(mask.ratios):
            continue
        layers = maskable_layers(
            model, parts=mask.parts, include=mask.include or ("*",), exclude=mask.exclude
        )
        yield Masked(
            phase=name,
            tensors=len({layer.parameter for layer in layers}),
            matrices=len(layers),
            parameters=sum(layer.size for layer in layers),
        )


def _responses(plan: Plan) -> dict[str, int]:
    """Responses to generate, by the side that gives them."""
    found: dict[str, int] = {"teacher": 0, "student": 0}
    for stage in plan.stages:
        spec = stage.spec
        if isinstance(spec, GenerateSpec):
            found[spec.source] += spec.samples * _asked(spec, plan.questions)
    return found


def _asked(spec: GenerateSpec, n_questions: int) -> int:
    """How many (question, ratio) pairs the stage asks."""
    if spec.on_full_cross:
        return len(planned_pairs(spec, n_questions))
    return count_pairs(spec.schedule, n_questions, spec.start, spec.stop)


class _FullTokenizer:
    """Stands in for a tiny model's tokenizer that has learnt as many tokens as it may."""

    def __len__(self) -> int:
        return VOCABULARY

    def convert_tokens_to_ids(self, token: str) -> int:
        return SPECIAL_TOKENS.index(token)
