"""Floating-point operations of a question, counted from the shapes before anything is measured.

A multiplication and its addition are two. Attention is counted for the pairs that see each other,
whatever a kernel computes beside them; a backward pass as twice its forward pass; softmax, norms
and the optimiser as nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from stepping.shapes import MERGE, Case


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
    P, R, G = case.prefix, case.response, case.group
    causal = (P + R) * (P + R + 1) // 2
    shared = P * (P + 1) // 2 + G * (P * R + R * (R + 1) // 2)
    pictures = tower(model, case)
    return Counted(
        repeated=language(model, G * (P + R), G * causal) + G * pictures,
        packed=language(model, P + G * R, shared) + pictures,
    )


def head(model: Any, case: Case) -> float:
    """Of the logits of all response tokens."""
    return 2 * case.group * case.response * model.get_output_embeddings().weight.numel()


def training(student: Any, teacher: Any, case: Case) -> Counted:
    """Of the student's forward and backward pass, both heads with it."""
    trunk = trunk_and_tower(student, case)
    heads = 3 * head(student, case) + head(teacher, case)
    return Counted(repeated=3 * trunk.repeated + heads, packed=3 * trunk.packed + heads)


def language(model: Any, tokens: int, pairs: int) -> float:
    """Of the language model's layers over so many tokens, of which so many pairs are seen."""
    config = model.config.get_text_config()
    width = config.num_attention_heads * config.head_dim
    layers = model.base_model.language_model.layers
    return 2 * tokens * _weights(layers) + 4 * pairs * width * len(layers)


def tower(model: Any, case: Case) -> float:
    """Of the vision tower over the case's picture, projectors included."""
    if not case.picture:
        return 0.0
    visual = model.base_model.visual
    down, across = case.grid
    patches = down * across
    mergers = _weights(visual.merger) + _weights(visual.deepstack_merger_list)
    linear = 2 * patches * (_weights(visual) - mergers) + 2 * patches // MERGE**2 * mergers
    return linear + 4 * patches**2 * model.config.vision_config.hidden_size * len(visual.blocks)


def _weights(module: nn.Module) -> int:
    """Weights of what multiplies each token: linear layers and the patches' convolution."""
    kinds = (nn.Linear, nn.Conv3d)
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, kinds))
