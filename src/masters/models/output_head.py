"""A model's output head: brought together, and what the token scores take it for, one product."""

from __future__ import annotations

import inspect
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.distributed.tensor import DTensor

from masters.errors import ModelError

#: Share of the largest logit by which the two ways to it may differ: rounding is below.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}

#: Frozen heads that were brought from another device, or together from all ranks.
_HEADS: WeakKeyDictionary[torch.nn.Module, torch.Tensor] = WeakKeyDictionary()


def whole_head(model: Any, home: torch.device) -> torch.Tensor:
    """The weight [V, D] of a model's output head, whole and on this device, to be read only.

    A frozen one is brought there once: masks touch no head, or say so (`forget_head`). Where it is
    sharded, all ranks ask at the same time.
    """
    head: Any = model.get_output_embeddings()
    sharded = isinstance(head.weight, DTensor)
    if head.weight.device == home and not sharded:
        return head.weight
    if head in _HEADS and _HEADS[head].device == home:
        return _HEADS[head]
    weight = head.weight.detach()
    weight = (weight.full_tensor() if sharded else weight).to(home)
    if not head.weight.requires_grad:
        _HEADS[head] = weight
    return weight


def forget_head(model: Any) -> None:
    """The head's weights were changed: what was brought elsewhere of them is brought anew."""
    _HEADS.pop(model.get_output_embeddings(), None)


@torch.no_grad()
def check_head_product(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    """Raises ModelError unless the model's logits are its head times its last hidden states.

    Whatever a head does besides (soft caps, scales, a norm of its own) would be lost where hidden
    states are stored and the product is made later. It also shows that the states lie behind the
    last norm.

    Args:
        model: with its output head.
        inputs: one row, not padded.
    """
    wanted = {} if "logits_to_keep" not in inspect.signature(model.forward).parameters else {
        "logits_to_keep": 1
    }  # fmt: skip
    logits_V = model(**inputs, use_cache=False, **wanted).logits[0, -1].float()
    state_D = model.base_model(**inputs, use_cache=False).last_hidden_state[0, -1]
    head_VD = model.get_output_embeddings().weight
    product_V = (head_VD @ state_D.to(head_VD.dtype)).float()
    most = logits_V.abs().max().item()
    apart = (logits_V - product_V).abs().max().item()
    if not apart <= TOLERANCE[head_VD.dtype] * max(most, 1.0):
        raise ModelError(
            f"{model.name_or_path}: its logits differ by up to {apart:.2g} from the product of its "
            f"output head and its last hidden states (logits up to {most:.2g}); its head does "
            "something more, which a stored signal would lose. Use method.signal=live with a "
            "model whose head is a plain product"
        )
