"""How fast models answer, as `masters speed` measured it: ``speed.json`` and its table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from masters.errors import StageError
from masters.evaluation.comparison_view import Sheet
from masters.evaluation.markup import parameters

SCHEMA = 1
SPEED = "speed.json"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The median over repeats with the least and the largest."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(median=median(values), least=min(values), most=max(values))


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One model at one batch size.

    Args:
        model: its name.
        role: student, teacher, or model where no recipe says.
        parameters: all of its weights, vision tower included.
        batch: questions answered at a time.
        prompt_tokens: of the longest prompt of the batch, image tokens included.
        new_tokens: decoded for each question; end tokens do not stop them.
        encode: seconds to make a question and its images into tensors, on the host.
        first: seconds from there to the first token of the whole batch (prefill).
        decode: tokens a second after it, over the whole batch.
        answer: tokens a second from the prompts to the last token, over the whole batch.
        peak_bytes: most memory at a time: allocated on a CUDA device, weights included; on a CPU
            resident in the process; None where the system does not say.
    """

    model: str
    role: str
    parameters: int
    batch: int
    prompt_tokens: int
    new_tokens: int
    encode: Spread
    first: Spread
    decode: Spread
    answer: Spread
    peak_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """What one command measured on one machine.

    Args:
        machine: device, its name, threads, precision, attention.
        settings: tokens, repeats, warm-up, questions.
    """

    command: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    rows: tuple[Speed, ...]

    def as_json(self) -> dict[str, Any]:
        """The content of speed.json."""
        return {"schema": SCHEMA, **asdict(self), "rows": [asdict(row) for row in self.rows]}


def read_speed(out: Path) -> Speeds | None:
    """What OUT/speed.json says; None where there is none.

    Raises:
        StageError: it is damaged, or of another version.
    """
    path = out / SPEED
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        rows = tuple(_row(row) for row in content.pop("rows"))
        return Speeds(**content, rows=rows)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(
            f"{path}: no result of masters speed ({error}). Delete it and measure again"
        ) from None


def _row(row: dict[str, Any]) -> Speed:
    spreads = {key: Spread(**row[key]) for key in ("encode", "first", "decode", "answer")}
    return Speed(**{**row, **spreads})


def speed_sheet(found: Speeds) -> Sheet:
    """Models from the smallest to the largest at each batch size, against the largest one."""
    rows = sorted(found.rows, key=lambda row: (row.batch, row.parameters))
    largest = {row.batch: row for row in sorted(rows, key=lambda row: row.parameters)}
    heads = ("model", "size", "batch", "prompt", "first token (ms)", "tokens/s", "ratio", "MiB")
    machine = found.machine
    return Sheet(
        title=f"Speed on {machine['name']}",
        heads=heads,
        rows=tuple(
            (
                row.model if row.role in ("model", row.model) else f"{row.model} ({row.role})",
                parameters(row.parameters),
                str(row.batch),
                str(row.prompt_tokens),
                _spread(row.first, 1000),
                _spread(row.decode),
                f"{row.decode.median / largest[row.batch].decode.median:.2f}",
                "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f}",
            )
            for row in rows
        ),
        notes=(
            f"{machine['device']}, {machine['precision']}, {machine['threads']} threads; "
            f"{found.settings['new_tokens']} tokens, {found.settings['repeats']} repeats: median "
            "(least to most)",
            "prompt: tokens of the longest; first token: prefill, without encoding the image on "
            "the host; tokens/s: decoded after it, over the batch; ratio: to the largest model's",
        ),
    )


def _spread(spread: Spread, factor: float = 1.0) -> str:
    values = (factor * part for part in (spread.median, spread.least, spread.most))
    middle, least, most = (f"{value:.3g}" if value < 100 else f"{value:,.0f}" for value in values)
    return f"{middle} ({least} to {most})"
