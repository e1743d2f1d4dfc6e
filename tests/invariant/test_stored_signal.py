"""A stored teacher signal trains as the live teacher does, and only what it is of is accepted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from masters.artifacts import StageContext
from masters.errors import ModelError, StageError
from masters.models.encode import pad_rows
from masters.models.output_head import check_head_product
from masters.plan import Plan, Stage, read_plan
from masters.run import dispatch_stage
from masters.specs import SignalSpec
from masters.stages import opening
from masters.teachers.masked import MaskedTeacher
from masters.teachers.measuring import measure_thresholds
from masters.training.group_forward import Form, make_ready
from masters.training.groups import Group, make_rows
from masters.training.objective import GrpoTerm, JsdTerm, RewardSettings, StepSums
from masters.training.step import StepSettings, accumulate, apply_gradient
from masters.training.stored_signal import (
    Manifest,
    StoredSignal,
    load_manifest,
    save_head,
    save_manifest,
    write_signal_shard,
)
from masters.training.student import Student
from masters.training.teacher_signal import teacher_head, teacher_states
from masters.training.topk_scores import top_tokens
from masters.workers import Task
from tests.invariant.killing import Job, Moment, Nursery
from tests.invariant.test_resume import Reference, kill_and_go_on
from tests.running import SMALL, folders, lines, read, succeeds

from .conftest import Tiny, load_tiny, make_groups

CPU = torch.device("cpu")
RATIOS = (9000, 5000)
TINY = ("masters", "--profile", "tiny", "--out")


# ------------------------------------------------------------------- the step, with tiny models


def masked(teacher: Tiny) -> MaskedTeacher:
    return MaskedTeacher(teacher.model, teacher.folder, measure_thresholds(teacher.folder, RATIOS))


def store(
    folder: Path, teacher: MaskedTeacher, student: Tiny, groups: list[Group], form: Form, k: int
) -> StoredSignal:
    """The groups' signal at both ratios, one shard each; k = 0: hidden states."""
    make_ready(teacher.model, form)
    width, common = teacher_head(teacher, CPU).shape[1], student.ids.vocabulary
    manifest = Manifest(
        kind="topk" if k else "hidden", teacher="t", thresholds="m", ratios=RATIOS,
        precision="fp32", common=common, banned=(), width=width, k=k or None,
        temperature=1.0 if k else None,
    )  # fmt: skip
    for shard, ratio in enumerate(RATIOS):
        teacher.set_ratio(ratio)
        rows = make_rows(groups)
        states = teacher_states(teacher, rows, student.ids, torch.float32, CPU, form)
        tensors = {"states": states}
        if k:
            top = top_tokens(states, teacher_head(teacher, CPU), k=k, common=common)
            tensors = {"logits": top.logits_NK, "ids": top.ids_NK, "rest": top.rest_N}
        sequences = [(name, ratio, ids) for name, ids in rows.sequences()]
        write_signal_shard(folder, shard, sequences, tensors)
    save_head(folder, teacher_head(teacher, CPU)[:common])
    save_manifest(folder, manifest)
    return StoredSignal(folder)


def trajectory(
    folder: Path, signal: MaskedTeacher | StoredSignal, groups: list[Group], form: Form, **options
) -> tuple[list[dict[str, float]], list[StepSums], torch.Tensor]:
    """Four steps from the same weights, the ratio falling in between: losses, sums, weights."""
    student = load_tiny(folder)
    module = Student(student.model)
    make_ready(student.model, form)
    if isinstance(signal, MaskedTeacher):
        make_ready(signal.model, form)
    settings = StepSettings(
        terms=(GrpoTerm(kl=0), JsdTerm()), rewards=RewardSettings(), beta=0.5, temperature=1.0,
        clip_norm=1.0, micro_batch=3, vocabulary=student.ids.vocabulary, student_form=form,
        teacher_form=form, **options,
    )  # fmt: skip
    # With the usual epsilon Adam makes steps of noise where a gradient is nothing else.
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-2, eps=1e-3)
    losses, every = [], []
    for ratio in (RATIOS[0], RATIOS[0], RATIOS[1], RATIOS[1]):
        signal.set_ratio(ratio)
        sums = StepSums()
        accumulate(
            module, signal, groups, ids=student.ids, settings=settings, questions=len(groups),
            sums=sums,
        )  # fmt: skip
        apply_gradient(module, optimiser, settings.clip_norm)
        losses.append(dict(sums.loss))
        every.append(sums)
    return losses, every, torch.cat([p.detach().flatten() for p in module.parameters()])


def far(one: torch.Tensor, two: torch.Tensor) -> float:
    return (one - two).abs().max().item()


@pytest.mark.parametrize("form", ["repeat", "mask", "attention"])
@pytest.mark.parametrize("limit", [None, 2])
def test_hidden_states_train_as_the_live_teacher(
    student: Tiny,
    teacher: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: Form,
    limit: int | None,
) -> None:
    groups = make_groups(student, teacher)
    live = masked(teacher)
    stored = store(tmp_path, live, student, groups, form, k=0)
    one = trajectory(student.folder, live, groups, form, micro_batch_responses=limit)
    two = trajectory(student.folder, stored, groups, form, micro_batch_responses=limit)
    for a, b in zip(one[0], two[0], strict=True):
        assert a == pytest.approx(b, abs=1e-6)
    assert far(one[2], two[2]) < 2e-5
    # What another mask's signal would do is far more than that.
    monkeypatch.setattr(
        StoredSignal, "set_ratio", lambda self, ratio: setattr(self, "ratio", RATIOS[0])
    )
    wrong = trajectory(student.folder, stored, groups, form, micro_batch_responses=limit)
    assert far(one[2], wrong[2]) > 1e-3


def test_topk_of_all_tokens_trains_as_the_live_teacher(
    student: Tiny, teacher: Tiny, tmp_path: Path
) -> None:
    groups = make_groups(student, teacher)
    live = masked(teacher)
    stored = store(tmp_path, live, student, groups, "repeat", k=student.ids.vocabulary)
    one = trajectory(student.folder, live, groups, "repeat")
    two = trajectory(student.folder, stored, groups, "repeat")
    for a, b in zip(one[0], two[0], strict=True):
        assert a == pytest.approx(b, abs=1e-6)
    assert far(one[2], two[2]) < 2e-5
    assert all(sums.bounded > 0 and sums.bound_max == 0 for sums in two[1])


@pytest.mark.parametrize("limit", [None, 2])
def test_the_logged_bound_of_topk_holds(
    student: Tiny, teacher: Tiny, tmp_path: Path, limit: int | None
) -> None:
    groups = make_groups(student, teacher)
    live = masked(teacher)
    stored = store(tmp_path, live, student, groups, "mask", k=24)
    one = trajectory(student.folder, live, groups, "mask", micro_batch_responses=limit)
    two = trajectory(student.folder, stored, groups, "mask", micro_batch_responses=limit)
    missing = one[0][0]["jsd"] - two[0][0]["jsd"]
    assert 0 < missing <= two[1][0].bound_max
    tokens = sum(len(ids) for _, ids in make_rows(groups).sequences())
    assert two[1][0].bounded == tokens, "each distinct token is counted once, in pieces too"


def test_what_is_not_stored_is_refused(student: Tiny, teacher: Tiny, tmp_path: Path) -> None:
    groups = make_groups(student, teacher)
    stored = store(tmp_path, masked(teacher), student, groups, "repeat", k=0)
    with pytest.raises(StageError, match=r"has no masking ratio 3000/10000, only \(9000, 5000\)"):
        stored.set_ratio(3000)
    stored.set_ratio(9000)
    other = make_groups(student, teacher, seed=9)
    with pytest.raises(StageError, match=r"no teacher signal for a response of \d+ tokens to q"):
        stored.tokens(make_rows(other), CPU)
    (tmp_path / "tokens" / "shard-00000.safetensors").write_bytes(b"cut")
    with pytest.raises(StageError, match="not a whole part of a stored teacher signal"):
        cut = StoredSignal(tmp_path)
        cut.set_ratio(9000)
        cut.tokens(make_rows(groups), CPU)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(StageError, match="no manifest of a stored teacher signal"):
        StoredSignal(tmp_path)


def test_a_head_that_does_more_than_a_product_is_refused(teacher: Tiny) -> None:
    inputs = pad_rows([(teacher.prompts[0], (100, 101))], pad=0)
    check_head_product(teacher.model, inputs)
    head = teacher.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda *args: 8 * torch.tanh(args[-1] / 8))
    with pytest.raises(ModelError, match="its head does something more"):
        check_head_product(teacher.model, inputs)
    hook.remove()
    check_head_product(teacher.model, inputs)


# --------------------------------------------------------------------- the stages of a whole run


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
    whole: Path, out: Path, hidden: tuple[dict[str, Path], Plan]
) -> None:
    stages, _ = trained(out, "method.signal=topk", "method.signal_k=64")
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
    assert exact["sequences"] == record["sequences"] and exact["tokens"] == record["tokens"]


def context(plan: Plan, stage: Stage, folder: Path) -> StageContext:
    folder.mkdir(parents=True, exist_ok=True)
    return StageContext(
        folder=folder,
        inputs={role: plan.by_name[name].folder for role, name in stage.inputs.items()},
        runtime=plan.recipe.runtime,
        progress=lambda done, total, note: None,
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
