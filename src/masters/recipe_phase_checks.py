"""What must hold of a recipe's phases: their masks, who teaches in them and who learns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from masters import lineage
from masters.errors import RecipeError
from masters.lineage import MARK, STUDENT
from masters.ratios import mask_ratios, ratio_parts, ratio_text
from masters.recipe_errors import wrong
from masters.recipe_needs import DIVERGENCES, teacher_needed_by

if TYPE_CHECKING:
    from masters.recipe import Mask, Method, Phase, Recipe


def whole_multiple(mask: Mask) -> None:
    """``max_ratio`` is a whole multiple of ``step``, on integers."""
    try:
        mask_ratios(mask.max_ratio, mask.step)
    except RecipeError as error:
        key, _, said = str(error).partition(" ")
        raise wrong((key,), said) from None


def temperatures_for_softness(mask: Mask) -> None:
    """A softness mask, and no other, has a temperature for each ratio, and 1 where it is 0."""
    at, found = ("temperatures",), mask.temperatures
    if mask.kind != "softness":
        if found is not None:
            raise wrong(at, f"is set, but kind is {mask.kind!r}; expected kind: softness beside it")
        return
    ratios = ", ".join(ratio_text(ratio) for ratio in mask.ratios)
    if found is None or len(found) != len(mask.ratios):
        got = "is missing" if found is None else f"has {len(found)} numbers"
        raise wrong(at, f"{got}; expected one for each of the ratios {ratios}")
    if mask.temperature(0) != 1:
        raise wrong(
            at, f"is {mask.temperature(0):g} at ratio 0; expected 1 there (the ratios are {ratios})"
        )
    for key in ("parts", "include", "exclude"):
        if (
            key in mask.model_fields_set
            and getattr(mask, key) != type(mask).model_fields[key].default
        ):
            raise wrong((key,), "is set, but kind is 'softness', which masks no layer")


def phase_fed(recipe: Recipe, index: int, phase: Phase) -> None:
    """The phase's models are there, and it has a teacher and a mask where these are of use."""
    at = ("method", "phases", index)
    names = [teacher.name for teacher in recipe.models.teachers]
    if phase.student not in (STUDENT, *names):
        raise wrong(
            (*at, "student"),
            f"is {phase.student!r}; expected {STUDENT} or one of models.teachers: "
            f"{', '.join(names) or 'none'}",
        )
    if phase.teacher is not None:
        _teacher(recipe.method, index, phase.teacher, names)
    if phase.mask is not None and phase.mask.kind == "softness":
        _softness(recipe, index, phase.mask)
    need = teacher_needed_by(recipe.method)
    if phase.teacher is None and need is not None:
        raise wrong(at, f"has no teacher, but {need} needs one; expected teacher: <name>")
    if phase.mask is not None and phase.teacher is None:
        raise wrong((*at, "mask"), "is set without a teacher; expected teacher: <name> beside it")
    if phase.mask is not None and need is None:
        raise wrong(
            (*at, "mask"),
            "is set, but no term of method.objective asks a teacher; expected no mask",
        )


def _teacher(method: Method, index: int, named: str, names: list[str]) -> None:
    """``named`` is a model, in a state that it has reached when the phase begins."""
    at = ("method", "phases", index, "teacher")
    model, mark, after = named.partition(MARK)
    if model not in (STUDENT, *names):
        raise wrong(
            at, f"is {named!r}; expected one of models.teachers: {', '.join(names) or 'none'}"
        )
    earlier = [k for k, phase in enumerate(method.phases[:index]) if phase.student == model]
    states = [f"{model}{MARK}{k}" for k in earlier]
    if mark and after not in [str(k) for k in earlier]:
        raise wrong(
            at,
            f"is {named!r}, but no phase of that number before this one trains {model}; expected "
            f"{' or '.join(states) or 'a model as it came, by its name alone'}",
        )
    if model == STUDENT and not states:
        raise wrong(
            at,
            f"is {named!r}, which no phase before this one has trained; expected one of "
            f"models.teachers: {', '.join(names) or 'none'}",
        )


def _softness(recipe: Recipe, index: int, mask: Mask) -> None:
    """What a mask that touches no weight but the head's cannot be combined with."""
    method, evaluation = recipe.method, recipe.evaluation
    at = ("method", "phases", index, "mask", "kind")
    if method.signal == "hidden":
        raise wrong(
            at,
            "is 'softness', and method.signal 'hidden' stores one output head for all ratios; "
            "expected signal: live or topk",
        )
    if method.responses.engine != "transformers":
        raise wrong(
            at,
            f"is 'softness', which {method.responses.engine} has no checkpoint of; expected "
            "method.responses.engine: transformers",
        )
    curve = evaluation.masking_ratios if evaluation.masking_curve else None
    for place, ratio in enumerate(curve or ()):
        if ratio_parts(ratio) not in (0, *mask.ratios):
            raise wrong(
                ("evaluation", "masking_ratios", place),
                f"is {ratio}, for which the softness mask of method.phases[{index}] has no "
                "temperature; expected ratios of its schedule, or null",
            )


def phase_has_use(method: Method, index: int) -> None:
    """Who is trained can learn something there, and an assistant teaches later."""
    phases = method.phases
    phase, teacher = phases[index], lineage.teacher(phases, index)
    masked = phase.mask is not None and phase.mask.max_ratio > 0
    only_compared = all(term.kind in DIVERGENCES for term in method.objective)
    if teacher == lineage.learner(phases, index) and only_compared and not masked:
        raise wrong(
            ("method", "phases", index, "teacher"),
            f"is {phase.teacher!r}, whole and the very model that this phase starts from, so no "
            f"divergence is left to learn from; expected an earlier state, a mask or a grpo term",
        )
    if phase.student == STUDENT:
        return
    left = lineage.Version(model=phase.student, phase=index)
    later = range(index + 1, len(phases))
    if not any(left in (lineage.teacher(phases, k), lineage.learner(phases, k)) for k in later):
        raise wrong(
            ("method", "phases", index, "student"),
            f"is {phase.student!r}, which neither teaches nor learns in a later phase; expected a "
            f"later phase with teacher: {phase.student}",
        )
