"""Which models a recipe measures, and at which mask ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from masters import lineage
from masters.drafts import WHOLE_ONLY, Drafts, Opened, limited
from masters.lineage import STUDENT, Version
from masters.ratios import ratio_parts
from masters.recipe import DataSource, Phase, Recipe
from masters.specs import EvaluateSpec, ModelRef


def draft_evaluations(drafts: Drafts) -> None:
    """The student untouched, after each phase and at the end; teachers at their curves' ratios.

    Comes after all phases: a teacher may have been trained by one.
    """
    recipe = drafts.recipe
    phases, checkpoint = recipe.method.phases, recipe.evaluation.checkpoint
    start = drafts.model(Version(model=STUDENT), "model")
    final = drafts.model(lineage.standing(phases, STUDENT, len(phases)), "model")
    _evaluate(drafts, "start", start, "last", WHOLE_ONLY, {})
    for k, phase in enumerate(phases if recipe.evaluation.each_phase else ()):
        between = Version(model=STUDENT, phase=k)
        if phase.student == STUDENT and between != lineage.standing(phases, STUDENT, len(phases)):
            model = drafts.model(between, "model")
            _evaluate(drafts, between.name, model, checkpoint, WHOLE_ONLY, {})
    _evaluate(drafts, "student", final, checkpoint, WHOLE_ONLY, {})
    for version in lineage.evaluated_teachers(recipe):
        taught = [p for k, p in enumerate(phases) if lineage.teacher(phases, k) == version]
        masked = [phase for phase in taught if phase.mask]
        # An assistant that teaches only once it is trained has no masks before.
        before = not taught and any(phase.student == version.model for phase in phases)
        mask = masked[0].mask if masked else None
        if mask is not None and mask.kind == "softness":
            masked = masked[:1]  # another phase's ratios have no temperature in this one's mask
        ratios = WHOLE_ONLY if before else _curve(recipe, masked)
        thresholds = drafts.mask(version, ratios, mask)
        model = drafts.model(version, "model")
        _evaluate(drafts, f"teacher-{version.name}", model, "last", ratios, thresholds)


def _curve(recipe: Recipe, phases: Sequence[Phase]) -> tuple[int, ...]:
    """The ratios of a teacher's masking curve, falling, 0 included."""
    evaluation = recipe.evaluation
    ratios = {0}
    if evaluation.masking_curve and evaluation.masking_ratios is not None:
        ratios |= {ratio_parts(ratio) for ratio in evaluation.masking_ratios}
    elif evaluation.masking_curve:
        ratios |= {ratio for phase in phases if phase.mask for ratio in phase.mask.ratios}
    return tuple(sorted(ratios, reverse=True))


def _evaluate(
    drafts: Drafts,
    name: str,
    model: Opened,
    checkpoint: str,
    ratios: tuple[int, ...],
    thresholds: Mapping[str, str],
) -> None:
    if drafts.recipe.data.test is None:
        return
    reference, inputs = model
    spec = evaluate_spec(drafts, drafts.recipe.data.test, reference).model_copy(
        update={
            "side": "teacher" if name.startswith("teacher-") else "student",
            "checkpoint": "best" if checkpoint == "best" else "last",
            "ratios": ratios,
        }
    )
    drafts.add(f"evaluate/{name}", spec, {**inputs, **thresholds})


def evaluate_spec(drafts: Drafts, test: DataSource, model: ModelRef) -> EvaluateSpec:
    """How the recipe measures a whole model on the questions of ``test``."""
    recipe = drafts.recipe
    return EvaluateSpec(
        model=model,
        data=limited(test, recipe.data.limit, recipe.evaluation.questions),
        prompt=recipe.prompt,
        benchmark=recipe.evaluation.benchmark,
        rule=recipe.evaluation.rule,
        max_new_tokens=drafts.answer_tokens(),
        precision=drafts.precision,
    )
