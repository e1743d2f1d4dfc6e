"""From the words of a command line to the folder of a finished evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from masters.artifacts import RunInfo, StageInfo, is_done, read_record
from masters.errors import StageError
from masters.evaluation.evaluated import evaluations, rank
from masters.evaluation.readings import read_json

EVALUATED = "evaluated"
"""The folder of OUT with one small file for each model that was evaluated by itself."""


@dataclass(frozen=True, kw_only=True)
class Located:
    """A finished evaluation.

    Args:
        name: as the user named it.
        folder: the evaluate stage's.
        by: the fields that its recipe makes tables by.
    """

    name: str
    folder: Path
    by: tuple[str, ...] = ()


def locate(word: str) -> Located:
    """The evaluation that a word means.

    Args:
        word: an evaluate stage's folder; ``OUT:NAME``, where OUT is an output folder and NAME what
            its report calls a model (``start``, a recipe's name, ``teacher``; with several seeds
            ``masters@1``) or what ``masters evaluate --model`` called it; or OUT alone where it
            holds one student.

    Raises:
        StageError: there is none, or several; names those there are.
    """
    whole = Path(word).expanduser()
    out, _, name = (word, "", "") if whole.is_dir() else word.rpartition(":")
    folder = Path(out).expanduser()
    if not out or not folder.is_dir():
        raise StageError(
            f"{word}: no such folder. Expected a recipe, the folder of a finished evaluate stage, "
            "an output folder, or OUT:NAME for one of the models evaluated in it"
        )
    if is_done(folder):
        kind = read_record(folder).get("kind")
        if kind != "evaluate":
            raise StageError(f"{folder} is a stage of kind {kind}; expected one of kind evaluate")
        return Located(name=word, folder=folder)
    found = evaluated_in(folder)
    if not found:
        raise StageError(
            f"{folder}: holds no finished evaluation. Run `masters evaluate` with --out {folder}"
        )
    if not name:
        own = [key for key in found if rank(key.partition("@")[0]) == 1]
        name = own[0] if len(own) == 1 else ""
    if name not in found:
        raise StageError(
            f"{word}: which model? Expected one of {', '.join(f'{out}:{key}' for key in found)}"
        )
    return Located(name=word, folder=found[name].folder, by=found[name].by)


def evaluated_in(out: Path) -> dict[str, Located]:
    """Every finished evaluation of an output folder by the name that its report gives it.

    Raises:
        StageError: a plan or a stage's folder is damaged.
    """
    found: dict[str, Located] = {}
    runs = list(_runs(out))
    fields = {run.name: _fields(run.recipe_yaml) for run in runs}
    every = [name for names in fields.values() for name in names]
    items = evaluations(runs)
    for item in items:
        same = {other.folder for other in items if other.run == item.run}
        name = item.run if len(same) == 1 else f"{item.run}@{item.seed}"
        by = fields.get(item.run, every)
        found[name] = Located(name=name, folder=item.folder, by=tuple(dict.fromkeys(by)))
    for path in sorted((out / EVALUATED).glob("*.json")):
        content = read_json(path)
        folder = out / content["folder"]
        if is_done(folder):
            by = tuple(content["by"])
            found[path.stem] = Located(name=path.stem, folder=folder, by=by)
    return found


def _runs(out: Path) -> Iterator[RunInfo]:
    """The plans last run in OUT with their finished evaluations; data and models stay closed."""
    for path in sorted(out.glob("*.plan.json")):
        try:
            plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            folders = {
                name: out / stage["folder"]
                for name, stage in plan["stages"].items()
                if stage["kind"] == "evaluate"
            }
            name, seed, text = plan["recipe"], int(plan["seed"]), str(plan["yaml"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise StageError(f"{path} is damaged; run its recipe again") from None
        stages = {
            stage: StageInfo(kind="evaluate", folder=folder, seconds=0.0)
            for stage, folder in folders.items()
            if is_done(folder)
        }
        if stages:
            yield RunInfo(name=name, seed=seed, recipe_yaml=text, stages=stages)


def _fields(recipe_yaml: str) -> list[str]:
    """``evaluation.by`` of a resolved recipe; one of an earlier version has none."""
    try:
        return list(yaml.safe_load(recipe_yaml)["evaluation"].get("by") or ())
    except (yaml.YAMLError, TypeError, KeyError, AttributeError):
        return []
