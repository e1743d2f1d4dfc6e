"""Everything a recipe's YAML may say, typed and checked: the manual of the settings.

Defaults are the paper's (arXiv 2512.22238) where it names a value; docs/methods.md has the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from masters import recipe_checks, recipe_errors, recipe_file, recipe_phase_checks
from masters.errors import RecipeError
from masters.parts import PARTS, Part
from masters.ratios import mask_ratios
from masters.recipe_engines import Served
from masters.recipe_engines import Vllm as Vllm
from masters.recipe_judge import Judge as Judge
from masters.recipe_judge import ServerAddress as ServerAddress
from masters.recipe_models import Lora as Lora
from masters.recipe_models import Models
from masters.recipe_models import ModelSource as ModelSource
from masters.recipe_models import Sft as Sft
from masters.recipe_objective import AccuracyRule, Rewards, Term
from masters.recipe_objective import DistillationReward as DistillationReward
from masters.recipe_objective import Grpo as Grpo
from masters.recipe_objective import Jsd as Jsd
from masters.recipe_objective import Nll as Nll
from masters.recipe_objective import SkewKl as SkewKl
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
from masters.recipe_runtime import Runtime


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
    kind: Literal["magnitude", "random", "softness"] = "magnitude"
    """magnitude: the smallest weights of each matrix. Controls: random, as many of each matrix,
    drawn for it once; softness, none: logits are divided by ``temperatures``."""
    order: Literal["falling", "rising"] = "falling"
    """rising, a control: the whole teacher first and ``max_ratio`` last."""
    temperatures: tuple[Positive, ...] | None = None
    """With kind: softness, one for each ratio in the order of the mask stages; 1 at ratio 0."""

    @property
    def ratios(self) -> tuple[int, ...]:
        """Per 10,000, in the order of the mask stages: falling to 0, or rising from it."""
        falling = mask_ratios(self.max_ratio, self.step)
        return falling if self.order == "falling" else falling[::-1]

    def temperature(self, ratio: int) -> float:
        """By which logits are divided at a ratio (per 10,000) of a softness mask."""
        assert self.temperatures is not None
        return self.temperatures[self.ratios.index(ratio)]

    @model_validator(mode="after")
    def _multiple(self) -> Mask:
        recipe_phase_checks.whole_multiple(self)
        recipe_phase_checks.temperatures_for_softness(self)
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


# --------------------------------------------------------------------------- whole and measured


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
    *,
    over: Sequence[recipe_file.Part] = (),
) -> Recipe:
    """The typed recipe after ``extends`` < file < profile < over < overrides.

    Args:
        path_or_name: a YAML file, or the name of a shipped recipe such as ``masters``.
        profile: a YAML file or shipped profile (``tiny``, ``one_gpu``) merged over the recipe.
        overrides: ``a.b.0.c=value`` each, the value read as YAML.
        over: mappings laid over the profile, weakest first, each with the name errors give it.

    Raises:
        RecipeError: naming file, key, what was got and what was expected.
    """
    return _typed(recipe_file.layers(path_or_name, profile, overrides, over))


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
