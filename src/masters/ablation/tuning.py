"""One key tried at the same values for every arm; the value that validates best is the arm's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from masters.ablation.arms import Arms, Key, Value, last_training, train_stages, up_to
from masters.ablation.running import run_past_failures
from masters.ablation.suite import Suite, Tune
from masters.artifacts import atomic_write_text
from masters.dispatch import dispatch_stage
from masters.errors import Failure, StageError
from masters.evaluation.readings import read_json_lines
from masters.plan import Plan, Stage, stage_is_done
from masters.workers import Dispatch

FILE = "tuned.json"


@dataclass(frozen=True, kw_only=True)
class Try:
    """One value of the tuned key: the last validation accuracy, or None where training diverged."""

    value: Value
    accuracy: float | None

    def as_json(self) -> dict[str, Any]:
        """The try as JSON values; an accuracy of null is a training that diverged."""
        return {"value": self.value, "accuracy": self.accuracy}


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What an arm's tries on a data set came to.

    Args:
        tries: in the order of the grid, rising; fewer than its values while some are not done.
        value: the chosen one; None while tries are missing, or where all of them diverged.
        edge: the chosen value is the smallest or the largest that was tried.
    """

    data: str
    arm: str
    tries: tuple[Try, ...]
    value: Value | None
    edge: bool

    def as_json(self) -> dict[str, Any]:
        """The choice as JSON values."""
        return {**vars(self), "tries": [one.as_json() for one in self.tries]}


def choose(tries: Sequence[Try]) -> Value | None:
    """The value with the best last validation; None where all diverged.

    Of equals the one closest to the middle of the grid, counted in places; then the smaller.

    Args:
        tries: of the whole grid, rising.
    """
    middle = (len(tries) - 1) / 2
    finished = [(place, one) for place, one in enumerate(tries) if one.accuracy is not None]
    if not finished:
        return None

    def rank(item: tuple[int, Try]) -> tuple[float, float, int]:
        place, one = item
        assert one.accuracy is not None
        return (-one.accuracy, abs(place - middle), place)

    return min(finished, key=rank)[1].value


class Tuning:
    """The tries of a suite, and what is known of them in its output folder."""

    def __init__(self, arms: Arms, tune: Tune) -> None:
        self.arms, self.tune = arms, tune
        self.path = arms.out / FILE
        self._diverged: dict[str, str] = dict(
            _kept(self.path).get(arms.suite.name, {}).get("diverged", {})
        )

    def stage(self, data: str, arm: str, value: Value) -> Stage:
        """The train stage that is judged by its last validation."""
        return last_training(self._whole(data, arm, value))

    def _whole(self, data: str, arm: str, value: Value) -> Plan:
        key = Key(data=data, arm=arm, seed=self.tune.seed)
        return self.arms.plan(key, value, models_of=self.tune.models_of)

    def run(
        self,
        keys: Sequence[Key],
        *,
        jobs: int | None,
        dispatch: Dispatch = dispatch_stage,
        console: Console | None = None,
    ) -> tuple[Failure, ...]:
        """Does the tries that these runs need, and writes ``tuned.json``.

        Returns:
            What failed otherwise than by diverging.
        """
        plans = self.to_do(keys)
        found = run_past_failures(plans, jobs=jobs, dispatch=dispatch, console=console)
        told = {one.folder: one.text.splitlines()[0] for one in found if one.diverged}
        tolerated: set[Path] = set()
        for plan in plans:
            for folder in {stage.folder for stage in train_stages(plan)} & told.keys():
                self._diverged[plan.stages[-1].folder.name] = told[folder]
                tolerated.add(folder)
        self.write()
        return tuple(one for one in found if one.folder not in tolerated)

    def to_do(self, keys: Sequence[Key]) -> list[Plan]:
        """The tries that these runs need and that are neither done nor known to diverge.

        Each plan ends with the train stage that is judged.
        """
        suite = self.arms.suite
        pairs = dict.fromkeys((key.data, suite.tuned_as(key.arm)) for key in keys)
        wholes = [self._whole(*pair, value) for pair in pairs for value in self.tune.grid]
        lasts = [(plan, last_training(plan)) for plan in wholes]
        return [up_to(plan, last.name) for plan, last in lasts if not self._settled(last)]

    def found(self, data: str, arm: str) -> Tuned:
        """What the tries say so far for the arm, or for the one it is tuned as."""
        source = self.arms.suite.tuned_as(arm)
        stages = {value: self.stage(data, source, value) for value in self.tune.grid}
        tries = tuple(
            Try(value=value, accuracy=self._accuracy(stage))
            for value, stage in stages.items()
            if self._settled(stage)
        )
        value = choose(tries) if len(tries) == len(stages) else None
        edge = value in (self.tune.grid[0], self.tune.grid[-1])
        return Tuned(data=data, arm=source, tries=tries, value=value, edge=edge)

    def write(self) -> None:
        """Writes ``tuned.json``: the choices, and which tries are known to diverge.

        What other suites of the output folder have there stays.
        """
        suite = self.arms.suite
        sources = dict.fromkeys(suite.tuned_as(arm) for arm in suite.arms)
        content = {
            "key": self.tune.key,
            "seed": self.tune.seed,
            "chosen": [self.found(data, arm).as_json() for data in suite.data for arm in sources],
            "diverged": dict(sorted(self._diverged.items())),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        everything = dict(sorted((_kept(self.path) | {suite.name: content}).items()))
        atomic_write_text(self.path, json.dumps(everything, indent=1, ensure_ascii=False) + "\n")

    def _settled(self, stage: Stage) -> bool:
        return stage_is_done(stage) or stage.folder.name in self._diverged

    def _accuracy(self, stage: Stage) -> float | None:
        return last_validation(stage.folder) if stage_is_done(stage) else None


def tuning_of(arms: Arms) -> Tuning | None:
    """The suite's tuning; None where it tunes nothing."""
    suite: Suite = arms.suite
    return None if suite.tune is None else Tuning(arms, suite.tune)


def last_validation(folder: Path) -> float | None:
    """The accuracy of a finished train stage's last validation; None where it did not validate."""
    rows = read_json_lines(folder / "validation.jsonl")
    return float(rows[-1]["accuracy"]) if rows else None


def _kept(path: Path) -> dict[str, Any]:
    """What the file holds, by suite; of each "diverged": folder -> what its training said."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError):
        raise StageError(f"{path} is damaged; delete it and run the same command again") from None
