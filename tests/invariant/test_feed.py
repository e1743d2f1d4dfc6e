"""The input path: made ahead by threads, in order, within its bytes, whatever their number."""

from __future__ import annotations

import copy
import json
import random
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from masters.artifacts import StageContext
from masters.data.scenes import SceneQuestions
from masters.data.tables import RESPONSES, SCORES, list_shards, read_shard, write_shard
from masters.dispatch import dispatch_stage
from masters.plan import Plan, read_plan
from masters.read_ahead import ReadAhead
from masters.recipe import Prompt
from masters.stages.opening import Prompts
from masters.workers import Task
from tests.invariant.killing import Job, Moment, Nursery, differences

from .conftest import Tiny

STAGES = {
    "train": "train/0-teacher",
    "generate": "generate/0-teacher/teacher",
    "score": "score/0-teacher/teacher",
    "evaluate": "evaluate/student",
}


def shaken(number: int) -> int:
    time.sleep(random.Random(number).uniform(0, 0.01))
    return number * number


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_results_come_in_order(workers: int) -> None:
    with ReadAhead(shaken, range(60), workers=workers) as ahead:
        assert [ahead.take(n) for n in range(60)] == [n * n for n in range(60)]
    assert ahead.seconds_waiting > 0


@pytest.mark.parametrize("workers", [1, 4])
def test_it_reads_ahead_but_holds_no_more_than_its_room(workers: int) -> None:
    """Made and not taken: as many as fit, while the taker is busy; the first sizes are unknown."""
    lock = threading.Lock()
    made: list[int] = []

    def make(number: int) -> int:
        with lock:
            made.append(number)
        return number

    with ReadAhead(make, range(100), workers=workers, size=lambda n: 10, room=60) as ahead:
        for number in range(100):
            ahead.take(number)
            wanted = min(100, number + 1 + 6)
            deadline = time.monotonic() + 5
            while len(made) < wanted and time.monotonic() < deadline:
                time.sleep(0.001)
            assert len(made) == wanted
    assert sorted(made) == list(range(100))


def test_a_result_larger_than_the_room_passes() -> None:
    with ReadAhead(shaken, range(5), workers=2, size=lambda n: 1000, room=1) as ahead:
        assert [ahead.take(n) for n in range(5)] == [0, 1, 4, 9, 16]


def broken(number: int) -> int:
    if number == 3:
        raise ValueError("no picture")
    return shaken(number)


def test_an_error_is_raised_where_its_item_is_taken() -> None:
    with ReadAhead(broken, range(9), workers=2) as ahead:
        assert [ahead.take(n) for n in range(3)] == [0, 1, 4]
        with pytest.raises(ValueError, match="no picture"):
            ahead.take(3)
        assert ahead.take(4) == 16


def test_what_was_not_announced_is_refused() -> None:
    def torn() -> Iterator[int]:
        yield 0
        raise OSError("a shard is gone")

    wrong = pytest.raises(ValueError, match="1 was asked for; expected 3")
    with ReadAhead(shaken, [3, 1], workers=1) as ahead, wrong:
        ahead.take(1)
    with ReadAhead(shaken, [3], workers=2) as ahead:
        ahead.take(3)
        with pytest.raises(ValueError, match="expected 'nothing more'"):
            ahead.take(4)
    with ReadAhead(shaken, torn(), workers=2) as ahead:
        ahead.take(0)
        with pytest.raises(OSError, match="a shard is gone"):
            ahead.take(1)


def test_closing_ends_the_threads() -> None:
    before = threading.active_count()
    with ReadAhead(shaken, range(10**9), workers=3):
        assert threading.active_count() == before + 3
    assert threading.active_count() == before


class Meeting:
    """A processor whose calls return only when two threads are in it, each in its own copy."""

    def __init__(self, processor: Any, barrier: threading.Barrier) -> None:
        self._processor, self._barrier = processor, barrier
        self.tokenizer = processor.tokenizer
        self.inside = 0

    def __deepcopy__(self, memo: Any) -> Meeting:
        return Meeting(copy.deepcopy(self._processor), self._barrier)

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        return self._processor.apply_chat_template(*args, **kwargs)

    def __call__(self, **inputs: Any) -> Any:
        self.inside += 1
        assert self.inside == 1, "one processor, two threads"
        self._barrier.wait(timeout=20)
        try:
            return self._processor(**inputs)
        finally:
            self.inside -= 1


def test_questions_are_encoded_at_the_same_time(student: Tiny) -> None:
    questions = SceneQuestions(count=8, seed=5)
    meeting = Meeting(student.processor, threading.Barrier(2))
    prompts = Prompts(questions, meeting, Prompt(suffix=None))
    with prompts.ahead(range(8), workers=2) as ahead:
        for index, expected in enumerate(student.prompts):
            found = ahead(index)
            assert found.ids == expected.ids
            for name, value in expected.images.items():
                assert torch.equal(found.images[name], value)


def test_prompts_keep_what_fits(student: Tiny) -> None:
    """The first ones: the next epoch's order is another."""
    made: list[int] = []

    class Counted(SceneQuestions):
        def open_images(self, question: Any) -> Any:
            made.append(self.find(question.id))
            return super().open_images(question)

    questions = Counted(count=6, seed=5)
    prompts = Prompts(questions, student.processor, Prompt(suffix=None))
    size = prompts(0).size
    prompts = Prompts(questions, student.processor, Prompt(suffix=None), cache=2 * size + size // 2)
    made.clear()
    for index in (0, 1, 2, 2, 0, 1):
        prompts(index)
    assert made == [0, 1, 2, 2]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    started = Nursery()
    yield started
    started.close()


@dataclass
class Stages:
    """Stages of a finished run, done once more under other runtime settings."""

    plan: Plan
    folder: Path
    nursery: Nursery

    def task(self, kind: str, name: str, **runtime: Any) -> Task:
        stage = self.plan.stage(STAGES[kind])
        inputs = {role: self.plan.by_name[n].folder for role, n in stage.inputs.items()}
        spec: Any = stage.spec
        if kind == "train":
            spec = spec.model_copy(update={"freeze": ("vision",)})
        return Task(
            name=kind,
            spec=spec,
            fingerprint=stage.fingerprint,
            folder=self.folder / name,
            inputs=inputs,
            input_fingerprints=dict.fromkeys(inputs, ""),
            runtime=self.plan.recipe.runtime.model_copy(update=runtime),
        )

    def run(self, kind: str, name: str, **runtime: Any) -> Path:
        task = self.task(kind, name, **runtime)
        outcome = self.nursery.run(Job(task=task, log=self.folder / "log"))
        assert outcome.status == 0
        return task.folder


@pytest.fixture
def stages(whole: Path, nursery: Nursery, tmp_path: Path) -> Stages:
    return Stages(read_plan(whole / "masters.plan.json"), tmp_path, nursery)


@pytest.mark.parametrize("kind", STAGES)
def test_any_number_of_threads_gives_the_same_bits(kind: str, stages: Stages) -> None:
    settings = {"feature_cache_gb": 1} if kind == "train" else {}
    reference = stages.run(kind, "none", workers=0, **settings)
    for workers in (1, 4):
        found = stages.run(kind, f"with-{workers}", workers=workers, **settings)
        assert differences(found, reference) == []
    record = json.loads((found / "record.json").read_text())
    assert record["metrics"]["seconds_waiting"] >= 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_question_none_of_whose_responses_can_be_scored(
    workers: int, whole: Path, tmp_path: Path
) -> None:
    """Threads have encoded it: it is passed over, and the next ones keep their own pictures."""
    plan = read_plan(whole / "masters.plan.json")
    stage = plan.stage("score/0-teacher/student")
    answered = plan.by_name[stage.inputs["responses"]].folder
    shutil.copytree(answered, tmp_path / "answered")
    (path,) = list_shards(tmp_path / "answered" / "responses")
    rows = read_shard(path, RESPONSES).to_pylist()
    lost = rows[8]["question_id"]
    for row in rows:
        if row["question_id"] == lost:
            row["token_ids"] = [10**6] if row["sample"] else []
    path.unlink()
    write_shard(path, rows, RESPONSES)
    given = StageContext(
        folder=tmp_path / "scored",
        inputs={
            **{role: plan.by_name[name].folder for role, name in stage.inputs.items()},
            "responses": tmp_path / "answered",
        },
        runtime=plan.recipe.runtime.model_copy(update={"workers": workers}),
        progress=lambda done, total, note: None,
    )
    given.folder.mkdir()
    own = sum(row["question_id"] == lost for row in rows)
    assert dispatch_stage(stage.spec, given)["responses_without_scores"] == own > 0
    one, other = (
        read_shard(folder / "scores" / path.name, SCORES).to_pylist()
        for folder in (given.folder, plan.by_name["score/0-teacher/student"].folder)
    )
    for mine, reference in zip(one, other, strict=True):
        expected = [] if mine["question_id"] == lost else reference["reference_logprobs"]
        assert mine["reference_logprobs"] == pytest.approx(expected, abs=1e-5)


def test_kept_features_change_a_run_by_rounding(stages: Stages) -> None:
    """Frozen tower, masked teacher: the losses of every step to 1e-5; what was reused is logged."""
    logs = {}
    for room in (0, 1):
        folder = stages.run("train", f"room-{room}", feature_cache_gb=room, workers=2)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        logs[room] = [json.loads(line) for line in lines]
    assert len(logs[0]) == len(logs[1]) > 4
    for without, kept in zip(logs[0], logs[1], strict=True):
        assert kept["loss/total"] == pytest.approx(without["loss/total"], rel=1e-5, abs=1e-5)
    found = json.loads((folder / "record.json").read_text())["metrics"]["features"]
    assert found["student"]["of"] == "projector_inputs" and found["teacher"]["of"] == "features"
    assert found["student"]["misses"] > 0
    steps = [log for log in logs[1] if log["time/mask_bytes_read"] > 0]
    ratios = [log["mask/ratio"] for log in logs[1]]
    falls = sum(after < before for before, after in zip(ratios, ratios[1:], strict=False))
    assert len(steps) == falls > 0 and all(log["time/mask_seconds"] > 0 for log in steps)


@pytest.mark.parametrize("call", [3, 5])
def test_killed_with_threads_and_kept_features(call: int, stages: Stages) -> None:
    """What was kept is lost with the process; the run that goes on ends bit for bit the same."""
    settings: dict[str, Any] = {"feature_cache_gb": 1, "workers": 2}
    reference = stages.run("train", "whole", **settings)
    task = stages.task("train", "killed", **settings)
    moment = Moment(event="step", call=call)
    assert stages.nursery.run(Job(task=task, log=stages.folder / "log", moment=moment)).status < 0
    again = stages.nursery.run(Job(task=replace(task), log=stages.folder / "log"))
    assert again.status == 0
    assert differences(task.folder, reference) == []
