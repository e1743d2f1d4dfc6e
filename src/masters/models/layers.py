"""Which weight matrices a VLM has: the layers that the teacher's mask may touch."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from masters.errors import ModelError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: Mixture-of-experts routers decide who computes, not what: whole by default.
ROUTERS = ("*.gate", "*.router", "*router.*")


def meta_model(config: Any) -> Any:
    """The model of this configuration without memory for its weights (meta device)."""
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def maskable_layers(
    model: nn.Module, *, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> list[str]:
    """Module names of every Linear and convolution that may be masked, in module order.

    Token embeddings, the output head, routers, norms and biases stay whole.

    Args:
        model: on any device, meta included.
        include: glob patterns on module names; a layer needs one match.
        exclude: glob patterns; one match leaves the layer whole.

    Raises:
        ModelError: a pattern matches no layer, or an include pattern names the output head.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    layers, heads = [], []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
            (heads if module is head else layers).append(name)
    for pattern in include:
        if pattern != "*" and any(fnmatchcase(name, pattern) for name in heads):
            raise ModelError(
                f"mask.include pattern '{pattern}' names the output head {heads[0]}; it stays "
                "whole (where embeddings are tied, masking it would mask them)"
            )
    for key, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in layers):
                raise ModelError(
                    f"mask.{key} pattern '{pattern}' matches none of the {len(layers)} layers; "
                    f"layer names look like {', '.join(layers[:2] + layers[-1:])}"
                )
    left_whole = (*ROUTERS, *exclude)
    return [
        name
        for name in layers
        if any(fnmatchcase(name, p) for p in include)
        and not any(fnmatchcase(name, p) for p in left_whole)
    ]
