"""`kill -9` at any moment of any stage: the next run goes on and ends bit-identical."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from masters.plan import read_plan
from masters.specs import GenerateSpec, TrainSpec
from masters.workers import Task
from tests.invariant.killing import EVENTS, SHARD, Job, Moment, Nursery, Outcome, differences

EVERY = 2  # runtime.checkpoint_every of SMALL
STAGES = {
    "sft": "model/student",
    "mask": "mask/teacher",
    "generate-teacher": "generate/0-teacher/teacher",
    "generate-student": "generate/0-teacher/student",
    "judge": "judge/0-teacher/teacher",
    "score": "score/0-teacher/teacher",
    "masters": "train/0-teacher",
    "evaluate-teacher": "evaluate/teacher-teacher",
    "evaluate-student": "evaluate/student",
}
TARGETS = {
    "sft": (
        Moment(event="checkpoint", call=2, torn=True),
        Moment(event="rename", call=3),
    ),
    "mask": (Moment(event="fsync", call=1),),
    "generate-teacher": (Moment(event="shard", call=3, torn=True),),
    "generate-student": (Moment(event="replace", call=2),),
    "judge": (Moment(event="replace", call=3),),
    "score": (Moment(event="shard", call=2, torn=True),),
    "masters": (
        Moment(event="step", call=4, torn=True),
        Moment(event="export", call=2, torn=True),
    ),
    "evaluate-teacher": (Moment(event="shard", call=5, torn=True),),
    "evaluate-student": (Moment(event="replace", call=4),),
}


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    started = Nursery()
    yield started
    started.close()


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A stage that was never interrupted: its task, its output, how it went."""

    task: Task
    folder: Path
    outcome: Outcome


class References:
    """Each stage run once without interruption, in several shards, on the inputs of ``whole``."""

    def __init__(self, whole: Path, folder: Path, nursery: Nursery) -> None:
        self._folder, self._nursery = folder, nursery
        self._plan = read_plan(whole / "masters.plan.json")
        self._found: dict[str, Reference] = {}

    def __call__(self, key: str) -> Reference:
        if key not in self._found:
            task = self._task(key)
            outcome = self._nursery.run(Job(task=task, log=self._folder / f"{key}.log"))
            assert outcome.status == 0
            self._found[key] = Reference(task=task, folder=task.folder, outcome=outcome)
        return self._found[key]

    def _task(self, key: str) -> Task:
        stage = self._plan.stage(STAGES[key])
        spec = stage.spec
        if isinstance(spec, GenerateSpec):
            spec = spec.model_copy(update={"shard_questions": SHARD})
        inputs = {role: self._plan.by_name[name].folder for role, name in stage.inputs.items()}
        if key in ("judge", "score"):
            inputs["responses"] = self("generate-teacher").folder
        return Task(
            name=key,
            spec=spec,
            fingerprint=stage.fingerprint,
            folder=self._folder / key,
            inputs=inputs,
            input_fingerprints=dict.fromkeys(inputs, ""),
            runtime=self._plan.recipe.runtime,
        )


@pytest.fixture(scope="module")
def references(
    whole: Path, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory
) -> References:
    return References(whole, tmp_path_factory.mktemp("references"), nursery)


def kill_and_go_on(
    reference: Reference, nursery: Nursery, folder: Path, moments: list[Moment]
) -> None:
    """Kills the stage at each of the moments in turn, then lets it end, and compares."""
    task = replace(reference.task, folder=folder / "stage")
    log = folder / "log"
    for moment in moments:
        nursery.run(Job(task=task, log=log, moment=moment))
    done = (task.folder / "record.json").exists()
    left = 0 if done else work_left(task, reference)
    outcome = nursery.run(Job(task=task, log=log))
    assert outcome.status == 0
    event = "step" if isinstance(task.spec, TrainSpec) else "shard"
    assert outcome.calls.get(event, 0) == left, f"more was redone than needed ({moments})"
    assert differences(task.folder, reference.folder) == [], moments
    record = json.loads((task.folder / "record.json").read_text())
    whole = json.loads((reference.folder / "record.json").read_text())
    assert record["spec"] == whole["spec"]
    shutil.rmtree(task.folder)


def work_left(task: Task, reference: Reference) -> int:
    """Steps since the last checkpoint, or shards that are not whole, after a kill."""
    if isinstance(task.spec, TrainSpec):
        saved = sorted((task.folder / "checkpoints").glob("step-*"))
        at = int(saved[-1].name.removeprefix("step-")) if saved else 0
        logged = task.folder / "metrics.jsonl"
        steps = len(logged.read_text().splitlines()) if logged.exists() else 0
        assert steps - at <= EVERY
        return task.spec.stop - at
    names = {path.name for path in task.folder.rglob("shard-*.parquet")}
    return reference.outcome.calls.get("shard", 0) - len(names)


@pytest.mark.parametrize("key", STAGES)
def test_a_kill_at_a_chosen_and_at_a_random_moment(
    key: str, references: References, nursery: Nursery, tmp_path: Path
) -> None:
    reference = references(key)
    for moment in TARGETS[key]:
        kill_and_go_on(reference, nursery, tmp_path, [moment])
    share = random.Random(f"quick {key}").uniform(0.3, 0.9)
    kill_and_go_on(reference, nursery, tmp_path, [Moment(after=share * reference.outcome.seconds)])


def test_the_targets_are_hit(references: References, nursery: Nursery) -> None:
    for key, moments in TARGETS.items():
        calls = references(key).outcome.calls
        for moment in moments:
            assert calls.get(moment.event, 0) >= moment.call, f"{key} never reaches {moment}"


@pytest.mark.slow
@pytest.mark.parametrize("key", STAGES)
def test_random_moments(key: str, references: References, nursery: Nursery, tmp_path: Path) -> None:
    """Six single kills spread over the stage, then three kills of one run."""
    reference, draw = references(key), random.Random(f"slow {key}")
    shares = [draw.uniform(n / 6, (n + 1) / 6) for n in range(6)]
    for share in shares:
        moment = Moment(after=share * reference.outcome.seconds)
        kill_and_go_on(reference, nursery, tmp_path, [moment])
    again = [Moment(after=draw.uniform(0.3, 1) * reference.outcome.seconds) for _ in range(3)]
    kill_and_go_on(reference, nursery, tmp_path, again)


@pytest.mark.slow
@pytest.mark.parametrize("key", STAGES)
def test_every_write_and_rename(
    key: str, references: References, nursery: Nursery, tmp_path: Path
) -> None:
    """Before every call that changes what lies on disk, and in the middle of every file."""
    reference = references(key)
    calls = reference.outcome.calls
    draw = random.Random(f"writes {key}")
    for event in EVENTS:
        numbers = range(1, calls.get(event, 0) + 1)
        if len(numbers) > 3:
            numbers = sorted({len(numbers), *draw.sample(numbers, 2)})
        for call in numbers:
            moment = Moment(event=event, call=call)
            kill_and_go_on(reference, nursery, tmp_path, [moment])
            if event in ("shard", "optimiser", "checkpoint", "export", "step"):
                kill_and_go_on(reference, nursery, tmp_path, [replace(moment, torn=True)])


def report_job(whole: Path, folder: Path) -> Job:
    """The report over the stages of ``whole``, written into a folder of its own."""
    out = folder / "out"
    if not out.exists():
        out.mkdir()
        (out / "stages").symlink_to(whole / "stages")
        shutil.copy(whole / "masters.plan.json", out)
    return Job(report=out / "masters.plan.json", log=folder / "report.log")


def report_killed(whole: Path, nursery: Nursery, folder: Path, moment: Moment) -> None:
    job = report_job(whole, folder)
    nursery.run(replace(job, moment=moment))
    assert nursery.run(job).status == 0
    report = folder / "out" / "report"
    assert differences(report, whole / "report") == [], moment
    shutil.rmtree(report)


def test_a_killed_report(whole: Path, nursery: Nursery, tmp_path: Path) -> None:
    outcome = nursery.run(report_job(whole, tmp_path))
    shutil.rmtree(tmp_path / "out" / "report")
    for back in (0, 1):
        moment = Moment(event="replace", call=outcome.calls["replace"] - back)
        report_killed(whole, nursery, tmp_path, moment)


@pytest.mark.slow
def test_a_report_killed_at_random_moments(whole: Path, nursery: Nursery, tmp_path: Path) -> None:
    outcome, draw = nursery.run(report_job(whole, tmp_path)), random.Random("report")
    shutil.rmtree(tmp_path / "out" / "report")
    for call in range(1, outcome.calls["replace"] + 1):
        report_killed(whole, nursery, tmp_path, Moment(event="replace", call=call))
    for _ in range(4):
        moment = Moment(after=draw.uniform(0.1, 1) * outcome.seconds)
        report_killed(whole, nursery, tmp_path, moment)
