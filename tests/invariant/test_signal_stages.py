"""Runs whose teacher signal is stored first: the same as live ones, bounded, killed and resumed."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from masters.artifacts import StageContext
from masters.data.tables import shard_name
from masters.dispatch import dispatch_stage
from masters.errors import StageError
from masters.plan import Plan, Stage, read_plan
from masters.sizes import plan_sizes
from masters.specs import SignalSpec
from masters.stages import opening
from masters.training.feed import Prepared
from masters.training.groups import Group, make_rows
from masters.training.stored_signal import (
    StepSignal,
    StoredSignal,
    load_manifest,
    save_manifest,
)
from masters.training.student import Student
from masters.workers import Task
from tests.invariant.killing import Job, Moment, Nursery
from tests.invariant.test_resume import Reference, kill_and_go_on
from tests.running import SMALL, folders, lines, read, succeeds

TINY = ("masters", "--profile", "tiny", "--out")


@pytest.fixture(scope="module")
def out(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run with the live teacher, in which signals are stored and trained on."""
    folder = tmp_path_factory.mktemp("signals") / "out"
    shutil.copytree(whole, folder)
    return folder


def trained(out: Path, *sets: str) -> tuple[dict[str, Path], Plan]:
    succeeds("train", *TINY, str(out), sets=[*SMALL, *sets])
    return folders(out), read_plan(out / "masters.plan.json")


@pytest.fixture(scope="module")
def hidden(out: Path) -> tuple[dict[str, Path], Plan]:
    return trained(out, "method.signal=hidden")


@pytest.fixture(scope="module")
def topk(out: Path) -> tuple[dict[str, Path], Plan]:
    return trained(out, "method.signal=topk", "method.signal_k=64")


def numbers(folder: Path) -> list[dict[str, float]]:
    rows = lines(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def test_a_run_with_hidden_states_is_the_live_run(
    whole: Path, hidden: tuple[dict[str, Path], Plan]
) -> None:
    live, stored = folders(whole)["train/0-teacher"], hidden[0]["train/0-teacher"]
    assert live.name != stored.name
    for a, b in zip(numbers(live), numbers(stored), strict=True):
        assert a == pytest.approx(b, abs=1e-5, rel=1e-4)
    assert lines(live / "validation.jsonl") == lines(stored / "validation.jsonl")


def test_a_run_with_topk_logs_its_bound(
    whole: Path, topk: tuple[dict[str, Path], Plan], hidden: tuple[dict[str, Path], Plan]
) -> None:
    stages, _ = topk
    live = numbers(folders(whole)["train/0-teacher"])
    stored = numbers(stages["train/0-teacher"])
    assert 0 < live[0]["loss/jsd"] - stored[0]["loss/jsd"] <= stored[0]["signal/topk_bound_max"]
    assert all(0 < row["signal/topk_bound"] <= row["signal/topk_bound_max"] for row in stored)
    record = read(stages["signal/0-teacher"] / "record.json")["metrics"]
    # 64 logits and ids of 4 bytes and the rest; headers beside them.
    assert 516 <= record["bytes_per_token"] < 530
    manifest = load_manifest(stages["signal/0-teacher"])
    assert (manifest.kind, manifest.k, manifest.temperature) == ("topk", 64, 1.0)
    assert manifest.ratios == (0, 1500, 3000, 4500, 6000)
    exact = read(hidden[0]["signal/0-teacher"] / "record.json")["metrics"]
    for size, found in ((plan_sizes(topk[1]), record), (plan_sizes(hidden[1]), exact)):
        (planned,) = size.signals
        assert planned.bytes_per_token <= found["bytes_per_token"] < planned.bytes_per_token + 14
        assert found["tokens"] <= planned.tokens and found["bytes"] < planned.disk_bytes
    assert exact["sequences"] == record["sequences"] and exact["tokens"] == record["tokens"]


def context(plan: Plan, stage: Stage, folder: Path) -> StageContext:
    folder.mkdir(parents=True, exist_ok=True)
    return StageContext(
        folder=folder,
        inputs={role: plan.by_name[name].folder for role, name in stage.inputs.items()},
        runtime=plan.recipe.runtime,
        progress=lambda done, total, note: None,
    )


@pytest.mark.slow
def test_the_bound_of_topk_holds_for_every_token_of_a_run(
    topk: tuple[dict[str, Path], Plan],
    hidden: tuple[dict[str, Path], Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run again, each of its tokens compared with the whole teacher as the student stands."""
    stages, plan = topk
    exact = StoredSignal(hidden[0]["signal/0-teacher"])
    read, tokens = StoredSignal.read, StepSignal.tokens
    forward: Any = Student.forward
    whole_ones: dict[StepSignal, StepSignal] = {}
    now: list[Any] = []
    missing, bounds = [], []

    def reading(self: StoredSignal, groups: list[Group], ratio: int) -> StepSignal:
        found = read(self, groups, ratio)
        whole_ones[found] = read(exact, groups, ratio)
        return found

    def asking(self: StepSignal, rows: Any, home: torch.device) -> Any:
        now[:] = [tokens(whole_ones[self], rows, home)]
        return tokens(self, rows, home)

    def scoring(self: Student, *args: Any) -> Any:
        found = forward(self, *args)
        if args[4:6] != (None, None) or len(args) < 8:  # the first use compares with no teacher
            return found
        *asked, _, _, settings, top = args
        with torch.no_grad():
            known = now[0].states_ND, now[0].head_VD
            jsd_N = forward(self, *asked, *known, replace(settings))[0]
        missing.append(jsd_N - found[0].detach())
        bounds.append(top.bound_N)
        return found

    monkeypatch.setattr(StoredSignal, "read", reading)
    monkeypatch.setattr(StepSignal, "tokens", asking)
    monkeypatch.setattr(Student, "forward", scoring)
    stage = plan.stage("train/0-teacher")
    given = context(plan, stage, tmp_path / "train")
    dispatch_stage(stage.spec, given)
    logged = numbers(given.folder)
    assert logged == numbers(stages["train/0-teacher"])
    missing_N, bound_N = torch.cat(missing), torch.cat(bounds)
    assert (missing_N > -1e-6).all() and (missing_N <= bound_N + 1e-6).all()
    assert missing_N.max() > 1e-3, "or the bound says nothing"
    assert bound_N.max().item() == pytest.approx(
        max(row["signal/topk_bound_max"] for row in logged)
    )


def test_the_trainer_opens_no_teacher(
    hidden: tuple[dict[str, Path], Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages, plan = hidden
    opened: list[str] = []
    load = opening.load_model

    def watched(path: str, **options: Any) -> Any:
        opened.append(path)
        return load(path, **options)

    monkeypatch.setattr(opening, "load_model", watched)
    stage = plan.stage("train/0-teacher")
    # Nothing of the teacher but its record is there: no weights, no configuration, no tokenizer.
    given = context(plan, stage, tmp_path / "train")
    bare = tmp_path / "teacher"
    bare.mkdir()
    shutil.copy(given.inputs["teacher"] / "record.json", bare)
    given = replace(given, inputs={**given.inputs, "teacher": bare})
    dispatch_stage(stage.spec, given)
    assert opened == [str(stages["model/student"] / "model")]
    assert numbers(given.folder) == numbers(stages["train/0-teacher"])


@pytest.mark.parametrize("workers", [0, 3])
def test_threads_read_ahead_what_the_step_asks_for(
    workers: int,
    hidden: tuple[dict[str, Path], Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stages, plan = hidden
    readers: list[bool] = []
    sizes: list[int] = []
    read = StoredSignal.read

    def watched(self: StoredSignal, groups: list[Group], ratio: int) -> StepSignal:
        found = read(self, groups, ratio)
        readers.append(threading.current_thread() is threading.main_thread())
        tokens = sum(len(ids) for _, ids in make_rows(groups).sequences())
        assert found.size == 4 * tokens * self.manifest.width
        sizes.append(found.size)
        prepared = Prepared(groups=groups, dropped=0, signal=found)
        assert prepared.size == found.size + replace(prepared, signal=None).size
        return found

    monkeypatch.setattr(StoredSignal, "read", watched)
    stage = plan.stage("train/0-teacher")
    given = context(plan, stage, tmp_path / "train")
    runtime = given.runtime.model_copy(update={"workers": workers})
    dispatch_stage(stage.spec, replace(given, runtime=runtime))
    # In the loop's thread only where there is no other; never by the step itself.
    assert set(readers) == {workers == 0} and len(readers) == len(numbers(given.folder))
    assert min(sizes) > 0
    reference = stages["train/0-teacher"]
    assert numbers(given.folder) == numbers(reference)
    weights = Path("model") / "model.safetensors"
    assert (given.folder / weights).read_bytes() == (reference / weights).read_bytes()
    logged = [row["time/signal_seconds"] for row in lines(given.folder / "metrics.jsonl")]
    steps = [row["time/step_seconds"] for row in lines(given.folder / "metrics.jsonl")]
    assert all(0 < of < whole for of, whole in zip(logged, steps, strict=True))


@pytest.mark.parametrize("batch", [3, 96])
def test_threads_encode_what_the_teacher_reads(
    batch: int, hidden: tuple[dict[str, Path], Plan], tmp_path: Path
) -> None:
    """Their number moves no bit, whole shards are not encoded again, and waiting is logged."""
    stage = hidden[1].stage("signal/0-teacher")
    assert isinstance(stage.spec, SignalSpec)
    spec = stage.spec.model_copy(update={"shard_questions": 20})
    stored: list[dict[str, bytes]] = []
    for workers in (0, 3):
        given = context(hidden[1], stage, tmp_path / str(workers))
        update = {"workers": workers, "micro_batch_questions": batch}
        given = replace(given, runtime=given.runtime.model_copy(update=update))
        metrics = dispatch_stage(spec, given)
        assert metrics["seconds_waiting"] >= 0 and (workers or metrics["seconds_waiting"] > 0)
        if workers:
            (given.folder / "index" / shard_name(1)).unlink()
            dispatch_stage(spec, given)
        files = [*given.folder.glob("tokens/*"), *given.folder.glob("index/*")]
        stored.append({path.name: path.read_bytes() for path in files})
    assert stored[0] == stored[1] and len(stored[0]) == 10


REFUSED = {
    "teacher": ("other", "has teacher 'other'; expected "),
    "thresholds": (None, "has thresholds None; expected "),
    "precision": ("bf16", "has precision 'bf16'; expected 'fp32'"),
    "kind": ("topk", "has kind 'topk'; expected 'hidden'"),
    "ratios": ((0, 1500), "has no masking ratio 3000/10000, only"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_the_signal_of_another_teacher_or_mask_is_refused(
    key: str, hidden: tuple[dict[str, Path], Plan], tmp_path: Path
) -> None:
    stages, plan = hidden
    stage = plan.stage("train/0-teacher")
    signal = tmp_path / "signal"
    shutil.copytree(stages["signal/0-teacher"], signal)
    value, says = REFUSED[key]
    save_manifest(signal, replace(load_manifest(signal), **{key: value}))
    given = context(plan, stage, tmp_path / "train")
    given = replace(given, inputs={**given.inputs, "signal": signal})
    with pytest.raises(StageError, match="stored teacher signal") as caught:
        dispatch_stage(stage.spec, given)
    assert says in str(caught.value) and "Run the signal stage" in str(caught.value)


# ----------------------------------------------------------------------------------------- killed


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    started = Nursery()
    yield started
    started.close()


@pytest.fixture(scope="module")
def reference(
    hidden: tuple[dict[str, Path], Plan],
    nursery: Nursery,
    tmp_path_factory: pytest.TempPathFactory,
) -> Reference:
    """The signal stage run once without interruption, in eight shards."""
    plan, folder = hidden[1], tmp_path_factory.mktemp("killed")
    stage = plan.stage("signal/0-teacher")
    assert isinstance(stage.spec, SignalSpec)
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
    assert outcome.status == 0 and outcome.calls["shard"] == 8
    return Reference(task=task, folder=task.folder, outcome=outcome)


@pytest.mark.parametrize(
    "moment",
    [
        Moment(event="signal", call=4, torn=True),
        Moment(event="shard", call=3),
        Moment(event="shard", call=5, torn=True),
        Moment(event="replace", call=4),
    ],
    ids=str,
)
def test_a_killed_signal_goes_on_at_its_last_whole_shard(
    moment: Moment, reference: Reference, nursery: Nursery, tmp_path: Path
) -> None:
    assert reference.outcome.calls[moment.event] >= moment.call
    kill_and_go_on(reference, nursery, tmp_path, [moment])
