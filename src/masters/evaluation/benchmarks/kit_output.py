"""Reads what VLMEvalKit leaves in its working folder.

    WORK/<model>/<evaluation>/status.json    metrics of each data set, judge and errors
    WORK/<model>/status.json                 a link to the newest; not read

Its logs of single questions are spreadsheets and pickles, which are not read: scores from here have
no interval and no paired comparison.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from masters.errors import DataError
from masters.evaluation.benchmarks.catalogue import BENCHMARKS, Benchmark
from masters.evaluation.benchmarks.scores import Score

STATUS = "status.json"


def holds_kit_output(folder: Path) -> bool:
    """Whether a status of VLMEvalKit's lies anywhere below."""
    return next(_status_files(folder), None) is not None


def read_kit_output(folder: Path, *, version: str = "") -> dict[str, Score]:
    """The scores by benchmark, of every benchmark whose data sets are all there.

    Args:
        folder: VLMEvalKit's ``--work-dir``, of one model.
        version: its commit; what status.json records where none is given.

    Raises:
        DataError: there is no status.json, one is cut, a data set is there twice, failed or was
            skipped, or lacks its metric.
    """
    sets: dict[str, tuple[Path, Mapping[str, Any], str]] = {}
    for file in _status_files(folder):
        content = _read(file)
        for name, status in content["datasets"].items():
            if name in sets:
                raise DataError(
                    f"{folder}: two runs of {name}, {sets[name][0]} and {file}; expected one. "
                    "Name the folder of one run, or move the other."
                )
            sets[name] = (file, status, version or str(content.get("commit") or ""))
    if not sets:
        raise DataError(
            f"{folder}: holds no results of VLMEvalKit; expected <model>/<evaluation>/{STATUS}"
        )
    scores = {}
    for benchmark in BENCHMARKS:
        found = [name for name in benchmark.kit if name in sets]
        if not found:
            continue
        if missing := [name for name in benchmark.kit if name not in sets]:
            raise DataError(
                f"{folder}: {benchmark.name} has {', '.join(found)} but not {', '.join(missing)}. "
                "Run the benchmark again."
            )
        values = [_value(benchmark, name, *sets[name][:2]) for name in found]
        file, status, commit = sets[found[0]]
        judge = str(status.get("judge_model") or "")
        scores[benchmark.name] = Score(
            benchmark=benchmark, value=sum(values) / len(values), judge=judge,
            harness=f"VLMEvalKit {commit}".strip(), source=file,
        )  # fmt: skip
    return scores


def _status_files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob(STATUS)) if not path.is_symlink())


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: is no whole JSON ({error}). Run the benchmark again.") from None
    if not isinstance(content, dict) or not isinstance(content.get("datasets"), dict):
        raise DataError(f'{file}: has no "datasets"; expected VLMEvalKit\'s status of a run')
    return content


def _value(benchmark: Benchmark, name: str, file: Path, status: Mapping[str, Any]) -> float:
    """The data set's metric as a share of a perfect score."""
    for key in ("error_message", "skip_reason"):
        if status.get(key):
            raise DataError(f"{file}: {name} was not scored: {status[key]}. Run it again.")
    if status.get("status") != "done":
        raise DataError(f"{file}: {name} is at {status.get('status')!r}; expected 'done'")
    metrics = status.get("metrics") or {}
    value = metrics.get(benchmark.kit_metric)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(
            f"{file}: {name} has no number {benchmark.kit_metric!r} but "
            f"{', '.join(metrics) or 'no metric'}; expected what the pinned VLMEvalKit reports"
        )
    if not 0 <= value <= benchmark.kit_full:
        raise DataError(
            f"{file}: {benchmark.kit_metric} of {name} is {value}; expected 0 to "
            f"{benchmark.kit_full:g}"
        )
    return value / benchmark.kit_full
