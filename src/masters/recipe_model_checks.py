"""What must hold of a recipe's models: where each comes from, its name, what is left to train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from masters.lineage import STUDENT
from masters.parts import PARTS
from masters.recipe_errors import wrong

if TYPE_CHECKING:
    from masters.recipe import Recipe
    from masters.recipe_models import ModelSource


def one_origin(model: ModelSource) -> None:
    """A model has exactly one of ``path`` and ``tiny``; only tiny ones are taught first."""
    if (model.path is None) == (model.tiny is None):
        got = "neither path nor tiny" if model.path is None else "both path and tiny"
        raise wrong((), f"has {got}; expected exactly one of them")
    if model.path is not None and model.sft is not None:
        raise wrong(("sft",), "is set, but the model has a path; expected it with tiny only")
    if model.tiny is not None and model.sft is None:
        raise wrong((), "is tiny without sft; expected sft: {steps: ..., lr: ...} to teach it")
    if model.tiny is not None and model.revision is not None:
        raise wrong(("revision",), "is set, but the model is tiny; expected it with path only")


def models_named(recipe: Recipe) -> None:
    """Every model has a name of its own, and something to train where a phase trains it."""
    names: set[str] = set()
    for index, teacher in enumerate(recipe.models.teachers):
        if "name" not in teacher.model_fields_set:
            raise wrong(("models", "teachers", index), "has no name; expected one for phases")
        if teacher.name in names or teacher.name == STUDENT:
            raise wrong(
                ("models", "teachers", index, "name"),
                f"is {teacher.name!r}, which is taken; expected every model to have its own",
            )
        names.add(teacher.name)
        trained = any(phase.student == teacher.name for phase in recipe.method.phases)
        for key in ("freeze", "lora"):
            if getattr(teacher, key) and not trained:
                raise wrong(
                    ("models", "teachers", index, key),
                    "is set, but no phase trains this teacher; expected it with what is trained",
                )
        _left_to_train(teacher, ("models", "teachers", index))
    _left_to_train(recipe.models.student, ("models", "student"))
    if recipe.models.student.name != STUDENT:
        raise wrong(("models", "student", "name"), "cannot be chosen; expected it left out")


def _left_to_train(model: ModelSource, where: tuple[str | int, ...]) -> None:
    at = (*where, "freeze")
    if set(model.freeze) == set(PARTS):
        raise wrong(at, "names every part; expected one that is left to train")
    both = [part for part in model.freeze if model.lora and part in model.lora.parts]
    if both:
        raise wrong(at, f"names {both[0]}, which lora.parts adapts; expected one of the two")
