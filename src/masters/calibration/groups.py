"""Which layers are masked together when sensitivity is measured: by part, block or layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

Grain = Literal["part", "block", "layer"]
GRAINS: tuple[Grain, ...] = ("part", "block", "layer")


def layer_groups(model: Any, layers: Iterable[str], grain: Grain) -> dict[str, list[str]]:
    """The layers of a thresholds file by the name of their group, in module order.

    Args:
        model: the teacher.
        layers: names of `models.layers.Layer`.
        grain: ``part`` (language, projector, vision), ``block`` (one numbered block of a stack,
            else the module around the layer) or ``layer`` (one matrix; a stack of experts is one).
    """
    from masters.models.families import family_of

    family = family_of(model)
    groups: dict[str, list[str]] = {}
    for name in layers:
        match grain:
            case "part":
                group = str(family.part_of(name.partition("[")[0]))
            case "block":
                group = _block(name)
            case "layer":
                group = name.partition("[")[0]
        groups.setdefault(group, []).append(name)
    return groups


def _block(name: str) -> str:
    """``a.layers.3.mlp.up`` -> ``a.layers.3``; ``a.merger.mlp.0`` -> ``a.merger.mlp``."""
    pieces = name.partition("[")[0].split(".")
    for place, piece in enumerate(pieces[:-1]):
        if piece.isdigit():
            return ".".join(pieces[: place + 1])
    return ".".join(pieces[:-1]) or name
