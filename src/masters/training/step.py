"""One optimiser step: micro-batches forward and backward, reduced once, clipped, applied."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from masters.errors import NonFiniteLossError
from masters.models.load import TokenIds
from masters.models.memory import doing
from masters.teachers.masked import MaskedTeacher
from masters.training.group_forward import Form, group_inputs
from masters.training.groups import Group, Rows, make_rows
from masters.training.objective import RewardSettings, StepSums, Term, micro_batch_loss
from masters.training.randomness import random_state, set_random_state
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
        vocabulary: tokens of the student.
        common: the first so many of them are the teacher's too; None: all.
        micro_batch_responses: a question with more distinct responses than this is split over
            forward passes; None splits none.
        student_form, teacher_form: how each model sees a group.
    """

    terms: tuple[Term, ...]
    rewards: RewardSettings
    beta: float
    temperature: float
    clip_norm: float
    micro_batch: int
    vocabulary: int
    common: int | None = None
    micro_batch_responses: int | None = None
    student_form: Form = "repeat"
    teacher_form: Form = "repeat"


@torch.no_grad()
def teacher_states(
    teacher: MaskedTeacher,
    rows: Rows,
    ids: TokenIds,
    precision: torch.dtype,
    home: torch.device,
    form: Form = "repeat",
) -> torch.Tensor:
    """The teacher's hidden states [N, D_T] for the response tokens, on the student's device."""
    model, device = teacher.model, teacher.model.device
    inputs, row_N, column_N = group_inputs(
        model, rows, form=form, teacher=True, pad=ids.pad, device=device
    )
    with doing("running the teacher"), autocast(device, precision):
        return response_states(model, inputs, row_N, column_N).to(home)


#: Output heads of teachers that live on another device than their student; no mask touches a head.
_HEADS: WeakKeyDictionary[torch.nn.Module, torch.Tensor] = WeakKeyDictionary()


def teacher_head(teacher: MaskedTeacher, home: torch.device) -> torch.Tensor:
    """The teacher's output head [V, D_T] on the student's device, brought there once."""
    head: Any = teacher.model.get_output_embeddings()
    if head.weight.device == home:
        return head.weight
    if head not in _HEADS or _HEADS[head].device != home:
        _HEADS[head] = head.weight.detach().to(home)
    return _HEADS[head]


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
    scorer = _Scorer(student, teacher, ids, settings)
    for part in _micro_batches(groups, settings):
        rows = make_rows(part).to(scorer.device)
        count, limit = len(rows.spans), settings.micro_batch_responses

        def reduced(jsd_N: torch.Tensor, logp_N: torch.Tensor) -> dict[str, torch.Tensor]:
            loss, slopes = micro_batch_loss(
                rows,  # noqa: B023
                jsd_N,
                logp_N,
                terms=settings.terms,
                rewards=settings.rewards,
                questions=questions,
                sums=sums,
            )
            _check_finite(loss, part)  # noqa: B023
            loss.backward()
            return slopes

        if limit is None or count <= limit:
            jsd_N, logp_N, score = scorer(rows)
            _add_norms(sums, reduced(jsd_N, logp_N), score)
        else:
            pieces = [rows.part(u, min(u + limit, count)) for u in range(0, count, limit)]
            _in_pieces(scorer, pieces, reduced, sums)


def _in_pieces(
    scorer: _Scorer,
    pieces: Sequence[Rows],
    reduced: Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]],
    sums: StepSums,
) -> None:
    """The gradient of rows that don't fit one forward pass: exactly that of the whole.

    A pass without gradient gives every D, which the advantages need; the loss's slopes with respect
    to each token's scores follow, and each piece is run again and sent back with its own.
    """
    draws, scored = [], []
    with torch.no_grad():
        for piece in pieces:
            draws.append(random_state())  # dropout must draw the same again
            scored.append(scorer(piece)[:2])
    after = random_state()
    jsd_N, logp_N = (torch.cat(x).requires_grad_() for x in zip(*scored, strict=True))
    slopes = reduced(jsd_N, logp_N)
    start = 0
    for piece, drawn in zip(pieces, draws, strict=True):
        set_random_state(drawn)
        own = slice(start, start + len(piece.targets_N))
        jsd_P, logp_P, score = scorer(piece)
        share = jsd_P.new_zeros(())
        for x_P, whole_N in ((jsd_P, jsd_N), (logp_P, logp_N)):
            if whole_N.grad is not None:
                share = share + (x_P * whole_N.grad[own]).sum()
        share.backward()
        _add_norms(sums, {name: slope[own] for name, slope in slopes.items()}, score)
        start = own.stop
    set_random_state(after)


class _Scorer:
    """(jsd_N, logp_N, settings used) of rows under student and teacher."""

    def __init__(
        self,
        student: torch.nn.Module,
        teacher: MaskedTeacher | None,
        ids: TokenIds,
        settings: StepSettings,
    ) -> None:
        inner: Any = getattr(student, "module", student)
        assert isinstance(inner, Student)
        self.device = inner.vlm.device
        self._student, self._inner, self._teacher = student, inner, teacher
        self._ids, self._settings = ids, settings

    def __call__(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor, ScoreSettings]:
        settings, inner, teacher = self._settings, self._inner, self._teacher
        inputs, row_N, column_N = group_inputs(
            inner.vlm, rows, form=settings.student_form, teacher=False, pad=self._ids.pad,
            device=self.device,
        )  # fmt: skip
        score = ScoreSettings(
            beta=settings.beta,
            temperature=settings.temperature,
            vocabulary=settings.vocabulary,
            common=settings.common,
            dtype=inner.precision,
        )
        hidden_T = head_T = None
        if teacher is not None:
            hidden_T = teacher_states(
                teacher, rows, self._ids, inner.precision, self.device, settings.teacher_form
            )
            head_T = teacher_head(teacher, self.device)
        jsd_N, logp_N = self._student(
            inputs, row_N, column_N, rows.targets_N, hidden_T, head_T, score
        )
        return jsd_N, logp_N, score


def _micro_batches(groups: Sequence[Group], settings: StepSettings) -> Iterator[list[Group]]:
    """Groups that share a forward pass; one that must be split has none beside it."""
    limit = settings.micro_batch_responses
    batch: list[Group] = []
    for group in groups:
        large = limit is not None and len({r.token_ids for r in group.responses}) > limit
        if batch and (large or len(batch) == settings.micro_batch):
            yield batch
            batch = []
        if large:
            yield [group]
        else:
            batch.append(group)
    if batch:
        yield batch


def _check_finite(loss: torch.Tensor, part: Sequence[Group]) -> None:
    if not math.isfinite(loss.item()):
        names = ", ".join(group.question_id for group in part)
        raise NonFiniteLossError(
            f"the loss is {loss.item()} on questions {names}; expected a finite number. Look at "
            "them with `masters show`, lower method.optimiser.lr, or use precision fp32"
        )


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
