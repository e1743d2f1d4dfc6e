"""Whether a picture reaches a model: its placeholders, its features, and what it says next.

Shape suffixes: T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from masters.errors import ModelError
from masters.models.encode import EncodedPrompt, pad_rows
from masters.models.families import family_of
from masters.models.output_head import whole_head
from masters.models.shards import is_sharded


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Without dropout, which would tremble; afterwards each module is as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def placeholders(model: Any, encoded: EncodedPrompt) -> int:
    """How many tokens of the prompt the model replaces by image features."""
    image_id = getattr(model.config, family_of(model).image_id)
    return encoded.ids.count(image_id)


@torch.no_grad()
def image_features(model: Any, encoded: EncodedPrompt) -> int | None:
    """How many image features the model makes of the prompt's image tensors; None: it cannot say.

    Families differ in what they take (grid, sizes, pixel mask) and give (one tensor, or one an
    image); what is counted is vectors of the language model's width.

    Raises:
        ModelError: the model cannot make features of such tensors.
    """
    make = getattr(model, "get_image_features", None)
    # Over several ranks a tower has no weights outside of its trunk's forward pass, which then says
    # by itself where features and placeholders differ.
    if make is None or any(is_sharded(parameter) for parameter in model.parameters()):
        return None
    takes = inspect.signature(make).parameters
    images = {k: v.to(model.device) for k, v in encoded.images.items() if k in takes}
    try:
        output = make(**images)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in images.items())
        raise ModelError(f"{shapes}: {error}") from error
    features = getattr(output, "pooler_output", output)
    parts = [features] if isinstance(features, torch.Tensor) else features
    return sum(part.shape[:-1].numel() for part in parts)


@torch.no_grad()
def next_log_probs(
    model: Any, encoded: EncodedPrompt, *, pad: int, vocabulary: int
) -> torch.Tensor:
    """Log-probabilities [V] of the token behind the prompt, in float32.

    Logits are made for the last position alone: over the whole prompt they can take gigabytes.
    """
    inputs = pad_rows([(encoded, ())], pad=pad, device=model.device)
    state_D = model.base_model(**inputs, use_cache=False).last_hidden_state[0, -1]
    head_VD = whole_head(model, state_D.device)[:vocabulary]
    return (head_VD @ state_D.to(head_VD.dtype)).float().log_softmax(dim=-1)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference of two distributions' log-probabilities, in nats."""
    return (a - b).abs().max().item()
