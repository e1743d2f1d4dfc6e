"""Everything a recipe's YAML may say, typed and checked: the manual of the settings.

Defaults are the paper's (arXiv 2512.22238) where it names a value; docs/methods.md has the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from masters import recipe_checks, recipe_errors, recipe_file
from masters.errors import RecipeError
from masters.parts import PARTS, Part
from masters.ratios import mask_ratios
from masters.recipe_engines import Served, Vllm
from masters.recipe_judge import Judge as Judge
from masters.recipe_judge import ServerAddress
from masters.recipe_parts import Columns as Columns
from masters.recipe_parts import (
    Count,
    DataSource,
    Exact,
    NotNegative,
    Positive,
    Precision,
    Ratio,
    Section,
    Unit,
    Whole,
)
from masters.recipe_parts import DatasetsSource as DatasetsSource
from masters.recipe_parts import JsonlSource as JsonlSource
from masters.recipe_parts import LlavaSource as LlavaSource
from masters.recipe_parts import ScenesSource as ScenesSource
from masters.recipe_parts import WebdatasetSource as WebdatasetSource


class Data(Section):
    """The questions the recipe trains, validates and is tested on."""

    train: DataSource
    """The pool the student is distilled on."""
    validation: DataSource | None = None
    """Questions answered every few steps; picks the best checkpoint. null: no validation."""
    test: DataSource | None = None
    """Held-out questions of the evaluation. null: nothing is evaluated."""
    limit: Count | None = None
    """Use only the first so many questions of all three: a smoke run."""
    count: Count | None = None
    """The number of training questions, to plan while the files are not here."""


# -------------------------------------------------------------------------------------- models


class Sft(Section):
    """How a tiny model is taught on labels before the method begins."""

    data: DataSource | None = None
    """null: the recipe's training data, all of it."""
    steps: Count = 1000
    lr: Positive = 2e-3
    questions_per_step: Count = 96
    seed: int = 0
    """Of its weights and its order; not the method's."""
    betas: tuple[Unit, Unit] = (0.9, 0.98)
    weight_decay: NotNegative = 0.0
    schedule: Literal["constant", "linear"] = "linear"
    warmup_steps: Whole = 0
    validate_every: Count | None = None
    """Validate every so many steps; null: ten times in all."""


class Lora(Section):
    """Low-rank adapters in place of the student's own weights: package peft.

    Only they are trained; at the end of each phase they are merged into the student.
    """

    rank: Count = 16
    alpha: Positive = 32.0
    """The adapters' weight, over the rank: W + alpha / rank * B A."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    parts: Annotated[tuple[Part, ...], Field(min_length=1)] = ("language",)
    """Which parts of the student get adapters."""
    targets: tuple[str, ...] = ()
    """Patterns of module names; empty: every Linear layer of those parts. Never the head."""


class ModelSource(Section):
    """A model from a folder or the hub (``path``), or a tiny one made on the spot (``tiny``)."""

    name: str = Field(default="student", pattern=r"^[A-Za-z0-9_.-]+$")
    """What phases and stages call it."""
    path: str | None = None
    """A transformers folder or a hub name."""
    revision: str | None = None
    """Commit, tag or branch on the hub."""
    tiny: str | None = None
    """A preset of a tiny model with the architecture of a real one."""
    sft: Sft | None = None
    """How the tiny model is taught; it becomes a train stage of its own."""
    freeze: tuple[Part, ...] = ()
    """Parts of the student that keep their weights; the output head counts as language."""
    lora: Lora | None = None
    """Train low-rank adapters only, of the student; null: the weights themselves."""

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSource:
        recipe_checks.one_origin(self)
        return self


class Models(Section):
    """Who learns, and from whom."""

    student: ModelSource
    teachers: tuple[ModelSource, ...] = ()
    """Smallest first. Each has a name that phases refer to, as their teacher or as who learns."""


class Prompt(Section):
    """How a question is put to a model, whoever asks: one place for all stages."""

    system: str | None = None
    """System message."""
    suffix: str | None = "Answer with a word or a phrase."
    """Written after the question, on a line of its own."""
    max_pixels: Count | None = None
    """Larger images are scaled down to so many pixels; null: the processor's own limit."""
    image_backend: Literal["auto", "pil", "torchvision"] = "auto"
    """Which image processor; auto: torchvision where it is installed."""


# -------------------------------------------------------------------------------------- method


class Mask(Section):
    """The teacher's masking schedule (Eq. 1 to 3)."""

    max_ratio: Ratio = Decimal("0.2")
    """The first ratio; a whole multiple of ``step``. 0 leaves the teacher whole."""
    step: Ratio = Decimal("0.05")
    """How much is restored from one mask stage to the next."""
    parts: Annotated[tuple[Part, ...], Field(min_length=1)] = PARTS
    """Which parts of the teacher are masked."""
    include: tuple[str, ...] = ()
    """Patterns of module names; only layers that match one are masked. Empty: all."""
    exclude: tuple[str, ...] = ()
    """Patterns of module names to leave whole."""

    @property
    def ratios(self) -> tuple[int, ...]:
        """Falling, per 10,000, the last one 0."""
        return mask_ratios(self.max_ratio, self.step)

    @model_validator(mode="after")
    def _multiple(self) -> Mask:
        recipe_checks.whole_multiple(self)
        return self


class Phase(Section):
    """One place in the curriculum: a teacher and its masking schedule over the questions."""

    teacher: str | None = None
    """The name of one of ``models.teachers``, or of the student once a phase has trained it: as it
    stands when the phase begins; ``name@0`` means it as phase 0 left it. null: none is needed."""
    student: str = "student"
    """Who is trained: the student, or one of ``models.teachers`` that teaches in a later phase."""
    mask: Mask | None = None
    """null: the teacher is never masked."""
    epochs: Annotated[Exact, Field(gt=0)] = Decimal(1)
    """Passes over the training questions."""
    iterations: Count | None = None
    """Optimiser steps; null: floor(epochs x questions / questions_per_step)."""


class Responses(Section):
    """The responses given before training (section 3.2 of the paper)."""

    teacher: Whole = 4
    """From the phase's masked teacher, per question and mask stage."""
    student: Whole = 4
    """From the student, per question."""
    temperature: Positive = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    top_k: Whole = 50
    """0: no limit."""
    repetition_penalty: Positive = 1.05
    max_new_tokens: Count = 256
    """The longest response, in tokens."""
    engine: Literal["transformers", "vllm", "server"] = "transformers"
    """Who computes them: transformers in this process; vllm: ``runtime.vllm``; server: what
    ``runtime.server`` serves of ``served``, and transformers for the models not named there."""
    served: tuple[Served, ...] = ()
    """With engine: server, what the server calls each model at each masking ratio."""
    precision: Precision | None = None
    """null: the optimiser's."""
    resample: Literal["phase", "mask_stage"] = "phase"
    """Student responses come from the student that starts the phase, or each mask stage."""
    full_cross: bool = False
    """Every masked teacher answers every question, not only those it is trained on."""


class AccuracyRule(Section):
    """Eq. 6: is a response right? By rule, or by an LLM judge."""

    kind: Literal["rule", "judge"] = "rule"
    rule: Literal[
        "exact", "normalised", "numeric", "choice", "yes_no",
        "relaxed", "anls", "vqa", "quantity", "list", "set", "auto",
    ] = "auto"  # fmt: skip
    """auto: choice where there are choices, numeric where the label is one,
    content where labels are worded in several ways, else normalised.
    relaxed (ChartQA), anls (DocVQA) and vqa (VQA v2) are those benchmarks' own."""
    judge: Judge | None = None
    """Who judges, with kind: judge; null: a rule does."""

    @model_validator(mode="before")
    @classmethod
    def _a_judge_for_its_kind(cls, value: Any) -> Any:
        """`kind: judge` alone means a judge with its defaults."""
        if isinstance(value, Mapping) and value.get("kind") == "judge":
            return {**value, "judge": value.get("judge") or {}}
        return value

    @model_validator(mode="after")
    def _of_one_kind(self) -> AccuracyRule:
        recipe_checks.judge_in_its_seat(self)
        return self


class DistillationReward(Section):
    """Eq. 7: the closer to the teacher among a question's responses, the better."""

    min_span: Positive = 1e-4
    """Spans below this (nats) give every response 1."""
    normalise: bool = True
    """Min-max over the question's responses; otherwise -D itself."""


class Rewards(Section):
    """R = accuracy + distillation, either may be null."""

    accuracy: AccuracyRule | None = AccuracyRule()
    distillation: DistillationReward | None = DistillationReward()


class Grpo(Section):
    """The policy term (Eq. 8 to 10)."""

    kind: Literal["grpo"] = "grpo"
    weight: NotNegative = 1.0
    kl: NotNegative = 0.1
    """beta, the weight of the KL to the reference; 0: no reference is scored."""
    clip: Positive = 0.2
    """epsilon; never acts with one update per batch."""
    on: Literal["responses"] = "responses"
    students_only: bool = False
    """Only the student's own responses carry the policy term; advantages still pool both."""
    reference: Literal["phase", "run"] = "phase"
    """The reference is the student at the start of the phase, or of the run."""


class Jsd(Section):
    """Generalised Jensen-Shannon divergence of teacher and student, per token (Eq. 4 and 5)."""

    kind: Literal["jsd"] = "jsd"
    weight: NotNegative = 1.0
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The teacher's share of the mixture."""
    temperature: Positive = 1.0
    on: Literal["labels", "responses"] = "responses"


class Nll(Section):
    """Negative log-likelihood: supervised fine-tuning, on labels or on responses."""

    kind: Literal["nll"] = "nll"
    weight: NotNegative = 1.0
    on: Literal["labels", "responses"] = "labels"
    keep: Literal["all", "correct"] = "all"
    """Which responses: all, or those that the accuracy reward finds right (rejection sampling)."""


Term = Annotated[Grpo | Jsd | Nll, Field(discriminator="kind")]
"""One summand of the objective."""


class Optimiser(Section):
    """AdamW and the size of its steps."""

    lr: Positive = 1e-6
    questions_per_step: Count = 32
    weight_decay: NotNegative = 0.0
    clip_norm: Positive = 1.0
    precision: Precision = "bf16"
    """Compute precision; trained weights are fp32 always."""
    moments: Literal["fp32", "8bit"] = "fp32"
    """Adam's two moments: 8bit takes 2 bytes a trained parameter, not 8 (package bitsandbytes)."""
    betas: tuple[Unit, Unit] = (0.9, 0.999)
    eps: Positive = 1e-8
    schedule: Literal["constant", "linear"] = "constant"
    """constant, or falling linearly to 0 over the phase."""
    warmup_steps: Whole = 0


class Method(Section):
    """Whatever changes a number beyond rounding."""

    seed: int = 0
    """Of plan, sampling and order; a tiny model's own seed is its own."""
    phases: tuple[Phase, ...] = Field(min_length=1)
    """In order; a model goes on from where the last phase that trained it left it."""
    responses: Responses = Responses()
    rewards: Rewards = Rewards()
    signal: Literal["live", "hidden", "topk"] = "live"
    """How the teacher's distribution reaches the step: computed live; or stored before, as hidden
    states (exact) or as its likeliest tokens and one number for the rest (smaller)."""
    signal_k: Count = 64
    """How many tokens of each distribution topk keeps."""
    objective: tuple[Term, ...] = Field(min_length=1)
    """The loss is the weighted sum of these."""
    optimiser: Optimiser = Optimiser()


# ---------------------------------------------------------------------------- checks and running


class Validation(Section):
    """How training is watched."""

    every: Count | None = 100
    """Optimiser steps between validations; null: never."""
    questions: Count | None = 256
    """The first so many of ``data.validation``; null: all."""


class Evaluation(Section):
    """How the result is measured."""

    benchmark: str = "held_out"
    """What reports call ``data.test``."""
    questions: Count | None = None
    """The first so many of ``data.test``; null: all."""
    checkpoint: Literal["last", "best"] = "last"
    """Which weights of the trained student."""
    rule: AccuracyRule = AccuracyRule()
    """When an answer counts as right; the yardstick, whatever the rewards are. A judge is one at a
    server; validation while training goes by the rule."""
    masking_curve: bool = True
    """Evaluate the teachers at every mask ratio, not only whole."""
    masking_ratios: tuple[Ratio, ...] | None = None
    """The ratios of that curve; null: those of the teacher's phases."""
    each_phase: bool = True
    """Of several phases that train the student, evaluate what each left, not only the last."""
    max_new_tokens: Count | None = None
    """null: that of ``method.responses``."""
    by: tuple[str, ...] = ()
    """Fields of the questions, beside their kind, to make tables by."""


class Runtime(Section):
    """How and where it runs: recorded, bounded by tests, never part of a fingerprint."""

    device: str = "auto"
    """auto (cuda where there is one, else cpu), cpu, cuda, cuda:0 ..."""
    teacher_device: str = Field(default="same", pattern=r"^(same|cpu|offload|cuda(:[0-9]+)?)$")
    """Where a teacher computes: on the same device; cpu; cuda:1, say; or offload: on the same
    device, its layers kept in the host's memory and brought over when they run."""
    engine: Literal["single", "fsdp2", "deepspeed"] = "single"
    """What trains: one process; or those that torchrun started, weights, gradients and moments
    spread over them by torch's fully_shard, or by DeepSpeed ZeRO-3 (package deepspeed);
    docs/training_engines.md."""
    activation_offload: bool = False
    """What a layer keeps for its backward pass waits in the host's memory; layers are run again
    (`gradient_checkpointing`), so that this is their inputs alone."""
    jobs: Count = 1
    """Independent stages at the same time, each in a process of its own."""
    threads: Count | None = None
    """CPU threads of each stage; null: torch's choice."""
    micro_batch_questions: Count = 1
    """Questions in one forward and backward pass."""
    micro_batch_responses: Count | None = None
    """A question with more distinct responses than this is split over passes; null: never."""
    group_forward: Literal["auto", "attention", "mask", "repeat"] = "auto"
    """How the responses to a question share its prompt and image. attention and mask: one row for
    all of them; repeat: a row for each. auto: what suits the model. Checked on the first batch."""
    generation_batch: Count = 64
    """Responses generated (or questions answered) at a time."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """flash_attention_2: package flash-attn, a CUDA device and bf16."""
    checkpoint_every: Count = 200
    """Optimiser steps between checkpoints."""
    gradient_checkpointing: Literal["auto", True, False] = "auto"
    """Recompute activations in the backward pass; auto: on a CUDA device."""
    images_checked: Count | None = 20_000
    """Images decoded before the work: all where a data set has no more, else those of so many
    questions spread over it, and the others when their turn comes. null: always all."""
    workers: Whole = 2
    """Threads that read and encode coming questions; 0: done when they are needed."""
    feature_cache_gb: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    """Host memory (GB) for the features of pictures that frozen vision towers make: the teacher's,
    and the student's where `freeze` names it. auto: 4 where questions come again; 0: none, and
    each answer to a prompt encodes its picture anew."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Who reads metrics.jsonl along, where installed."""
    server: ServerAddress | None = None
    """Where a judge with model: server is, and what answers with engine: server."""
    vllm: Vllm | None = None
    """Where vLLM is, for engine: vllm."""
    engine_check: bool = True
    """Before vLLM or a server answers, compare a sample of it with transformers: loads the model
    here. false, where it has no room: what is served is taken on trust, and the record says so."""


class Recipe(Section):
    """A method and what it runs on. ``name`` is the file's stem."""

    models: Models
    data: Data
    prompt: Prompt = Prompt()
    method: Method
    validation: Validation = Validation()
    evaluation: Evaluation = Evaluation()
    runtime: Runtime = Runtime()

    _name: str = PrivateAttr(default="recipe")

    @property
    def name(self) -> str:
        """The stem of the file it was read from."""
        return self._name

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        recipe_checks.consistent(self)
        return self

    def named(self, name: str) -> Recipe:
        """The same recipe under another name."""
        copy = self.model_copy()
        copy._name = name
        return copy

    def with_seed(self, seed: int) -> Recipe:
        """The same recipe with another ``method.seed``."""
        method = self.method.model_copy(update={"seed": seed})
        return self.model_copy(update={"method": method})


def load_recipe(
    path_or_name: str | Path,
    profile: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> Recipe:
    """The typed recipe after ``extends`` < file < profile < overrides.

    Args:
        path_or_name: a YAML file, or the name of a shipped recipe such as ``masters``.
        profile: a YAML file or shipped profile (``tiny``, ``one_gpu``) merged over the recipe.
        overrides: ``a.b.0.c=value`` each, the value read as YAML.

    Raises:
        RecipeError: naming file, key, what was got and what was expected.
    """
    return _typed(recipe_file.layers(path_or_name, profile, overrides))


def _typed(layers: recipe_file.Layers) -> Recipe:
    try:
        recipe = Recipe.model_validate(layers.merged)
    except ValidationError as error:
        raise RecipeError(recipe_errors.explain(error, layers)) from None
    return recipe.named(layers.name)


def recipe_from_yaml(text: str, name: str) -> Recipe:
    """The recipe that `resolved_yaml` wrote out.

    Raises:
        RecipeError: when the text is no recipe of this version.
    """
    layers = recipe_file.layers_of_text(text, name)
    return _typed(layers)


def resolved_yaml(recipe: Recipe) -> str:
    """The recipe with every default written out, as YAML that loads back to the same recipe."""
    return recipe_file.to_yaml(recipe.model_dump(mode="json"))
