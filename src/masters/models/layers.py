"""Which weight matrices a VLM has: the layers that the teacher's mask may touch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from masters.errors import ModelError
from masters.models.families import family_of
from masters.parts import PARTS, Part

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: Mixture-of-experts routers decide who computes, not what: whole by default.
ROUTERS = ("*.gate", "*.router", "*router.*")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One weight matrix that may be masked.

    Args:
        name: what patterns and the thresholds file call it: its module; where a module holds
            several, ``<module>.<parameter>``, with ``[<expert>]`` behind it for one of a stack.
        parameter: the model's parameter it lies in.
        part: language, projector or vision.
        size: number of weights.
        matrix: which one of a stack of matrices, along the parameter's first axis; None: all of it.
    """

    name: str
    parameter: str
    part: Part
    size: int
    matrix: int | None = None


def meta_model(config: Any) -> Any:
    """The model of this configuration without memory for its weights (meta device)."""
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def maskable_layers(
    model: Any,
    *,
    parts: Sequence[Part] = PARTS,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> list[Layer]:
    """Every weight matrix that may be masked (Linear, convolution, expert), in module order.

    Token embeddings, the output head, routers, norms and biases stay whole.

    Args:
        model: on any device, meta included.
        parts: of the model; a layer lies in one of them.
        include: glob patterns on layer names; a layer needs one match.
        exclude: glob patterns; one match leaves the layer whole.

    Raises:
        ModelError: a pattern matches no layer, or an include pattern names the output head.
    """
    family = family_of(model)
    layers = list(_matrices(model))
    for pattern in include:
        if pattern != "*" and fnmatchcase(family.head, pattern):
            raise ModelError(
                f"mask.include pattern '{pattern}' names the output head {family.head}; it stays "
                "whole (where embeddings are tied, masking it would mask them)"
            )
    for key, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(layer.name, pattern) for layer in layers):
                names = [layer.name for layer in layers]
                raise ModelError(
                    f"mask.{key} pattern '{pattern}' matches none of the {len(layers)} layers; "
                    f"layer names look like {', '.join(names[:2] + names[-1:])}"
                )
    found = [
        layer
        for layer in layers
        if layer.part in parts
        and any(fnmatchcase(layer.name, p) for p in include)
        and not any(fnmatchcase(layer.name, p) for p in exclude)
    ]
    if not found:
        raise ModelError(
            f"the mask's parts ({', '.join(parts)}) and patterns leave no layer of "
            f"{type(model).__name__}; expected at least one. Set mask: null to mask nothing"
        )
    return found


def _matrices(model: Any) -> Iterator[Layer]:
    family = family_of(model)
    for name, module in model.named_modules():
        part = family.part_of(name)
        if part is None or any(fnmatchcase(name, pattern) for pattern in ROUTERS):
            continue
        if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
            weight = module.weight
            yield Layer(name=name, parameter=f"{name}.weight", part=part, size=weight.numel())
        elif not isinstance(module, nn.Embedding):
            yield from _bare_matrices(name, module, part)


def _bare_matrices(name: str, module: nn.Module, part: Part) -> Iterator[Layer]:
    """Matrices that a module holds without a Linear: stacks of experts, Gemma3's projection ..."""
    for key, weight in module.named_parameters(recurse=False):
        at = f"{name}.{key}"
        if weight.ndim == 3 and "Experts" in type(module).__name__:
            size = weight[0].numel()
            for e in range(weight.shape[0]):
                yield Layer(name=f"{at}[{e}]", parameter=at, part=part, size=size, matrix=e)
        elif weight.ndim == 2 and key.endswith("weight"):
            yield Layer(name=at, parameter=at, part=part, size=weight.numel())
