"""Which weights of the student are trained: all, all but some parts, or low-rank adapters only."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from masters.errors import ModelError
from masters.models.families import Family, family_of
from masters.models.layers import ROUTERS
from masters.parts import Part


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank adapters: W becomes W + alpha / rank * B A, and only A and B are trained.

    Args:
        rank: rows of A, columns of B.
        alpha: their weight, over the rank.
        dropout: share of an adapter's inputs dropped while training.
        parts: of the model that get adapters.
        targets: glob patterns of module names; empty: every Linear layer of those parts.
        seed: of A; B begins at 0.
    """

    rank: int
    alpha: float
    dropout: float
    parts: tuple[Part, ...]
    targets: tuple[str, ...]
    seed: int


def freeze_parts(model: Any, parts: Collection[Part]) -> tuple[str, ...]:
    """Has these parts keep their weights; the output head counts as language.

    Returns:
        Names of the modules that are to stay in eval mode while the rest trains.

    Raises:
        ModelError: a part has no weights, or none are left to train.
    """
    if not parts:
        return ()
    family = family_of(model)
    counts = dict.fromkeys(parts, 0)
    for name, parameter in model.named_parameters():
        part = _part_of(family, name)
        if part in counts:
            counts[part] += 1
            parameter.requires_grad_(False)
    empty = [part for part, count in counts.items() if count == 0]
    if empty or not any(p.requires_grad for p in model.parameters()):
        why = f"it has no weights in {empty[0]}" if empty else "nothing is left to train"
        raise ModelError(
            f"freeze is {', '.join(parts)}, but {why} ({type(model).__name__}); "
            "expected parts that it has, and not all of them"
        )
    return tuple(name for name, _ in model.named_modules() if _part_of(family, name) in counts)


def lora_layers(model: Any, parts: Collection[Part], targets: Sequence[str]) -> list[str]:
    """Names of the Linear layers that get an adapter: never the output head, never a router.

    Raises:
        ModelError: a pattern matches no layer, or nothing is left.
    """
    family = family_of(model)
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and family.part_of(name) in parts
        and not any(fnmatchcase(name, router) for router in ROUTERS)
    ]
    for pattern in targets:
        if not any(fnmatchcase(name, pattern) for name in layers):
            shown = ", ".join(layers[:2] + layers[-1:]) or "none"
            raise ModelError(
                f"lora.targets pattern '{pattern}' matches none of the "
                f"{len(layers)} Linear layers of {', '.join(parts)}; layer names look like {shown}"
            )
    found = [n for n in layers if not targets or any(fnmatchcase(n, p) for p in targets)]
    if not found:
        raise ModelError(
            f"lora.parts is {', '.join(parts)}, where {type(model).__name__} has no "
            "Linear layer; expected a part with one"
        )
    return found


def _part_of(family: Family, name: str) -> Part | None:
    if name == family.head or name.startswith(f"{family.head}."):
        return "language"
    return family.part_of(name)
