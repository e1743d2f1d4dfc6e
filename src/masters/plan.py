"""From a recipe to ordered stages with inputs, folders, fingerprints and what is left to do.

Quick and torch-free. Stage folders are named by content, so recipes that ask for the same thing
share it, and a changed key makes a new folder instead of overwriting one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from masters.artifacts import atomic_write_text, is_done, read_record
from masters.curriculum import iterations, mask_stages
from masters.drafts import Draft, limited
from masters.errors import RecipeError, StageError
from masters.fingerprints import Contents, stage_fingerprint
from masters.phases import draft_stages, phase_name, phase_schedule
from masters.recipe import Recipe, recipe_from_yaml, resolved_yaml
from masters.specs import ModelRef, StageSpec, TrainSpec

_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A resumable unit with a folder of its own.

    Args:
        inputs: role -> name of the stage it reads.
        status: ``done``, ``to do``, or ``drifted: <keys>`` where an earlier run of this name
            finished with other settings.
    """

    name: str
    spec: StageSpec
    inputs: Mapping[str, str]
    folder: Path
    fingerprint: str
    status: str

    @property
    def kind(self) -> str:
        """train, mask, generate, judge, score or evaluate."""
        return self.spec.kind


@dataclass(frozen=True, kw_only=True)
class MaskStage:
    """A stretch of a phase at one masking ratio: iterations ``start`` to ``stop`` (exclusive)."""

    phase: str
    ratio: int
    start: int
    stop: int
    questions: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a recipe amounts to in ``out``.

    Args:
        name: of the plan's file: the recipe's, with the seed where it is not the recipe's own.
        stages: each after the ones it reads.
        curriculum: the mask stages of all phases, in order.
        questions: the size of ``data.train``, limits applied.
        absent: data files and model weights that are not here; such a plan can be looked at, not
            run.
    """

    name: str
    recipe: Recipe
    out: Path
    stages: tuple[Stage, ...]
    curriculum: tuple[MaskStage, ...]
    questions: int
    absent: tuple[str, ...] = ()

    @property
    def seed(self) -> int:
        """``method.seed``."""
        return self.recipe.method.seed

    @property
    def path(self) -> Path:
        """The file that maps stage names to folders once the plan has been run."""
        return self.out / f"{self.name}.plan.json"

    @cached_property
    def by_name(self) -> dict[str, Stage]:
        """Stages by name."""
        return {stage.name: stage for stage in self.stages}

    def stage(self, name: str) -> Stage:
        """The stage of that name.

        Raises:
            StageError: when there is none; lists those there are.
        """
        if name not in self.by_name:
            raise StageError(
                f"{self.recipe.name} has no stage {name!r}; expected one of: "
                f"{', '.join(self.by_name)}"
            )
        return self.by_name[name]

    def needed_by(self, names: list[str]) -> set[str]:
        """The named stages and all they read, directly or not."""
        found: set[str] = set()
        waiting = [self.stage(name).name for name in names]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting.extend(self.by_name[name].inputs.values())
        return found

    def with_origins(self, stage: Stage) -> StageSpec:
        """The stage's spec, with the models on disk or hub that its student and teacher go back to.

        Training leaves vocabulary and processor as they are, so what a later phase needs of them
        can be looked at before the first one starts.
        """
        spec = stage.spec
        if not isinstance(spec, TrainSpec) or spec.carry_optimiser:
            return spec
        roles = {"init": "student", "teacher": "teacher"}
        found = {key: self._origin(stage, role) for key, role in roles.items()}
        return spec.model_copy(update={key: ref for key, ref in found.items() if ref})

    def _origin(self, stage: Stage, role: str) -> ModelRef | None:
        """Where the weights in ``role`` first came from; None where no stage made or has them."""
        if role not in stage.inputs:
            return None
        while role in stage.inputs:
            stage, role = self.by_name[stage.inputs[role]], "student"
        init = getattr(stage.spec, "init", None)
        return init if isinstance(init, ModelRef) else None

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON values: what the plan file holds."""
        return {
            "recipe": self.recipe.name,
            "seed": self.seed,
            "yaml": resolved_yaml(self.recipe),
            "stages": {
                stage.name: {
                    "kind": stage.kind,
                    "folder": str(stage.folder.relative_to(self.out)),
                    "fingerprint": stage.fingerprint,
                    "status": stage.status,
                    "inputs": dict(stage.inputs),
                    "spec": stage.spec.model_dump(mode="json"),
                }
                for stage in self.stages
            },
            "curriculum": [vars(part) for part in self.curriculum],
        }


def make_plan(
    recipe: Recipe,
    out: str | Path,
    *,
    seed: int | None = None,
    contents: Contents | None = None,
) -> Plan:
    """The plan of the recipe in the folder ``out``; nothing is written.

    Args:
        seed: instead of the recipe's ``method.seed``.
        contents: what was read of the same files for another plan, with the same ``data.count``.

    Raises:
        RecipeError: when the questions don't make the iterations the schedule needs.
        DataError, ModelError: for data and models that are not there or broken.
        StageError: for a damaged record or plan file in ``out``.
    """
    out = Path(out)
    name = recipe.name
    if seed is not None and seed != recipe.method.seed:
        name, recipe = f"{name}-seed{seed}", recipe.with_seed(seed)
    contents = contents or Contents(recipe.data.count)
    n_questions = contents.size(limited(recipe.data.train, recipe.data.limit))
    earlier = _earlier(out / f"{name}.plan.json")
    stages: dict[str, Stage] = {}
    try:
        drafts = draft_stages(recipe, n_questions)
        curriculum = tuple(_curriculum(recipe, n_questions))
    except RecipeError as error:
        raise RecipeError(f"{recipe.name}.yaml: {error}") from None
    for draft in drafts:
        inputs = {role: stages[above].fingerprint for role, above in draft.inputs.items()}
        digest = stage_fingerprint(draft.spec, inputs, contents)
        folder = out / "stages" / f"{draft.spec.kind}-{digest[:_DIGITS]}"
        stages[draft.name] = Stage(
            name=draft.name,
            spec=draft.spec,
            inputs=draft.inputs,
            folder=folder,
            fingerprint=digest,
            status=_status(draft, folder, digest, out, earlier),
        )
    return Plan(
        name=name,
        recipe=recipe,
        out=out,
        stages=tuple(stages.values()),
        curriculum=curriculum,
        questions=n_questions,
        absent=tuple(dict.fromkeys(contents.absent)),
    )


def write_plan(plan: Plan) -> None:
    """Writes the plan file, against which later plans are compared."""
    plan.out.mkdir(parents=True, exist_ok=True)
    atomic_write_text(plan.path, json.dumps(plan.as_json(), indent=1, ensure_ascii=False) + "\n")


def read_plan(path: Path) -> Plan:
    """The plan that was last run under this file, as it stands now.

    Raises:
        StageError: when the file is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        recipe = recipe_from_yaml(content["yaml"], content["recipe"])
    except FileNotFoundError:
        raise StageError(f"{path}: no such plan; run the recipe first") from None
    except (ValueError, KeyError, TypeError):
        raise StageError(f"{path} is damaged; delete it and run the same command again") from None
    return make_plan(recipe, path.parent)


def stage_is_done(stage: Stage) -> bool:
    """Whether the stage's folder holds its finished output.

    Raises:
        StageError: for a damaged record, or one that belongs to another fingerprint.
    """
    if not is_done(stage.folder):
        return False
    found = read_record(stage.folder)["fingerprint"]
    if found != stage.fingerprint:
        raise StageError(
            f"{stage.folder}: its record has fingerprint {found}; expected {stage.fingerprint}. "
            f"Move the folder away and run again"
        )
    return True


def _curriculum(recipe: Recipe, n_questions: int) -> list[MaskStage]:
    found: list[MaskStage] = []
    for index, phase in enumerate(recipe.method.phases):
        schedule = phase_schedule(recipe, index)
        total = iterations(n_questions, schedule)
        for ratio, start, stop in mask_stages(schedule, total):
            found.append(
                MaskStage(
                    phase=phase_name(index, phase),
                    ratio=ratio,
                    start=start,
                    stop=stop,
                    questions=(stop - start) * schedule.questions_per_step,
                )
            )
    return found


def _earlier(path: Path) -> dict[str, Any]:
    """The stages of the plan last run under this name."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["stages"]
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        raise StageError(f"{path} is damaged; delete it and run the same command again") from None


def _status(draft: Draft, folder: Path, digest: str, out: Path, earlier: dict[str, Any]) -> str:
    if is_done(folder):
        if read_record(folder)["fingerprint"] == digest:
            return "done"
        raise StageError(f"{folder} belongs to another stage; move it away and run again")
    before = earlier.get(draft.name)
    if before is None or before["fingerprint"] == digest or not is_done(out / before["folder"]):
        return "to do"
    keys = _differences(before["spec"], draft.spec.model_dump(mode="json"))
    return f"drifted: {', '.join(keys) or 'what it reads'}"


def _differences(old: Any, new: Any, at: str = "") -> list[str]:
    """The dotted keys at which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: list[str] = []
        for key in dict.fromkeys([*old, *new]):
            found += _differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
        return found
    return [] if old == new else [at]
