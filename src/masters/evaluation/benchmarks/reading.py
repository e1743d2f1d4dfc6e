"""A model's scores from a folder, whichever harness wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from masters.errors import DataError
from masters.evaluation.benchmarks.catalogue import Benchmark, titles
from masters.evaluation.benchmarks.kit_output import holds_kit_output, read_kit_output
from masters.evaluation.benchmarks.lmms_output import holds_lmms_output, read_lmms_output
from masters.evaluation.benchmarks.running import RECORD, read_recorded
from masters.evaluation.benchmarks.scores import Score


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model of the table: its label and its scores by benchmark."""

    label: str
    scores: dict[str, Score]


def read_row(words: str, wanted: Sequence[Benchmark] | None = None) -> Row:
    """A row from ``LABEL=FOLDER`` or ``FOLDER``, whose label is then the folder's name.

    Args:
        wanted: benchmarks that must be there; others are left out. None: whatever is there.

    Raises:
        DataError: there is no such folder, nothing in it can be read, or a benchmark is missing.
    """
    label, folder = _parted(words)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected FOLDER or LABEL=FOLDER")
    scores = _scores(folder)
    if wanted is not None:
        if missing := [benchmark for benchmark in wanted if benchmark.name not in scores]:
            raise DataError(
                f"{folder}: holds no {titles(missing)}; it has {', '.join(scores) or 'nothing'}. "
                "Run these benchmarks, or ask for fewer with --benchmarks."
            )
        scores = {benchmark.name: scores[benchmark.name] for benchmark in wanted}
    if not scores:
        raise DataError(f"{folder}: holds none of the paper's benchmarks, or none that is done")
    return Row(label=label, scores=scores)


def _parted(words: str) -> tuple[str, Path]:
    """A folder may have "=" in its name; a label may not."""
    label, mark, folder = words.partition("=")
    if mark and not Path(words).is_dir():
        return label, Path(folder)
    return Path(words).resolve().name, Path(words)


def _scores(folder: Path) -> dict[str, Score]:
    recorded = sorted(path.parent for path in folder.glob(f"*/{RECORD}"))
    if (folder / RECORD).is_file():
        recorded = [folder]
    if recorded:
        return {name: score for one in recorded for name, score in read_recorded(one).items()}
    lmms, kit = holds_lmms_output(folder), holds_kit_output(folder)
    if lmms and kit:
        raise DataError(
            f"{folder}: holds results of lmms-eval and of VLMEvalKit, which count differently; "
            "name the folder of one"
        )
    return read_kit_output(folder) if kit else read_lmms_output(folder)
