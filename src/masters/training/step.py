"""One optimiser step: micro-batches forward and backward, reduced once, clipped, applied."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from masters import ranks
from masters.errors import NonFiniteLossError
from masters.models.load import TokenIds
from masters.teachers.masked import MaskedTeacher
from masters.training.group_forward import Form, group_inputs
from masters.training.groups import Group, Rows, make_rows, micro_batches
from masters.training.lockstep import agreed_pieces, idle_rows
from masters.training.losses import Divergence
from masters.training.objective import RewardSettings, StepSums, Term, micro_batch_loss
from masters.training.randomness import random_state, set_random_state
from masters.training.student import Student
from masters.training.teacher_signal import LiveSignal, TeacherSignal, TeacherTokens
from masters.training.token_scores import ScoreSettings
from masters.training.topk_scores import TopTokens


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What a step does.

    Args:
        terms: of the objective.
        rewards: which rewards make R.
        beta, temperature: of the JSD.
        divergence: in place of the JSD; None: the JSD of ``beta``.
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
    divergence: Divergence | None = None
    student_form: Form = "repeat"
    teacher_form: Form = "repeat"


def accumulate(
    student: torch.nn.Module,
    teacher: MaskedTeacher | TeacherSignal | None,
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
        teacher: a live one, or where its signal is stored; None where no term compares with one.
        groups: this rank's part of the step.
        ids: special ids.
        questions: Q, over all ranks and micro-batches.
        sums: added to.

    Raises:
        NonFiniteLossError: naming the questions of the micro-batch.
    """
    scorer, limit = _Scorer(student, teacher, ids, settings), settings.micro_batch_responses
    parts = list(micro_batches(groups, size=settings.micro_batch, limit=limit))
    batches = [make_rows(part).to(scorer.device) for part in parts]
    own = [len(rows.passes(limit)) for rows in batches]
    agreed = agreed_pieces(own)
    idle = idle_rows(groups, own, agreed)
    scorer.idle_rows = None if idle is None else idle.to(scorer.device)
    not_finite: list[str] = []
    for k, count in enumerate(agreed):
        if k >= len(batches):
            scorer.idle(count, ask=True, gradient=count == 1)
            if count > 1:
                scorer.idle(count)
            continue
        rows = batches[k]

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
            not_finite.extend(_said_not_finite(loss, rows.groups))  # noqa: B023
            loss.backward()
            return slopes

        if count == 1:
            jsd_N, logp_N, score = scorer(rows, scorer.known(rows))
            _add_norms(sums, reduced(jsd_N, logp_N), score)
        else:
            _in_pieces(scorer, rows.passes(limit), count, reduced, sums)
    # Told once all have made all passes: whoever stopped before would leave the others waiting.
    for said in ranks.gathered(not_finite):
        if said:
            raise NonFiniteLossError(said[0])


def _in_pieces(
    scorer: _Scorer,
    pieces: Sequence[Rows],
    count: int,
    reduced: Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]],
    sums: StepSums,
) -> None:
    """The gradient of rows that don't fit one forward pass: exactly that of the whole.

    A pass without gradient gives every D, which the advantages need; the loss's slopes with respect
    to each token's scores follow, and each piece is run again and sent back with its own. What the
    teacher said is kept from one to the other: it reads each piece once.

    Args:
        count: passes of each kind, at least as many as there are pieces; see `training.lockstep`.
    """
    draws, scored, known = [], [], []
    with torch.no_grad():
        for piece in pieces:
            known.append(scorer.known(piece))
            draws.append(random_state())  # dropout must draw the same again
            scored.append(scorer(piece, known[-1])[:2])
    scorer.idle(count - len(pieces), ask=True, gradient=False)
    after = random_state()
    jsd_N, logp_N = (torch.cat(x).requires_grad_() for x in zip(*scored, strict=True))
    slopes = reduced(jsd_N, logp_N)
    start = 0
    for piece, drawn, told in zip(pieces, draws, known, strict=True):
        set_random_state(drawn)
        own = slice(start, start + len(piece.targets_N))
        jsd_P, logp_P, score = scorer(piece, told)
        share = jsd_P.new_zeros(())
        for x_P, whole_N in ((jsd_P, jsd_N), (logp_P, logp_N)):
            if whole_N.grad is not None:
                share = share + (x_P * whole_N.grad[own]).sum()
        share.backward()
        _add_norms(sums, {name: slope[own] for name, slope in slopes.items()}, score)
        start = own.stop
    scorer.idle(count - len(pieces))
    set_random_state(after)


class _Scorer:
    """(jsd_N, logp_N, settings used) of rows under student and teacher."""

    def __init__(
        self,
        student: torch.nn.Module,
        teacher: MaskedTeacher | TeacherSignal | None,
        ids: TokenIds,
        settings: StepSettings,
    ) -> None:
        inner: Any = getattr(student, "module", student)
        assert isinstance(inner, Student)
        self.device = inner.vlm.device
        self._student, self._inner, self._ids, self._settings = student, inner, ids, settings
        if isinstance(teacher, MaskedTeacher):
            teacher = LiveSignal(
                teacher, ids=ids, precision=inner.precision, form=settings.teacher_form
            )
        self._signal = teacher
        self.idle_rows: Rows | None = None

    def idle(self, times: int, *, ask: bool = False, gradient: bool = True) -> None:
        """So many passes beside another rank's; they change nothing.

        Args:
            ask: a live teacher reads along, as in a pass whose answers are new.
            gradient: whether there is a backward pass.
        """
        for _ in range(times):
            assert self.idle_rows is not None
            if ask and isinstance(self._signal, LiveSignal):
                self.known(self.idle_rows)
            with torch.set_grad_enabled(gradient):
                jsd_N, logp_N, _ = self(self.idle_rows, None)
            if gradient:
                nothing_N = torch.zeros_like(logp_N)
                torch.autograd.backward([jsd_N, logp_N], [nothing_N, nothing_N])

    def known(self, rows: Rows) -> TeacherTokens | None:
        """What the teacher says of the rows' tokens; None without one."""
        return None if self._signal is None else self._signal.tokens(rows, self.device)

    def __call__(
        self, rows: Rows, known: TeacherTokens | None
    ) -> tuple[torch.Tensor, torch.Tensor, ScoreSettings]:
        settings, inner = self._settings, self._inner
        inputs, row_N, column_N = group_inputs(
            inner.vlm, rows, form=settings.student_form, teacher=False, pad=self._ids.pad,
            device=self.device,
        )  # fmt: skip
        score = ScoreSettings(
            beta=settings.beta,
            divergence=settings.divergence,
            temperature=settings.temperature,
            vocabulary=settings.vocabulary,
            common=settings.common,
            dtype=inner.precision,
        )
        hidden_T = head_T = top = None
        if isinstance(known, TopTokens):
            top = known
        elif known is not None:
            hidden_T, head_T = known.states_ND, known.head_VD
        jsd_N, logp_N = self._student(
            inputs, row_N, column_N, rows.targets_N, hidden_T, head_T, score, top
        )
        score.bound_N = None if top is None else top.bound_N
        return jsd_N, logp_N, score


def _said_not_finite(loss: torch.Tensor, part: Sequence[Group]) -> list[str]:
    if math.isfinite(loss.item()):
        return []
    names = ", ".join(group.question_id for group in part)
    return [
        f"the loss is {loss.item()} on questions {names}; expected a finite number. Look at "
        "them with `masters show`, lower method.optimiser.lr, or use precision fp32"
    ]


def _add_norms(sums: StepSums, slopes: dict[str, torch.Tensor], score: ScoreSettings) -> None:
    """Squared gradient norm of each term at the response hidden states; entropies; bounds."""
    sums.add_entropies(student=score.entropy_N, teacher=score.teacher_entropy_N)
    sums.add_bounds(score.bound_N)
    for name, slope_N in slopes.items():
        norm_N = score.jsd_norm_N if name in ("jsd", "skew_kl") else score.logp_norm_N
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
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if not torch.isfinite(norm):
        raise NonFiniteLossError(f"the gradient norm is {norm.item()}; nothing was applied")
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm.item()
