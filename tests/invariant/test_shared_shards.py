"""Several workers make a stage's shards, are killed and started again: as if one had made them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from masters.plan import make_plan
from masters.recipe import load_recipe
from masters.shares import Share
from masters.workers import Task
from tests.invariant.killing import Job, Moment, Nursery, Outcome, differences
from tests.invariant.test_resume import Reference, References
from tests.running import SMALL

KEYS = ("generate-teacher", "judge", "score", "evaluate-teacher")


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    started = Nursery()
    yield started
    started.close()


@pytest.fixture(scope="module")
def references(
    whole: Path, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory
) -> References:
    return References(whole, tmp_path_factory.mktemp("references"), nursery)


@pytest.fixture(scope="module")
def signal(whole: Path, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """The signal stage of the same run, had its recipe stored one, in eight shards."""
    folder = tmp_path_factory.mktemp("signal")
    plan = make_plan(load_recipe("masters", "tiny", [*SMALL, "method.signal=hidden"]), whole)
    stage = plan.stage("signal/0-teacher")
    inputs = {role: plan.by_name[name].folder for role, name in stage.inputs.items()}
    task = Task(
        name="signal",
        spec=stage.spec.model_copy(update={"shard_questions": 12}),
        fingerprint=stage.fingerprint,
        folder=folder / "signal",
        inputs=inputs,
        input_fingerprints=dict.fromkeys(inputs, ""),
        runtime=plan.recipe.runtime,
    )
    outcome = nursery.run(Job(task=task, log=folder / "signal.log"))
    assert outcome.calls["shard"] == 8
    return Reference(task=task, folder=task.folder, outcome=outcome)


class Crew:
    """Workers on one stage in a folder of its own."""

    def __init__(self, reference: Reference, nursery: Nursery, folder: Path) -> None:
        self.task: Task = replace(reference.task, folder=folder / "stage")
        self.reference, self._nursery, self._logs = reference, nursery, folder

    def work(
        self, *shares: tuple[int, int], killed: dict[int, Moment] | None = None
    ) -> list[Outcome]:
        """Workers (index, count) at the same time; ``killed``: place -> when."""
        jobs = [
            Job(
                task=replace(self.task, share=Share(index=index, count=count)),
                log=self._logs / f"{place}.log",
                moment=(killed or {}).get(place),
            )
            for place, (index, count) in enumerate(shares)
        ]
        return self._nursery.run_together(jobs)

    @property
    def done(self) -> bool:
        return (self.task.folder / "record.json").exists()

    def shards(self) -> dict[str, tuple[int, int]]:
        """Every whole shard with what changes when it is written again."""
        paths = self.task.folder.rglob("shard-*.parquet")
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}

    def check(self) -> None:
        """It is done, and each file is that of one process."""
        assert self.done
        assert differences(self.task.folder, self.reference.folder) == []
        record, one = (
            json.loads((folder / "record.json").read_text())["metrics"]
            for folder in (self.task.folder, self.reference.folder)
        )
        del record["workers"]
        for metrics in (record, one):
            metrics.pop("seconds_waiting", None)
        assert record == one


@pytest.fixture
def crew(
    request: pytest.FixtureRequest, references: References, nursery: Nursery, tmp_path: Path
) -> Crew:
    return Crew(references(request.param), nursery, tmp_path)


def made(outcomes: Sequence[Outcome]) -> int:
    return sum(outcome.calls.get("shard", 0) for outcome in outcomes)


@pytest.mark.parametrize("crew", KEYS, indirect=True)
def test_one_of_four_is_killed_in_the_middle_of_a_shard(crew: Crew) -> None:
    total = crew.reference.outcome.calls["shard"]
    four = [(index, 4) for index in range(4)]
    first = crew.work(*four, killed={1: Moment(event="shard", call=2, torn=True)})
    assert [outcome.status for outcome in first] == [0, -9, 0, 0]
    assert not crew.done
    names = sorted(path.name for path in crew.reference.folder.rglob("shard-*.parquet"))
    kept = crew.shards()
    assert sorted(kept) == [name for n, name in enumerate(names) if n % 4 != 1 or n == 1]
    assert len(list(crew.task.folder.rglob(".shard-*.partial"))) == 1, "half of a shard is left"
    again = crew.work((1, 4))
    assert made(again) == total - len(kept) > 0, "the lost shards and no other"
    crew.check()
    assert {name: crew.shards()[name] for name in kept} == kept, "the rest was kept"


@pytest.mark.parametrize("crew", ["generate-teacher"], indirect=True)
def test_another_number_of_workers_goes_on(crew: Crew) -> None:
    four = [(index, 4) for index in range(4)]
    moment = Moment(event="shard", call=2, torn=True)
    crew.work(*four, killed={0: moment, 2: moment, 3: moment})
    kept = crew.shards()
    again = crew.work((0, 3), (1, 3), (2, 3))
    assert made(again) == crew.reference.outcome.calls["shard"] - len(kept)
    crew.check()
    assert {name: crew.shards()[name] for name in kept} == kept


@pytest.mark.parametrize("crew", ["generate-teacher", "evaluate-teacher"], indirect=True)
def test_the_same_worker_twice_and_other_counts_at_once(crew: Crew) -> None:
    """No shard has two writers, whoever was started how often."""
    outcomes = crew.work((0, 2), (0, 2), (1, 2), (0, 3), (2, 3))
    assert made(outcomes) == crew.reference.outcome.calls["shard"]
    crew.check()


@pytest.mark.parametrize("crew", ["generate-teacher"], indirect=True)
def test_what_others_left_half_written_is_passed_over(crew: Crew) -> None:
    folder = crew.task.folder / "responses"
    folder.mkdir(parents=True)
    for name in (".shard-00001.parquet.0a0b.partial", ".shard-00002.parquet.partial"):
        (folder / name).write_bytes(b"PAR1 half a shard")
    crew.work((0, 2), (1, 2))
    crew.check()
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("crew", ["generate-teacher", "judge"], indirect=True)
def test_killed_between_the_last_shard_and_the_record(crew: Crew) -> None:
    """Whoever comes next finds every shard there and finishes the stage without making any."""
    crew.work((1, 2))
    own = (crew.reference.outcome.calls["shard"] + 1) // 2
    first = crew.work((0, 2), killed={0: Moment(event="replace", call=own + 1)})
    assert first[0].status == -9 and not crew.done
    assert len(crew.shards()) == crew.reference.outcome.calls["shard"]
    again = crew.work((1, 2))
    assert made(again) == 0
    crew.check()


def test_a_stored_signal_is_shared_too(signal: Reference, nursery: Nursery, tmp_path: Path) -> None:
    crew = Crew(signal, nursery, tmp_path)
    three = [(index, 3) for index in range(3)]
    crew.work(*three, killed={1: Moment(event="signal", call=2, torn=True)})
    assert not crew.done
    kept = crew.shards()
    again = crew.work((1, 3))
    assert made(again) == 8 - len(kept)
    assert crew.done
    # How its first batch looked is each worker's own; what is stored is not.
    apart = differences(crew.task.folder, signal.folder)
    assert [name for name in apart if name != "first_use.json"] == []


@pytest.mark.parametrize("crew", ["generate-teacher"], indirect=True)
def test_one_process_goes_on_alone_after_several(crew: Crew) -> None:
    crew.work((0, 3))
    kept = crew.shards()
    alone = crew.work((0, 1))
    assert made(alone) == crew.reference.outcome.calls["shard"] - len(kept)
    assert crew.done and differences(crew.task.folder, crew.reference.folder) == []
