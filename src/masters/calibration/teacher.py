"""Which teacher is meant: a model folder, a name on the hub, a stage's folder, or a recipe's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from masters.errors import RecipeError
from masters.named_models import is_recipe, model_name, model_path
from masters.recipe import DataSource, Mask, ModelSource, Recipe, load_recipe
from masters.recipe_file import shipped

_BARE = "masters"
"""The recipe whose settings a model without one is asked with."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A teacher, and the recipe that says how it is asked, judged, masked and run.

    Args:
        recipe: the user's, or the shipped `masters` with this teacher in it.
        source: the teacher in it.
        questions: what it is measured on.
        mask: which layers; None: the default.
        from_recipe: whether TEACHER was a recipe.
    """

    recipe: Recipe
    source: ModelSource
    questions: DataSource
    mask: Mask | None
    from_recipe: bool


def find_subject(
    teacher: str,
    *,
    name: str | None,
    questions: str | None,
    profile: str | None,
    overrides: Sequence[str],
) -> Subject:
    """The teacher that the words of the command line mean.

    Args:
        teacher: a recipe (a shipped name, or a path that ends in .yaml), a transformers folder, a
            stage's folder with ``model/`` in it, or owner/name on the hub.
        name: which of the recipe's teachers; None where there is one.
        questions: a data source as ``data.test`` takes it; None: the recipe's ``data.validation``.
        profile, overrides: as for every verb.

    Raises:
        RecipeError: there is no such teacher, no questions, or the recipe is wrong.
    """
    from_recipe = is_recipe(teacher)
    asked = [] if questions is None else [f"data.test={questions}"]
    if from_recipe:
        recipe = load_recipe(teacher, profile, overrides)
        source = _named(recipe, name)
        given = _questions(teacher, profile, [*overrides, *asked], default=questions is None)
    else:
        if name is not None:
            raise RecipeError(f"--teacher {name}: {teacher} is a model; expected it with a recipe")
        if questions is None:
            raise RecipeError("no questions; expected --questions, such as data/held_out.jsonl")
        also = f", a .yaml file, or one of the recipes {', '.join(shipped())}"
        path = json.dumps(model_path(teacher, what="teacher", also=also))
        sets = [
            f"models.student={{path: {path}}}",
            f"models.teachers=[{{name: teacher, path: {path}}}]",
            f"data.train={questions}",
            *overrides,
        ]
        recipe = load_recipe(_BARE, profile, sets)
        source = recipe.models.teachers[0]
        given = _questions(_BARE, profile, [*sets, *asked], default=False)
    masks = [p.mask for p in recipe.method.phases if p.teacher == source.name and p.mask]
    if masks and masks[0].kind == "softness":
        raise RecipeError(
            f"{recipe.name} masks no weight of {source.name} (mask kind 'softness'), so there is "
            "no ratio to find; expected kind: magnitude or random"
        )
    return Subject(
        recipe=recipe,
        source=source,
        questions=given,
        mask=masks[0] if masks else None,
        from_recipe=from_recipe,
    )


def folder_name(subject: Subject) -> str:
    """What the folder of results is called: the recipe's name of the teacher, or the model's."""
    if subject.from_recipe or subject.source.path is None:
        return subject.source.name
    return model_name(subject.source.path)


def _named(recipe: Recipe, name: str | None) -> ModelSource:
    teachers = {teacher.name: teacher for teacher in recipe.models.teachers}
    if not teachers:
        raise RecipeError(f"{recipe.name} has no teacher; expected models.teachers")
    if name is None and len(teachers) > 1:
        raise RecipeError(
            f"{recipe.name} has several teachers; expected --teacher with one of "
            f"{', '.join(teachers)}"
        )
    if name is not None and name not in teachers:
        raise RecipeError(
            f"{recipe.name} has no teacher {name!r}; expected one of {', '.join(teachers)}"
        )
    return teachers[name or next(iter(teachers))]


def _questions(
    recipe: str, profile: str | None, overrides: Sequence[str], *, default: bool
) -> DataSource:
    data = load_recipe(recipe, profile, overrides).data
    found = data.validation if default else data.test
    if found is None:
        raise RecipeError(
            f"{recipe} has no data.validation; expected --questions, such as data/held_out.jsonl"
        )
    return found
