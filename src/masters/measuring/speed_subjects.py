"""Which models `masters speed` measures: paths, tiny presets, or those of a recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from masters.errors import RecipeError
from masters.models.tiny import TINY_SIZES
from masters.named_models import is_recipe, model_name, model_path
from masters.recipe import DataSource, ModelSource, Recipe, load_recipe

_BARE = "sft"
_SCENES = "{kind: scenes, count: 16, image: 450}"
"""Asked where no data is named: speed depends on the sizes of images and texts alone."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model to measure; one of ``path`` and ``tiny`` is given."""

    name: str
    role: str
    path: str | None = None
    revision: str | None = None
    tiny: str | None = None


@dataclass(frozen=True, kw_only=True)
class Subjects:
    """The models, and the recipe whose prompt, precision and machine hold for all of them."""

    recipe: Recipe
    data: DataSource
    models: tuple[Measured, ...]


def find_subjects(
    words: Sequence[str], *, data: str | None, profile: str | None, overrides: Sequence[str]
) -> Subjects:
    """The models that the words of the command line mean.

    Args:
        words: model folders, stages' folders, hub names, tiny presets; at most one recipe, which
            stands for its student and its teachers.
        data: questions as ``data.test`` takes them; None: the recipe's test, else rendered scenes.
        profile, overrides: as for every verb.

    Raises:
        RecipeError: there is no such model, two have one name, or the recipe is wrong.
    """
    recipes = [word for word in words if is_recipe(word)]
    if len(recipes) > 1:
        raise RecipeError(f"{', '.join(recipes)}: several recipes; expected at most one")
    models: list[Measured] = []
    for word in words:
        if word not in recipes:
            models.append(_model(word))
    asked = [] if data is None else [f"data.test={data}"]
    if recipes:
        recipe = load_recipe(recipes[0], profile, [*overrides, *asked])
        models += _of_recipe(recipe)
    else:
        first = models[0]
        origin = first.tiny and f"{{tiny: {first.tiny}, sft: {{}}}}"
        given = [
            f"models.student={origin or f'{{path: {json.dumps(first.path)}}}'}",
            f"data.train={data or _SCENES}",
            f"data.test={data or _SCENES}",
        ]
        recipe = load_recipe(_BARE, profile, [*given, *overrides])
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise RecipeError(f"two models are called the same: {', '.join(names)}; rename a folder")
    questions = recipe.data.test or recipe.data.train
    return Subjects(recipe=recipe, data=questions, models=tuple(models))


def _model(word: str) -> Measured:
    if word in TINY_SIZES:
        return Measured(name=word, role="model", tiny=word)
    also = f", a recipe, or one of the tiny models {', '.join(TINY_SIZES)}"
    path = model_path(word, also=also)
    return Measured(name=model_name(path), role="model", path=path)


def _of_recipe(recipe: Recipe) -> list[Measured]:
    def measured(source: ModelSource, role: str) -> Measured:
        return Measured(
            name=source.name, role=role, path=source.path, revision=source.revision,
            tiny=source.tiny,
        )  # fmt: skip

    models = recipe.models
    return [
        measured(models.student, "student"),
        *(measured(teacher, "teacher") for teacher in models.teachers),
    ]
