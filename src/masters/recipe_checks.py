"""What several keys of a recipe must agree on; all of it is checked when the recipe is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from masters.recipe_engine_checks import engines_at_hand, judges_at_hand, trainable_by_engine
from masters.recipe_errors import wrong
from masters.recipe_model_checks import models_named
from masters.recipe_objective_checks import signal_storable, terms_fed
from masters.recipe_phase_checks import phase_fed, phase_has_use

if TYPE_CHECKING:
    from masters.recipe import Recipe


def consistent(recipe: Recipe) -> None:
    """Teachers exist, terms have what they need, and nothing asked for is without effect."""
    models_named(recipe)
    trainable_by_engine(recipe)
    judges_at_hand(recipe)
    engines_at_hand(recipe)
    terms_fed(recipe.method)
    signal_storable(recipe.method)
    for index, phase in enumerate(recipe.method.phases):
        phase_fed(recipe, index, phase)
    for index in range(len(recipe.method.phases)):
        phase_has_use(recipe.method, index)
    if recipe.evaluation.checkpoint == "best" and not (
        recipe.data.validation and recipe.validation.every
    ):
        raise wrong(
            ("evaluation", "checkpoint"),
            "is 'best', but nothing is validated; expected data.validation and validation.every",
        )
