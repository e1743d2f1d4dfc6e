"""One pass over a teacher's checkpoint -> the thresholds of every layer that may be masked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from masters.models.checkpoint import TensorEntry, checkpoint_tensors
from masters.models.layers import maskable_layers, meta_model
from masters.models.load import load_config
from masters.models.tensor_names import stored_layers
from masters.parts import PARTS, Part
from masters.teachers.drawn import drawn_thresholds
from masters.teachers.thresholds import Kind, Thresholds, tensor_thresholds


def measure_thresholds(
    folder: Path,
    ratios: Sequence[int],
    *,
    parts: Sequence[Part] = PARTS,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    kind: Kind = "magnitude",
    temperatures: Sequence[float] | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> Thresholds:
    """The thresholds of the checkpoint in ``folder``; no tensor is ever in memory as a whole.

    Args:
        folder: a transformers folder with safetensors, in as many files as it likes.
        ratios: per 10,000, each above 0.
        parts, include, exclude: see `maskable_layers`; an empty ``include`` takes every layer.
        kind: of the mask; a random one is drawn (see `drawn`), a softness one has no layers.
        temperatures: of a softness mask, one for each ratio.
        progress: done, total, note.

    Raises:
        ModelError: a layer cannot be masked; names it and says why.
    """
    entries = checkpoint_tensors(folder)
    if kind == "softness":
        assert temperatures is not None
        soft = dict(sorted(zip(ratios, temperatures, strict=True)))
        return Thresholds(
            ratios=tuple(soft),
            layers={},
            parameters=sum(entry.size for entry in entries.values()),
            weights=_digest(entries.values()),
            kind=kind,
            temperatures=tuple(soft.values()),
        )
    model = meta_model(load_config(str(folder)))
    layers = maskable_layers(model, parts=parts, include=include or ("*",), exclude=exclude)
    stored = stored_layers(model, entries, layers)
    ratios = tuple(sorted(ratios))
    found = {}
    done, total = 0, sum(layer.size for layer in layers)
    for layer in layers:
        place = stored[layer.parameter]
        of = tensor_thresholds if kind == "magnitude" else drawn_thresholds
        measured = of(place.entry, ratios, matrix=layer.matrix)
        found[layer.name] = replace(measured, transposed=place.transposed)
        done += layer.size
        progress(done, total, f"{len(found)} of {len(layers)} layers")
    return Thresholds(
        ratios=ratios,
        layers=found,
        parameters=sum(entry.size for entry in entries.values()),
        weights=_digest(entries.values()),
        kind=kind,
    )


def _digest(entries: Iterable[TensorEntry]) -> str:
    """Fingerprint of the tensors' names, dtypes and shapes."""
    rows = sorted(f"{e.name} {e.dtype} {e.shape}" for e in entries)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()
