"""Measurements kept beside each other in a file, so that a killed or widened run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from masters.artifacts import fingerprint
from masters.calibration.recommendation import Measured
from masters.errors import StageError
from masters.evaluation.statistics import Interval

FORMAT = 1
"""Raised when the code starts to give other numbers for the same settings."""
_DIGITS = 12
_BITS = "01"


class Kept:
    """``measured-<fingerprint>.jsonl``: one line a measurement, written as soon as it is there.

    A line that a kill cut short is dropped and measured again.

    Args:
        folder: where the file is.
        settings: all that a measurement depends on, as JSON values; other settings, other file.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        digest = fingerprint({"format": FORMAT, **settings})
        self.path = folder / f"measured-{digest[:_DIGITS]}.jsonl"
        self.answers: list[list[int]] | None = None
        self._found: dict[tuple[int, str], Measured] = {}
        self._read()

    def get(self, ratio: int, group: str = "") -> Measured | None:
        """The measurement, if it is there."""
        return self._found.get((ratio, group))

    def add(self, row: Measured, answers: list[list[int]] | None = None) -> None:
        """Keeps a measurement; with that of the whole teacher, the token ids of its answers."""
        line: dict[str, Any] = {
            "ratio": row.ratio,
            "group": row.group,
            "correct": "".join(_BITS[right] for right in row.correct),
            "changed": row.changed,
            "entropy": row.entropy,
            "jsd": row.jsd,
            "zeros": row.zeros,
            "seconds": row.seconds,
        }
        if answers is not None:
            line["answers"] = self.answers = answers
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._found[row.ratio, row.group] = row

    def _read(self) -> None:
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with open(self.path, "r+b") as file:
                file.truncate(len(whole))
        for number, text in enumerate(whole.decode(errors="replace").splitlines(), start=1):
            try:
                line = json.loads(text)
                row = Measured(
                    ratio=line["ratio"],
                    group=line["group"],
                    correct=tuple(bit == "1" for bit in line["correct"]),
                    changed=line["changed"],
                    entropy=Interval(*line["entropy"]),
                    jsd=Interval(*line["jsd"]),
                    zeros=line["zeros"],
                    seconds=line["seconds"],
                )
            except (ValueError, KeyError, TypeError) as error:
                raise StageError(
                    f"{self.path}:{number}: no measurement ({error}); expected a line that masters "
                    "calibrate wrote. Delete the file and run the same command again"
                ) from None
            self._found[row.ratio, row.group] = row
            self.answers = line.get("answers", self.answers)
