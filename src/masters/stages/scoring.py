"""Log-probs of stored tokens by the student's own forward: the one way that all stages score."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from masters.recipe import Runtime
from masters.stages.opening import OpenedModel
from masters.training.group_forward import Form, first_use, group_inputs
from masters.training.groups import Group, make_rows
from masters.training.student import Student
from masters.training.token_scores import ScoreSettings


class Scorer:
    """Scores groups in the form that the first of them shows to be right.

    Args:
        student: the model in its module, in eval mode.
        opened: the same model.
        runtime: for the form, and the responses in one pass.
        vocabulary: ids that the softmax is over.

    Attributes:
        limit: a group with more distinct responses than this is scored in parts; None: whole.
    """

    def __init__(
        self, student: Student, opened: OpenedModel, runtime: Runtime, *, vocabulary: int
    ) -> None:
        self._student, self._opened, self._runtime = student, opened, runtime
        self._settings = ScoreSettings(vocabulary=vocabulary, dtype=student.precision)
        self.limit = runtime.micro_batch_responses
        self._form: Form | None = None

    @torch.no_grad()
    def __call__(self, groups: Sequence[Group]) -> list[list[list[float]]]:
        """The log-probs of each group's responses, token by token."""
        opened, student = self._opened, self._student
        device = opened.model.device
        if self._form is None:
            verdict = first_use(
                opened.model, groups, self._runtime.group_forward, teacher=False,
                pad=opened.ids.pad, precision=student.precision, vocabulary=opened.ids.vocabulary,
                limit=self.limit,
            )  # fmt: skip
            self._form = None if verdict is None else verdict.form
        batch = make_rows(list(groups)).to(device)
        values: list[float] = []
        for piece in batch.passes(self.limit):
            inputs, row_N, column_N = group_inputs(
                opened.model, piece, form=self._form or "repeat", teacher=False,
                pad=opened.ids.pad, device=device,
            )  # fmt: skip
            _, logp_N = student(
                inputs, row_N, column_N, piece.targets_N, None, None, self._settings
            )
            values += logp_N.tolist()
        spans = [[batch.spans[row] for row in rows] for rows in batch.row_of]
        return [[values[start:stop] for start, stop in own] for own in spans]
