"""One optimiser step: micro-batches forward and backward, reduced once, clipped, applied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from masters.errors import NonFiniteLossError
from masters.models.load import TokenIds
from masters.teachers.masked import MaskedTeacher
from masters.training.groups import Group, Rows, make_rows
from masters.training.objective import RewardSettings, StepSums, Term, micro_batch_loss
from masters.training.student import Student, autocast, response_states
from masters.training.token_scores import ScoreSettings


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What a step does.

    Args:
        terms: of the objective.
        rewards: which rewards make R.
        beta, temperature: of the JSD.
        clip_norm: global gradient norm bound; 0 leaves the gradient as it is.
        micro_batch: questions per forward.
        vocabulary: tokens common to both heads.
    """

    terms: tuple[Term, ...]
    rewards: RewardSettings
    beta: float
    temperature: float
    clip_norm: float
    micro_batch: int
    vocabulary: int


@torch.no_grad()
def teacher_states(
    teacher: MaskedTeacher, rows: Rows, ids: TokenIds, precision: torch.dtype, home: torch.device
) -> torch.Tensor:
    """The teacher's hidden states [N, D_T] for the response tokens, on the student's device."""
    device = teacher.model.device
    inputs, column_N = rows.inputs(teacher=True, pad=ids.pad, device=device)
    with autocast(device, precision):
        return response_states(teacher.model, inputs, rows.row_N.to(device), column_N).to(home)


def accumulate(
    student: torch.nn.Module,
    teacher: MaskedTeacher | None,
    groups: Sequence[Group],
    *,
    ids: TokenIds,
    settings: StepSettings,
    questions: int,
    sums: StepSums,
) -> None:
    """Adds the gradient of these groups' share of a step (backward is called, nothing applied).

    Args:
        student: a ``Student`` or a wrapper of one (DDP, FSDP).
        teacher: None where no term compares with one.
        groups: this rank's part of the step.
        ids: special ids.
        questions: Q, over all ranks and micro-batches.
        sums: added to.

    Raises:
        NonFiniteLossError: naming the questions of the micro-batch.
    """
    inner: Any = getattr(student, "module", student)
    assert isinstance(inner, Student)
    device = inner.vlm.device
    for start in range(0, len(groups), settings.micro_batch):
        part = groups[start : start + settings.micro_batch]
        rows = make_rows(part).to(device)
        inputs, column_N = rows.inputs(teacher=False, pad=ids.pad, device=device)
        score = ScoreSettings(
            beta=settings.beta,
            temperature=settings.temperature,
            vocabulary=settings.vocabulary,
            dtype=inner.precision,
        )
        hidden_T = head_T = None
        if teacher is not None:
            hidden_T = teacher_states(teacher, rows, ids, inner.precision, device)
            head_T = teacher.model.get_output_embeddings().weight.to(device)
        jsd_N, logp_N = student(
            inputs, rows.row_N, column_N, rows.targets_N, hidden_T, head_T, score
        )
        loss, slopes = micro_batch_loss(
            rows,
            jsd_N,
            logp_N,
            terms=settings.terms,
            rewards=settings.rewards,
            questions=questions,
            sums=sums,
        )
        if not math.isfinite(loss.item()):
            names = ", ".join(group.question_id for group in part)
            raise NonFiniteLossError(
                f"the loss is {loss.item()} on questions {names}; expected a finite number. Look "
                "at them with `masters show`, lower method.optimiser.lr, or use precision fp32"
            )
        loss.backward()
        _add_norms(sums, slopes, score)


def _add_norms(sums: StepSums, slopes: dict[str, torch.Tensor], score: ScoreSettings) -> None:
    """Squared gradient norm of each term with respect to the response hidden states; entropies."""
    sums.add_entropies(student=score.entropy_N, teacher=score.teacher_entropy_N)
    for name, slope_N in slopes.items():
        norm_N = score.jsd_norm_N if name == "jsd" else score.logp_norm_N
        assert norm_N is not None
        sums.squared_norm[name] += (slope_N * norm_N).square().sum().item()


def apply_gradient(
    student: torch.nn.Module, optimiser: torch.optim.Optimizer, clip: float
) -> float:
    """Clips by global norm, steps, zeroes; returns the gradient norm before clipping.

    Raises:
        NonFiniteLossError: the norm is not finite; nothing was applied.
    """
    bound = clip if clip > 0 else math.inf
    norm = torch.nn.utils.clip_grad_norm_(student.parameters(), bound)
    if not torch.isfinite(norm):
        raise NonFiniteLossError(f"the gradient norm is {norm.item()}; nothing was applied")
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm.item()
