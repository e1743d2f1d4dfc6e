"""Floating-point operations of a question, counted from the shapes before anything is measured.

Attention is counted for the pairs that see each other, whatever a kernel computes beside them; the
rest as `masters.models.counts` counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from masters.models import counts
from masters.models.shape import model_shape
from stepping.shapes import Case


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Operations of one forward pass over a question."""

    repeated: float
    packed: float

    @property
    def limit(self) -> float:
        """What packing can gain at most."""
        return self.repeated / self.packed


def trunk_and_tower(model: Any, case: Case) -> Counted:
    """Of the language model and the vision tower, without the head."""
    shape, sizes = model_shape(model), (case.prefix, case.response, case.group)
    pictures = counts.tower(shape, case.image_tokens)
    return Counted(
        repeated=counts.language(shape, *counts.repeated(*sizes)) + case.group * pictures,
        packed=counts.language(shape, *counts.packed(*sizes)) + pictures,
    )


def head(model: Any, case: Case) -> float:
    """Of the logits of all response tokens."""
    return 2 * case.group * case.response * model.get_output_embeddings().weight.numel()


def training(student: Any, teacher: Any, case: Case) -> Counted:
    """Of the student's forward and backward pass, both heads with it."""
    trunk = trunk_and_tower(student, case)
    heads = 3 * head(student, case) + head(teacher, case)
    return Counted(repeated=3 * trunk.repeated + heads, packed=3 * trunk.packed + heads)
