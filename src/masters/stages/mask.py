"""Stage 1: teacher -> thresholds of every masked layer at every ratio."""

from __future__ import annotations

from typing import Any

from masters.artifacts import StageContext, fingerprint
from masters.errors import ModelError
from masters.models.checkpoint import checkpoint_tensors
from masters.models.layers import maskable_layers, meta_model
from masters.models.load import load_config
from masters.specs import MaskSpec
from masters.stages.opening import model_folder
from masters.teachers.thresholds import Thresholds, save_thresholds, tensor_thresholds


def run(spec: MaskSpec, context: StageContext) -> dict[str, Any]:
    """Writes ``thresholds.json``: one pass over the checkpoint, one tensor in memory at a time."""
    folder = model_folder(spec.teacher, context.inputs)
    names = maskable_layers(
        meta_model(load_config(str(folder))),
        include=spec.include or ("*",),
        exclude=spec.exclude,
    )
    entries = checkpoint_tensors(folder)
    ratios = tuple(sorted(spec.ratios))
    layers = {}
    bytes_read = 0
    for done, name in enumerate(names):
        tensor = f"{name}.weight"
        if tensor not in entries:
            raise ModelError(
                f"{folder}: layer {name} has no tensor {tensor} in the checkpoint; expected "
                "checkpoint names equal to module names. Families that transformers renames on "
                "load cannot be masked yet; set mask: null to distil without a mask"
            )
        layers[name] = tensor_thresholds(entries[tensor], ratios)
        bytes_read += entries[tensor].stop - entries[tensor].start
        context.progress(done + 1, len(names), f"{bytes_read / 1e6:.0f} MB")
    thresholds = Thresholds(
        ratios=ratios,
        layers=layers,
        parameters=sum(entry.size for entry in entries.values()),
        weights=fingerprint(sorted((e.name, e.dtype, e.shape) for e in entries.values())),
    )
    save_thresholds(thresholds, context.folder / "thresholds.json")
    return {
        "layers": len(layers),
        "bytes_read": bytes_read,
        "share_of_zeros": {str(r): thresholds.share_of_zeros(r) for r in ratios},
    }
