"""What the step knows of the teacher for each response token, wherever it comes from.

Live, a masked teacher reads the rows now; stored, it read them in a stage of its own (see
`training.stored_signal`). Shape suffixes: N response tokens of distinct rows, D hidden, V
vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from masters.models.load import TokenIds
from masters.models.memory import doing
from masters.models.output_head import whole_head
from masters.teachers.masked import MaskedTeacher
from masters.training.group_forward import Form, group_inputs
from masters.training.groups import Rows
from masters.training.student import autocast, response_states
from masters.training.topk_scores import TopTokens


@dataclass(frozen=True, kw_only=True)
class HiddenTokens:
    """The whole distributions: last hidden states [N, D] and the output head [V, D]."""

    states_ND: torch.Tensor
    head_VD: torch.Tensor


TeacherTokens = HiddenTokens | TopTokens


class TeacherSignal(Protocol):
    """Where a step asks what the teacher says."""

    def tokens(self, rows: Rows, home: torch.device) -> TeacherTokens:
        """Of every response token of the rows, in their order, on the student's device."""
        ...


class LiveSignal:
    """A teacher in memory, masked as it is now.

    Args:
        teacher: reads the rows' teacher prompts.
        ids: special ids.
        precision: compute dtype.
        form: how it sees a group.
    """

    def __init__(
        self,
        teacher: MaskedTeacher,
        *,
        ids: TokenIds,
        precision: torch.dtype,
        form: Form = "repeat",
    ) -> None:
        self._teacher, self._ids, self._precision = teacher, ids, precision
        self._form: Form = form

    def tokens(self, rows: Rows, home: torch.device) -> HiddenTokens:
        """See ``TeacherSignal``."""
        states_ND = teacher_states(
            self._teacher, rows, self._ids, self._precision, home, self._form
        )
        return HiddenTokens(states_ND=states_ND, head_VD=teacher_head(self._teacher, home))


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


def teacher_head(teacher: MaskedTeacher, home: torch.device) -> torch.Tensor:
    """The teacher's output head [V, D_T] on the student's device."""
    return whole_head(teacher.model, home)
