"""``masters evaluate --model``: the evaluate stage for any checkpoint, on any data we read."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from masters.artifacts import (
    VERDICTS,
    atomic_write_text,
    disk_full_error,
    is_disk_full,
    is_done,
    read_record,
)
from masters.dispatch import dispatch_stage, quiet_libraries
from masters.display import Display
from masters.drafts import Drafts
from masters.errors import RecipeError
from masters.evaluation.located import EVALUATED, Located
from masters.evaluation_drafts import evaluate_spec
from masters.fingerprints import Contents, stage_fingerprint
from masters.named_models import model_name, model_path
from masters.recipe import Recipe, load_recipe
from masters.specs import EvaluateSpec, ModelRef
from masters.stages.preflight import check, check_servers
from masters.workers import Task, execute

_BARE = "sft"
"""The recipe whose settings a model without one is asked with: it needs no teacher."""
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line asks for.

    Args:
        model: a transformers folder, a stage's folder, or owner/name on the hub.
        revision: on the hub.
        name: what reports call it; None: after the model's folder.
        data: a source as ``data.test`` takes it; None: the recipe's ``data.test``.
        recipe: whose prompt, rule and machine are taken; None: those of the shipped recipes.
        by: fields to make tables by.
    """

    model: str
    revision: str | None = None
    name: str | None = None
    data: str | None = None
    recipe: str | None = None
    profile: str | None = None
    overrides: Sequence[str] = ()
    by: Sequence[str] = ()


def evaluate_model(asked: Asked, out: Path) -> Located:
    """Evaluates the model where that is not done, and notes the result under its name.

    The folder is ``OUT/stages/evaluate-<fingerprint>``; ``OUT/evaluated/<name>.json`` says which.

    Raises:
        MastersError: whatever went wrong.
    """
    path = model_path(asked.model)
    name = asked.name or model_name(path)
    if not _NAME.fullmatch(name):
        raise RecipeError(f"--name {name!r}: expected letters, digits, dots, dashes, underscores")
    recipe = settings(asked, path)
    assert recipe.data.test is not None
    spec = evaluate_spec(
        Drafts(recipe), recipe.data.test, ModelRef(path=path, revision=asked.revision)
    )
    task = _task(name, spec, recipe, out)
    quiet_libraries()
    try:
        _execute(task, recipe)
        kept = {
            "folder": str(task.folder.relative_to(out)),
            "model": path,
            "by": list(dict.fromkeys([*recipe.evaluation.by, *asked.by])),
        }
        (out / EVALUATED).mkdir(parents=True, exist_ok=True)
        text = json.dumps(kept, indent=1, ensure_ascii=False)
        atomic_write_text(out / EVALUATED / f"{name}.json", text + "\n")
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise disk_full_error(out) from error
    return Located(name=name, folder=task.folder, by=tuple(kept["by"]))


def settings(asked: Asked, path: str) -> Recipe:
    """The recipe that says how the model is asked, judged and run.

    Raises:
        RecipeError: it is wrong, or says no questions.
    """
    if asked.recipe is not None:
        data = [] if asked.data is None else [f"data.test={asked.data}"]
        recipe = load_recipe(asked.recipe, asked.profile, [*asked.overrides, *data])
    else:
        if asked.data is None:
            raise RecipeError("no questions; expected --data, such as data/test.jsonl, or a recipe")
        given = [
            f"models.student={{path: {json.dumps(path)}}}",
            f"data.train={asked.data}",
            f"data.test={asked.data}",
        ]
        recipe = load_recipe(_BARE, asked.profile, [*given, *asked.overrides])
    if recipe.data.test is None:
        raise RecipeError(
            f"{recipe.name} has no data.test; expected --data, such as data/test.jsonl"
        )
    return recipe


def _task(name: str, spec: EvaluateSpec, recipe: Recipe, out: Path) -> Task:
    digest = stage_fingerprint(spec, {}, Contents())
    return Task(
        name=f"evaluate/{name}",
        spec=spec,
        fingerprint=digest,
        folder=out / "stages" / f"evaluate-{digest[:12]}",
        inputs={},
        input_fingerprints={},
        runtime=recipe.runtime,
    )


def _execute(task: Task, recipe: Recipe) -> None:
    """Runs the one stage with its progress on stderr, unless it is done."""
    if is_done(task.folder) and read_record(task.folder)["fingerprint"] == task.fingerprint:
        return
    check([task.spec], images_checked=recipe.runtime.images_checked)
    check_servers([(task.name, task.spec, task.runtime)], task.folder.parents[1] / VERDICTS)
    begin = time.monotonic()
    with Display(Console(stderr=True), 1) as display:
        display.start(task.name)
        try:
            execute(
                task,
                dispatch_stage,
                lambda done, total, note: display.update(task.name, done, total, note),
            )
        except BaseException:
            display.fail(task.name)
            raise
        display.end(task.name, time.monotonic() - begin)
