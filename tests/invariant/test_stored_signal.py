"""A stored teacher signal trains as the live teacher does, and only what it is of is accepted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from masters.errors import ModelError, StageError
from masters.models.encode import pad_rows
from masters.models.output_head import check_head_product
from masters.teachers.masked import MaskedTeacher
from masters.teachers.measuring import measure_thresholds
from masters.training.group_forward import Form, make_ready
from masters.training.groups import Group, make_rows
from masters.training.objective import GrpoTerm, JsdTerm, RewardSettings, StepSums
from masters.training.step import StepSettings, accumulate, apply_gradient
from masters.training.stored_signal import (
    Manifest,
    StoredSignal,
    save_head,
    save_manifest,
    write_signal_shard,
)
from masters.training.student import Student
from masters.training.teacher_signal import teacher_head, teacher_states
from masters.training.topk_scores import top_tokens

from .conftest import Tiny, load_tiny, make_groups

CPU = torch.device("cpu")
RATIOS = (9000, 5000)


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
    folder: Path,
    signal: MaskedTeacher | StoredSignal,
    groups: list[Group],
    form: Form,
    *,
    ratios: tuple[int, ...] = RATIOS,
    **options,
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
    for ratio in (ratios[0], ratios[0], ratios[1], ratios[1]):
        if isinstance(signal, MaskedTeacher):
            signal.set_ratio(ratio)
        known = signal if isinstance(signal, MaskedTeacher) else signal.read(groups, ratio)
        sums = StepSums()
        accumulate(
            module, known, groups, ids=student.ids, settings=settings, questions=len(groups),
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
    wrong = trajectory(
        student.folder, stored, groups, form, ratios=(RATIOS[0],) * 2, micro_batch_responses=limit
    )
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
        stored.read(groups, 3000)
    other = make_groups(student, teacher, seed=9)
    with pytest.raises(StageError, match=r"no teacher signal for a response of \d+ tokens to q"):
        stored.read(other, 9000)
    (tmp_path / "tokens" / "shard-00000.safetensors").write_bytes(b"cut")
    with pytest.raises(StageError, match="not a whole part of a stored teacher signal"):
        StoredSignal(tmp_path).read(groups, 9000)
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
