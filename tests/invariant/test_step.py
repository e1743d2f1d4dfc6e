"""The optimiser step: the same gradient however it is split, and no signal out of noise."""

from __future__ import annotations

import pytest
import torch

from masters.errors import NonFiniteLossError
from masters.teachers.masked import MaskedTeacher
from masters.training.groups import Group, Response
from masters.training.objective import GrpoTerm, JsdTerm, RewardSettings, StepSums
from masters.training.step import StepSettings, accumulate
from masters.training.student import Student

from .conftest import Tiny, make_groups

TERMS = (GrpoTerm(kl=0.1), JsdTerm())


def gradient(
    student: Tiny,
    teacher: Tiny,
    parts: list[list[Group]],
    *,
    micro_batch: int,
    questions: int,
    precision: torch.dtype = torch.float32,
    terms=TERMS,  # noqa: ANN001
) -> tuple[dict[str, torch.Tensor], StepSums]:
    """Gradient summed over the parts (ranks) of a step."""
    module = Student(student.model, precision=precision)
    module.zero_grad(set_to_none=True)
    settings = StepSettings(
        terms=terms, rewards=RewardSettings(), beta=0.5, temperature=1.0, clip_norm=1.0,
        micro_batch=micro_batch, vocabulary=student.ids.vocabulary,
    )  # fmt: skip
    sums = StepSums()
    masked = MaskedTeacher(teacher.model, teacher.folder, None)
    for groups in parts:
        accumulate(
            module,
            masked,
            groups,
            ids=student.ids,
            settings=settings,
            questions=questions,
            sums=sums,
        )
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}, sums


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest difference relative to the largest gradient."""
    assert a.keys() == b.keys()
    scale = max(g.abs().max() for g in a.values())
    return max(((a[n] - b[n]).abs().max() / scale).item() for n in a)


def as_float64(*models: Tiny) -> None:
    for tiny in models:
        tiny.model.double()
        for prompt in tiny.prompts:
            prompt.images["pixel_values"] = prompt.images["pixel_values"].double()


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_accumulation_changes_nothing(student: Tiny, teacher: Tiny, micro_batch: int) -> None:
    as_float64(student, teacher)
    groups = make_groups(student, teacher)
    whole, sums = gradient(student, teacher, [groups], micro_batch=8, questions=8)
    split, again = gradient(student, teacher, [groups], micro_batch=micro_batch, questions=8)
    # transformers casts norms and rotary tables to float32 inside, hence not 1e-12.
    assert distance(whole, split) < 1e-6
    assert sums.loss["total"] == pytest.approx(again.loss["total"], rel=1e-6)
    assert sums.squared_norm == pytest.approx(again.squared_norm, rel=1e-5)


def test_ranks_change_nothing(student: Tiny, teacher: Tiny) -> None:
    as_float64(student, teacher)
    groups = make_groups(student, teacher)
    whole, _ = gradient(student, teacher, [groups], micro_batch=8, questions=8)
    ranks, _ = gradient(student, teacher, [groups[::2], groups[1::2]], micro_batch=2, questions=8)
    assert distance(whole, ranks) < 1e-6


def test_normalising_by_the_micro_batch_would_be_seen(student: Tiny, teacher: Tiny) -> None:
    as_float64(student, teacher)
    groups = make_groups(student, teacher)
    whole, _ = gradient(student, teacher, [groups], micro_batch=8, questions=8)
    # The public trainers' bug: each part of 5 and 3 questions averaged by itself, then both.
    first, _ = gradient(student, teacher, [groups[:5]], micro_batch=5, questions=5)
    first = {n: g.clone() for n, g in first.items()}
    second, _ = gradient(student, teacher, [groups[5:]], micro_batch=3, questions=3)
    wrong = {n: (first[n] + second[n]) / 2 for n in first}
    assert distance(whole, wrong) > 1e-2


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_eight_identical_responses_give_no_advantage(
    student: Tiny, teacher: Tiny, precision: torch.dtype, micro_batch: int
) -> None:
    groups = []
    for group in make_groups(student, teacher):
        same = group.responses[1]
        copies = [
            Response(token_ids=same.token_ids, source=s, accuracy=1.0, reference=None)
            for s in ("teacher",) * 4 + ("student",) * 4
        ]
        groups.append(
            Group(
                question_id=group.question_id,
                student_prompt=group.student_prompt,
                teacher_prompt=group.teacher_prompt,
                responses=tuple(copies),
            )
        )
    grads, sums = gradient(
        student, teacher, [groups], micro_batch=micro_batch, questions=8,
        precision=precision, terms=(GrpoTerm(kl=0.0),),
    )  # fmt: skip
    assert sums.silent_groups == sums.groups == 8
    assert all(not g.any() for g in grads.values())


def test_the_policy_term_is_zero_in_value_and_not_in_gradient(student: Tiny, teacher: Tiny) -> None:
    groups = make_groups(student, teacher)
    grads, sums = gradient(
        student, teacher, [groups], micro_batch=8, questions=8, terms=(GrpoTerm(kl=0.0),)
    )
    assert abs(sums.loss["policy"]) < 1e-6
    assert max(g.abs().max() for g in grads.values()) > 1e-3


def test_kl_is_zero_when_the_reference_is_the_student(student: Tiny, teacher: Tiny) -> None:
    from masters.training.groups import make_rows
    from masters.training.token_scores import ScoreSettings

    groups = make_groups(student, teacher)
    module = Student(student.model)
    own = []
    for group in groups:
        rows = make_rows([group])
        inputs, columns = rows.inputs(teacher=False, pad=student.ids.pad, device="cpu")
        with torch.no_grad():
            _, logp = module(
                inputs, rows.row_N, columns, rows.targets_N, None, None,
                ScoreSettings(vocabulary=student.ids.vocabulary),
            )  # fmt: skip
        spans = [rows.spans[u] for u in rows.row_of[0]]
        responses = tuple(
            Response(
                token_ids=r.token_ids, source=r.source, accuracy=r.accuracy,
                reference=tuple(logp[a:b].tolist()),
            )
            for r, (a, b) in zip(group.responses, spans, strict=True)
        )  # fmt: skip
        own.append(
            Group(
                question_id=group.question_id,
                student_prompt=group.student_prompt,
                teacher_prompt=group.teacher_prompt,
                responses=responses,
            )
        )
    _, sums = gradient(student, teacher, [own], micro_batch=8, questions=8)
    assert sums.loss["kl"] < 1e-9


def test_a_non_finite_loss_names_the_questions(student: Tiny, teacher: Tiny) -> None:
    groups = make_groups(student, teacher)
    with torch.no_grad():
        student.model.get_output_embeddings().weight[200, 0] = torch.nan
    with pytest.raises(NonFiniteLossError, match=r"nan on questions q0, q1;.*expected a finite"):
        gradient(student, teacher, [groups], micro_batch=2, questions=8)


def test_duplicates_share_one_row(student: Tiny, teacher: Tiny) -> None:
    from masters.training.groups import make_rows

    groups = make_groups(student, teacher)
    rows = make_rows(groups)
    assert all(row_of[0] == row_of[-1] for row_of in rows.row_of)
    assert len(rows.spans) < sum(len(g.responses) for g in groups)
