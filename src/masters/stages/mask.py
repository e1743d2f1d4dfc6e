"""Stage 1: teacher -> thresholds of every masked layer at every ratio."""

from __future__ import annotations

import time
from typing import Any

from masters.artifacts import StageContext
from masters.specs import MaskSpec
from masters.stages.opening import model_folder
from masters.teachers.measuring import measure_thresholds
from masters.teachers.thresholds import save_thresholds


def run(spec: MaskSpec, context: StageContext) -> dict[str, Any]:
    """Writes ``thresholds.json``: one pass over the checkpoint in chunks."""
    begin = time.perf_counter()
    thresholds = measure_thresholds(
        model_folder(spec.teacher, context.inputs),
        spec.ratios,
        parts=spec.parts,
        include=spec.include,
        exclude=spec.exclude,
        kind=spec.masking or "magnitude",
        temperatures=spec.temperatures,
        progress=context.progress,
    )
    save_thresholds(thresholds, context.folder / "thresholds.json")
    return {
        "layers": len(thresholds.layers),
        "masked_parameters": sum(layer.size for layer in thresholds.layers.values()),
        "parameters": thresholds.parameters,
        "seconds": time.perf_counter() - begin,
        "share_of_zeros": {str(r): thresholds.share_of_zeros(r) for r in thresholds.ratios},
    }
