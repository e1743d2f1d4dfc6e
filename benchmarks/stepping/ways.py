"""The parts of a step, for each form of a group: reference, teacher, student, optimiser."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from masters.training.group_forward import Form, group_inputs, make_ready
from masters.training.groups import Group, make_rows
from masters.training.objective import (
    GrpoTerm,
    JsdTerm,
    RewardSettings,
    StepSums,
    micro_batch_loss,
)
from masters.training.optimiser import OptimiserSettings, make_optimiser
from masters.training.step import apply_gradient
from masters.training.student import Student, response_states
from masters.training.token_scores import ScoreSettings
from stepping.shapes import Case, Size, random_model

TERMS = (GrpoTerm(kl=0.1), JsdTerm())
#: The rate is 0, so that every repeat finds the same weights; the arithmetic is the same.
OPTIMISER = OptimiserSettings(
    lr=0.0, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8, schedule="constant", warmup=0,
    moments="fp32",
)  # fmt: skip
PAD = 0


class Models:
    """A student, its reference and its teacher, with what is needed to take a step.

    Args:
        student, teacher: sizes.
        vocabulary: of both.
    """

    def __init__(self, student: Size, teacher: Size, vocabulary: int) -> None:
        self.student = Student(random_model(student, vocabulary, seed=1)).train()
        self.reference = copy.deepcopy(self.student).eval().requires_grad_(False)
        # A student that has moved on from its reference: else their KL would be 0.
        with torch.no_grad():
            self.student.vlm.get_output_embeddings().weight.mul_(1.05)
        self.teacher: Any = random_model(teacher, vocabulary, seed=2).eval().requires_grad_(False)
        self.optimiser = make_optimiser(self.student, OPTIMISER)
        self._vocabulary = vocabulary

    def see_groups(self, form: Form) -> None:
        """Has all three take what this form gives them; mask and repeat run on plain sdpa."""
        for vlm in (self.student.vlm, self.reference.vlm, self.teacher):
            vlm.set_attn_implementation({"text_config": "sdpa"})
            make_ready(vlm, form)

    @torch.no_grad()
    def referred(self, group: Group, form: Form) -> Group:
        """The group with the reference's log-probs, as a score stage writes them."""
        rows = make_rows([group])
        inputs, row_N, column_N = group_inputs(
            self.reference.vlm, rows, form=form, teacher=False, pad=PAD, device="cpu"
        )
        _, logp_N = self.reference(
            inputs, row_N, column_N, rows.targets_N, None, None, self._score()
        )
        values = logp_N.tolist()
        spans = [rows.spans[u] for u in rows.row_of[0]]
        responses = (
            replace(response, reference=tuple(values[start:stop]))
            for response, (start, stop) in zip(group.responses, spans, strict=True)
        )
        return replace(group, responses=tuple(responses))

    @torch.no_grad()
    def teacher_states(self, group: Group, form: Form) -> torch.Tensor:
        """The teacher's hidden states [N, D] for the response tokens."""
        rows = make_rows([group])
        inputs, row_N, column_N = group_inputs(
            self.teacher, rows, form=form, teacher=True, pad=PAD, device="cpu"
        )
        return response_states(self.teacher, inputs, row_N, column_N)

    def any_states(self, case: Case) -> torch.Tensor:
        """Random states [N, D] in the place of a teacher's, where only time and memory matter."""
        width = self.teacher.get_output_embeddings().in_features
        return torch.randn(case.group * case.response, width)

    def scores(
        self, group: Group, form: Form, hidden_T: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(jsd_N, logp_N) of the student's forward pass, with its graph."""
        rows = make_rows([group])
        inputs, row_N, column_N = group_inputs(
            self.student.vlm, rows, form=form, teacher=False, pad=PAD, device="cpu"
        )
        head_T = self.teacher.get_output_embeddings().weight
        return self.student(
            inputs, row_N, column_N, rows.targets_N, hidden_T, head_T, self._score()
        )

    def gradient(self, group: Group, form: Form, hidden_T: torch.Tensor) -> torch.Tensor:
        """Forward and backward; leaves the gradient and returns logp_N."""
        jsd_N, logp_N = self.scores(group, form, hidden_T)
        loss, _ = micro_batch_loss(
            make_rows([group]), jsd_N, logp_N, terms=TERMS, rewards=RewardSettings(), questions=1,
            sums=StepSums(),
        )  # fmt: skip
        loss.backward()
        return logp_N.detach()

    def update(self) -> None:
        """Clips and applies what lies in the gradients."""
        apply_gradient(self.student, self.optimiser, 1.0)

    def clear(self) -> None:
        """Forgets the gradient."""
        self.student.zero_grad(set_to_none=True)

    def gradients(self) -> dict[str, torch.Tensor]:
        """By name, cloned."""
        named = self.student.named_parameters()
        return {name: p.grad.clone() for name, p in named if p.grad is not None}

    def _score(self) -> ScoreSettings:
        return ScoreSettings(vocabulary=self._vocabulary)


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of any gradient, relative to the largest entry of all."""
    scale = max(gradient.abs().max() for gradient in one.values())
    return max(((one[name] - other[name]).abs().max() / scale).item() for name in one)
