"""Floating-point operations of a model's passes, from its shape.

A multiplication and its addition are two. A backward pass counts as twice its forward pass;
softmax, norms and the optimiser count as nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What of a model decides its arithmetic and memory.

    Args:
        parameters: of the whole model.
        weights: what multiplies each token in the language model's layers (of experts: those that
            are chosen for it), the head apart.
        layers, width, hidden, feed_forward: of the language model; ``width`` is all heads together,
            ``feed_forward`` that of the experts that a token meets.
        key_width: of all key heads together.
        head_rows: rows of the output head.
        layer_parameters: of all decoder and tower blocks: what ``offload`` streams.
        largest_layer: parameters of the largest of these blocks.
        tower_weights: what multiplies each patch of a picture.
        tower_layers, tower_hidden, tower_feed_forward: of the vision tower.
        tower_span: patches that see each other at most; None: all of a picture.
        projector_weights: what multiplies each image token.
        patches: of a picture for each image token.
        matrices: of all parts, each expert's by itself.
    """

    parameters: int
    weights: float
    layers: int
    width: int
    hidden: int
    feed_forward: int
    key_width: int
    head_rows: int
    layer_parameters: int
    largest_layer: int
    tower_weights: int
    tower_layers: int
    tower_hidden: int
    tower_feed_forward: int
    tower_span: float | None
    projector_weights: int
    patches: float
    matrices: int

    @property
    def head(self) -> int:
        """Weights of the output head."""
        return self.head_rows * self.hidden


def language(shape: ModelShape, tokens: float, pairs: float) -> float:
    """Of the language model's layers over so many tokens, of which so many pairs are computed."""
    return 2 * tokens * shape.weights + 4 * pairs * shape.width * shape.layers


def logits(shape: ModelShape, tokens: float) -> float:
    """Of the output head over so many tokens."""
    return 2 * tokens * shape.head


def tower(shape: ModelShape, image_tokens: float) -> float:
    """Of the vision tower and the projector over pictures of so many tokens."""
    patches = image_tokens * shape.patches
    span = patches if shape.tower_span is None else min(patches, shape.tower_span)
    attention = 4 * patches * span * shape.tower_hidden * shape.tower_layers
    linear = 2 * patches * shape.tower_weights + 2 * image_tokens * shape.projector_weights
    return linear + attention


def packed(prompt: float, response: float, group: float) -> tuple[float, float]:
    """(tokens, pairs that see each other) of a prompt with its responses in one row."""
    pairs = prompt * (prompt + 1) / 2
    pairs += group * (prompt * response + response * (response + 1) / 2)
    return prompt + group * response, pairs


def repeated(prompt: float, response: float, group: float) -> tuple[float, float]:
    """The same with a prompt of its own for each response."""
    row = prompt + response
    return group * row, group * row * (row + 1) / 2


def scoring(student: ModelShape, teacher: ModelShape | None, tokens: float, chunk: float) -> float:
    """Of log-probabilities and divergence of response tokens, forward and backward.

    Backward makes the logits of every chunk but the last anew, and needs a product to the hidden
    states for each of two scores, and one to the head.

    Args:
        chunk: tokens whose logits are there at once.
    """
    forward = logits(student, tokens) + (0 if teacher is None else logits(teacher, tokens))
    again = 1 - min(1.0, chunk / tokens) if tokens else 0.0
    scores = 1 if teacher is None else 2
    return forward * (1 + again) + (scores + 1) * logits(student, tokens)
