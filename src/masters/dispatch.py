"""From a stage's spec to the module that computes it, in whatever process."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, assert_never

from masters.artifacts import StageContext
from masters.specs import (
    AnySpec,
    EvaluateSpec,
    GenerateSpec,
    JudgeSpec,
    MaskSpec,
    ReportSpec,
    ScoreSpec,
    SignalSpec,
    StageSpec,
    TrainSpec,
)
from masters.workers import configure


def dispatch_stage(spec: AnySpec, context: StageContext) -> Mapping[str, Any]:
    """Runs one stage; returns the metrics its record keeps."""
    if isinstance(spec, ReportSpec):
        from masters.stages import report

        return report.run(spec, context)
    configure(context.runtime)
    from masters.stages.out_of_memory import explained

    with explained(spec, context.runtime):
        return _computed(spec, context)


def _computed(spec: StageSpec, context: StageContext) -> Mapping[str, Any]:
    match spec:
        case TrainSpec():
            from masters.stages import train

            return train.run(spec, context)
        case MaskSpec():
            from masters.stages import mask

            return mask.run(spec, context)
        case GenerateSpec():
            from masters.stages import generate

            return generate.run(spec, context)
        case JudgeSpec():
            from masters.stages import judge

            return judge.run(spec, context)
        case ScoreSpec():
            from masters.stages import score

            return score.run(spec, context)
        case SignalSpec():
            from masters.stages import signal

            return signal.run(spec, context)
        case EvaluateSpec():
            from masters.stages import evaluate

            return evaluate.run(spec, context)
        case _:
            assert_never(spec)


def quiet_libraries() -> None:
    """Silences the chatter of libraries in this process and its children."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for name, value in {
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }.items():
        os.environ.setdefault(name, value)
