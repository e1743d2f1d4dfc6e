"""Where a checkpoint keeps each parameter of the model that transformers makes of it.

Several families are renamed on load (InternVL, LLaVA, Qwen2.5-VL ...), some weights are transposed
or put together. transformers' own conversion table is asked, so the answer is that of the load.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from masters.errors import ModelError
from masters.models.checkpoint import TensorEntry
from masters.models.layers import Layer


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One parameter on disk.

    Args:
        entry: its tensor.
        transposed: the last two axes are swapped on load.
    """

    entry: TensorEntry
    transposed: bool


def stored_layers(
    model: Any, entries: Mapping[str, TensorEntry], layers: Iterable[Layer]
) -> dict[str, Stored]:
    """Where each of these layers lies in the checkpoint, by the parameter's name.

    Args:
        model: on any device, meta included.
        entries: the checkpoint's tensors.
        layers: of ``maskable_layers(model)``.

    Raises:
        ModelError: a layer's tensor is absent, of another shape, or put together on load from
            tensors that do not correspond to it one to one.
    """
    sources = parameter_sources(model, entries)
    parameters = dict(model.named_parameters())
    return {
        name: _stored(name, tuple(parameters[name].shape), sources.get(name, []), entries)
        for name in dict.fromkeys(layer.parameter for layer in layers)
    }


def parameter_sources(model: Any, names: Iterable[str]) -> dict[str, list[str]]:
    """Parameter of the model -> the checkpoint tensors that transformers makes it from."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    mapping = get_model_conversion_mapping(model)
    converters = [item for item in mapping if isinstance(item, WeightConverter)]
    renamings: Any = [item for item in mapping if not isinstance(item, WeightConverter)]
    state = model.state_dict()
    sources: dict[str, list[str]] = {}
    for name in names:
        renamed, _ = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        sources.setdefault(renamed, []).append(name)
    return sources


def _stored(
    name: str,
    shape: tuple[int, ...],
    sources: list[str],
    entries: Mapping[str, TensorEntry],
) -> Stored:
    where = next(iter(entries.values())).file.parent if entries else "the checkpoint"
    if not sources:
        raise ModelError(
            f"{where}: no tensor of the checkpoint becomes {name} on load; expected one. Download "
            "it again, or leave the layer whole with mask.exclude"
        )
    if len(sources) > 1:
        raise ModelError(
            f"{where}: {name} is put together on load from {len(sources)} tensors "
            f"({', '.join(sources[:2])} ...); expected one tensor for each matrix or stack of "
            "experts. Save the model anew with transformers, or leave it whole with mask.exclude"
        )
    entry = entries[sources[0]]
    if entry.shape == shape:
        return Stored(entry=entry, transposed=False)
    if len(shape) == 3 and entry.shape == (shape[0], shape[2], shape[1]):
        return Stored(entry=entry, transposed=True)
    raise ModelError(
        f"{where}: {entry.name} has shape {entry.shape}, {name} has {shape} in the model; expected "
        "the same, or a stack of transposed matrices. Leave the layer whole with mask.exclude"
    )
