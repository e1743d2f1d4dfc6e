"""The drafts of a recipe's stages, and its models as stages refer to them.

A draft knows nothing of folders or fingerprints; `plan` adds those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from masters.lineage import STUDENT, Version
from masters.recipe import (
    AccuracyRule,
    DataSource,
    Mask,
    ModelSource,
    Nll,
    Optimiser,
    Precision,
    Recipe,
    Sft,
)
from masters.specs import (
    MaskSpec,
    ModelRef,
    Schedule,
    StageSpec,
    TinyInit,
    TrainSpec,
    ValidationSpec,
)

WHOLE_ONLY = (0,)

Opened = tuple[ModelRef, dict[str, str]]
"""How a stage refers to a model, and the inputs that takes: role -> name of the stage it reads."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A stage before it has a folder; ``inputs``: role -> name of the stage it reads."""

    name: str
    spec: StageSpec
    inputs: Mapping[str, str]


def limited(source: DataSource, *limits: int | None) -> DataSource:
    """The first questions of the source, as many as the tightest limit allows."""
    given = [limit for limit in (source.limit, *limits) if limit is not None]
    return source.model_copy(update={"limit": min(given)}) if given else source


def as_role(role: str, model: Opened) -> Opened:
    """The same model under another role."""
    reference, inputs = model
    if reference.role is None:
        return reference, {}
    return ModelRef(role=role), {role: inputs[reference.role]}


class Drafts:
    """The drafts collected so far; models and masks are drafted when first asked for.

    Args:
        recipe: whose stages they are.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.by_name: dict[str, Draft] = {}
        self.train_data = limited(recipe.data.train, recipe.data.limit)
        self.precision: Precision = recipe.method.optimiser.precision
        self.ends: list[str] = []
        """The last train stage of each phase drafted so far."""

    def add(self, name: str, spec: StageSpec, inputs: Mapping[str, str]) -> str:
        """Takes the draft in; returns its name."""
        self.by_name[name] = Draft(name=name, spec=spec, inputs=dict(inputs))
        return name

    # ---------------------------------------------------------------------------------- models

    def model(self, version: Version, role: str) -> Opened:
        """The model in ``role``: as it came, or as a phase that was drafted left it."""
        if version.phase is not None:
            return ModelRef(role=role), {role: self.ends[version.phase]}
        source = self.source(version.model)
        if source.tiny is None:
            return ModelRef(path=source.path, revision=source.revision), {}
        name = f"model/{source.name}"
        if name not in self.by_name:
            assert source.sft is not None
            self.add(name, self._taught(name, source.tiny, source.sft), {})
        return ModelRef(role=role), {role: name}

    def source(self, name: str) -> ModelSource:
        """What the recipe says of the model of that name."""
        models = self.recipe.models
        if name == STUDENT:
            return models.student
        return next(teacher for teacher in models.teachers if teacher.name == name)

    def _taught(self, name: str, preset: str, sft: Sft) -> TrainSpec:
        """A tiny model's supervised training; smoke-run limits don't touch it."""
        recipe = self.recipe
        return TrainSpec(
            name=name,
            init=TinyInit(preset=preset, seed=sft.seed, texts=recipe.data.train),
            data=sft.data or recipe.data.train,
            prompt=recipe.prompt,
            seed=sft.seed,
            schedule=Schedule(
                key="sft",
                seed=sft.seed,
                epochs="1",
                questions_per_step=sft.questions_per_step,
                iterations=sft.steps,
            ),
            start=0,
            stop=sft.steps,
            objective=(Nll(on="labels"),),
            optimiser=Optimiser(
                lr=sft.lr,
                questions_per_step=sft.questions_per_step,
                weight_decay=sft.weight_decay,
                precision="fp32",
                betas=sft.betas,
                schedule=sft.schedule,
                warmup_steps=sft.warmup_steps,
            ),
            min_group=1,
            validation=self.watched(sft.validate_every or max(1, sft.steps // 10), None),
            max_new_tokens=recipe.method.responses.max_new_tokens,
        )

    def mask(self, teacher: Version, ratios: tuple[int, ...], mask: Mask | None) -> dict[str, str]:
        """The ``thresholds`` input for these ratios; empty where none is above 0."""
        above = tuple(sorted((ratio for ratio in ratios if ratio > 0), reverse=True))
        if not above:
            return {}
        soft = mask is not None and mask.temperatures is not None
        reference, inputs = self.model(teacher, "teacher")
        spec = MaskSpec(
            teacher=reference,
            ratios=above,
            **({} if mask is None else mask.model_dump(include={"parts", "include", "exclude"})),
            masking=None if mask is None or mask.kind == "magnitude" else mask.kind,
            temperatures=tuple(map(mask.temperature, above)) if mask and soft else None,
        )
        same = (d.name for d in self.by_name.values() if d.spec == spec and d.inputs == inputs)
        found = next(same, None)
        if found is None:
            taken = sum(name.split("/")[:2] == ["mask", teacher.name] for name in self.by_name)
            name = f"mask/{teacher.name}" + (f"/{taken}" if taken else "")
            found = self.add(name, spec, inputs)
        return {"thresholds": found}

    # ---------------------------------------------------------------------------------- checks

    def watched(self, every: int | None, limit: int | None) -> ValidationSpec | None:
        """How a train stage validates; None where it doesn't."""
        recipe = self.recipe
        if recipe.data.validation is None or recipe.validation.every is None or every is None:
            return None
        return ValidationSpec(
            data=limited(recipe.data.validation, limit),
            questions=recipe.validation.questions,
            every=every,
            max_new_tokens=self.answer_tokens(),
            # A judge would cost a call for each of these answers at every validation.
            rule=AccuracyRule(rule=recipe.evaluation.rule.rule),
        )

    def answer_tokens(self) -> int:
        """The longest answer when a model is measured."""
        return self.recipe.evaluation.max_new_tokens or self.recipe.method.responses.max_new_tokens
