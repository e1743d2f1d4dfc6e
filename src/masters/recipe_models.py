"""What a recipe may say of its models: where each comes from, and what of it is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from masters import recipe_model_checks
from masters.parts import Part
from masters.recipe_parts import (
    Count,
    DataSource,
    NotNegative,
    Positive,
    Section,
    Unit,
    Whole,
)


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
        recipe_model_checks.one_origin(self)
        return self


class Models(Section):
    """Who learns, and from whom."""

    student: ModelSource
    teachers: tuple[ModelSource, ...] = ()
    """Smallest first. Each has a name that phases refer to, as their teacher or as who learns."""
