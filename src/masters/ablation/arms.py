"""From a suite to runs: the recipe and the plan of an arm on a data set under a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from masters.ablation.suite import Suite
from masters.errors import RecipeError
from masters.fingerprints import Contents
from masters.plan import Plan, Stage, make_plan
from masters.recipe import ModelSource, Recipe, load_recipe
from masters.specs import TrainSpec

STUDENT = "evaluate/student"
MODEL_SEED_STEP = 100
"""Seed s moves the seed of every tiny model by s times this."""

Value = int | float
T = TypeVar("T", str, int)


@dataclass(frozen=True, kw_only=True)
class Key:
    """One run of a suite."""

    data: str
    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.data}, {self.arm}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is run now; None: all of it."""

    data: tuple[str, ...] | None = None
    arms: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None

    def keys(self, suite: Suite) -> list[Key]:
        """The runs chosen, in the suite's order, seed by seed.

        Raises:
            RecipeError: something is named that the suite does not have.
        """
        data = _chosen(self.data, tuple(suite.data), "data set", suite)
        arms = _chosen(self.arms, tuple(suite.arms), "arm", suite)
        seeds = _chosen(self.seeds, suite.seeds, "seed", suite)
        return [Key(data=d, arm=a, seed=s) for d in data for s in seeds for a in arms]


EVERYTHING = Selection()


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What training takes, over all phases: optimiser steps, and questions asked in them."""

    steps: int
    questions: int

    def __str__(self) -> str:
        return f"{self.steps:,} steps over {self.questions:,} questions"


class Arms:
    """The suite's recipes and plans, each made once.

    Args:
        out: the output folder, for all of them.
    """

    def __init__(self, suite: Suite, out: Path) -> None:
        self.suite, self.out = suite, out
        self._recipes: dict[tuple[str, str, Value | None], Recipe] = {}
        self._contents: dict[tuple[str, str], Contents] = {}
        self._plans: dict[tuple[Key, Value | None], Plan] = {}

    def recipe(self, data: str, arm: str, value: Value | None = None) -> Recipe:
        """The arm's recipe on the data set; its seeds are as its files say.

        Args:
            value: of the tuned key; None: as the files say.

        Raises:
            RecipeError: naming file, key, what was got and what was expected.
        """
        known = self._recipes.get((data, arm, value))
        if known is not None:
            return known
        suite, at = self.suite, self.suite.path.name
        chosen = suite.arms[arm]
        tuned = [] if value is None or suite.tune is None else [f"{suite.tune.key}={value!r}"]
        try:
            recipe = load_recipe(
                self._beside(chosen.recipe),
                None if suite.profile is None else self._beside(suite.profile),
                tuned,
                over=[(f"data.{data}", suite.data[data]), (f"arms.{arm}.set", chosen.set)],
            )
        except RecipeError as error:
            raise RecipeError(f"{at}, arm {arm} on {data}: {error}") from None
        needed: dict[str, object] = {"data.test": recipe.data.test}
        if suite.tune is not None:
            needed["data.validation"] = recipe.data.validation
            needed["validation.every"] = recipe.validation.every
        for missing in (name for name, found in needed.items() if found is None):
            raise RecipeError(f"{at}, arm {arm} on {data}: has no {missing}; expected one")
        self._recipes[data, arm, value] = recipe
        return recipe

    def plan(self, key: Key, value: Value | None = None, *, models_of: int | None = None) -> Plan:
        """The plan of one run.

        Args:
            value: of the tuned key.
            models_of: the seed of the tiny models; None: the run's.
        """
        known = self._plans.get((key, value))
        if known is not None:
            return known
        recipe = self.recipe(key.data, key.arm, value)
        if "run" in self.suite.vary:
            recipe = recipe.with_seed(key.seed)
        if "models" in self.suite.vary:
            recipe = with_model_seed(recipe, key.seed if models_of is None else models_of)
        name = f"{self.suite.name}.{key.data}.{key.arm}.seed{key.seed}"
        # A try has a name of its own, so that plan files say what is drifted and what is another.
        tried = self.suite.tune is not None and key.seed == self.suite.tune.seed
        named = recipe.named(f"{name}.{value}" if tried else name)
        # Seeds and values of one arm read the same files, which may take a second to look through.
        contents = self._contents.setdefault((key.data, key.arm), Contents(recipe.data.count))
        made = make_plan(named, self.out, contents=contents)
        self._plans[key, value] = made
        return made

    def _beside(self, text: str) -> str | Path:
        """A file beside the suite, or what is shipped under the name."""
        if not text.endswith((".yaml", ".yml")):
            return text
        return self.suite.path.parent / text


def with_model_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with the seeds of its tiny models moved; the data they are taught on stays."""
    models = recipe.models
    moved = models.model_copy(
        update={
            "student": _moved(models.student, seed),
            "teachers": tuple(_moved(teacher, seed) for teacher in models.teachers),
        }
    )
    return recipe.model_copy(update={"models": moved}).named(recipe.name)


def _moved(source: ModelSource, seed: int) -> ModelSource:
    if source.sft is None:
        return source
    sft = source.sft.model_copy(update={"seed": source.sft.seed + MODEL_SEED_STEP * seed})
    return source.model_copy(update={"sft": sft})


def has_tiny_models(recipe: Recipe) -> bool:
    """Whether a seed can change a model at all."""
    return any(source.sft for source in (recipe.models.student, *recipe.models.teachers))


def train_stages(plan: Plan) -> list[Stage]:
    """The method's own train stages, in order: assistants' among them, tiny models' not."""
    return [stage for stage in plan.stages if stage.name.startswith("train/")]


def last_training(plan: Plan) -> Stage:
    """The train stage whose student is evaluated at the end."""
    return plan.stage(plan.stage(STUDENT).inputs["model"])


def student_stages(plan: Plan) -> list[Stage]:
    """The train stages that the student at the end went through, in order."""
    found: list[Stage] = []
    name: str | None = last_training(plan).name
    while name is not None and name.startswith("train/"):
        found.append(plan.stage(name))
        name = found[-1].inputs.get("student")
    return found[::-1]


def up_to(plan: Plan, *names: str) -> Plan:
    """The plan with these stages and what they read, nothing else."""
    needed = plan.needed_by(list(names))
    return replace(plan, stages=tuple(s for s in plan.stages if s.name in needed))


def budget(plan: Plan) -> Budget:
    """What the run's training takes."""
    specs = [stage.spec for stage in train_stages(plan)]
    taken = [
        (spec.stop - spec.start, spec.schedule.questions_per_step)
        for spec in specs
        if isinstance(spec, TrainSpec)
    ]
    return Budget(
        steps=sum(steps for steps, _ in taken),
        questions=sum(steps * questions for steps, questions in taken),
    )


def check_budgets(arms: Arms) -> None:
    """Refuses claims whose arms do not train alike, unless they say so themselves.

    Raises:
        RecipeError: names the claim, the data set, and what each arm takes.
    """
    suite = arms.suite
    for claim in suite.claims:
        if claim.unequal:
            continue
        for data in suite.data_of(claim):
            found = {
                arm: budget(arms.plan(Key(data=data, arm=arm, seed=suite.seeds[0])))
                for arm in claim.arms
            }
            if len(set(found.values())) > 1:
                told = "; ".join(f"{arm}: {taken}" for arm, taken in found.items())
                raise RecipeError(
                    f"{suite.path.name}: claim {claim.id} on {data} compares arms that train "
                    f"differently ({told}). Give them the same steps and questions, or say "
                    "`unequal: true` in the claim"
                )


def _chosen(given: Sequence[T] | None, legal: Sequence[T], what: str, suite: Suite) -> Sequence[T]:
    if given is None:
        return legal
    for value in given:
        if value not in legal:
            raise RecipeError(
                f"{suite.path.name} has no {what} {value!r}; expected some of "
                f"{', '.join(str(value) for value in legal)}"
            )
    return [value for value in legal if value in given]
