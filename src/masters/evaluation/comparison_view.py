"""Evaluations and their comparison for people: on the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from masters.evaluation.categories import Row
from masters.evaluation.comparison import Comparison, Line
from masters.evaluation.statistics import Interval
from masters.shown import markdown, shown

_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table as plain cells: the first column is text, the others are numbers.

    Args:
        strong: indices of rows that stand out.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    strong: frozenset[int] = frozenset()

    def terminal(self) -> Table:
        """As a table of rich."""
        table = Table(
            title=Text(shown(self.title)),
            caption=Text(shown("\n".join(self.notes))),
            title_justify="left",
            caption_justify="left",
        )
        for index, head in enumerate(self.heads):
            table.add_column(Text(head), justify="right" if index else "left", no_wrap=not index)
        for index, row in enumerate(self.rows):
            style = "bold" if index in self.strong else ""
            table.add_row(*(Text(shown(cell)) for cell in row), style=style)
        return table

    def markdown(self) -> str:
        """As a Markdown table with its notes below."""
        lines = [f"**{markdown(self.title)}**", ""]
        lines.append(_piped(self.heads))
        lines.append("| --- |" + " ---: |" * (len(self.heads) - 1))
        lines += [_piped(row) for row in self.rows]
        lines += ["", *(f"- {markdown(note)}" for note in self.notes)]
        return "\n".join(lines)


def comparison_sheet(found: Comparison) -> Sheet:
    """One line for all questions and one for each category."""
    several = len({line.by for line in found.lines if line.by != "all"}) > 1
    heads = ("questions", "n", "A", "B", f"B {_MINUS} A", "95 % interval")
    heads += ("gained", "lost", "p", "verdict")
    return Sheet(
        title=f"A: {found.first.name}   B: {found.second.name}",
        heads=heads,
        rows=tuple(_comparison_cells(line, several=several) for line in found.lines),
        notes=tuple(comparison_notes(found)),
        strong=frozenset({0}),
    )


def comparison_notes(found: Comparison) -> list[str]:
    """What a reader has to know: the test, the correction, what was left out, what differs."""
    gained = "B scores more and A more" if found.graded else "B alone and A alone gets right"
    corrected = len(found.lines) - 1
    said = f"p: {found.test}"
    if corrected > 1:
        said += f"; of categories, corrected for {corrected} of them (Holm)"
    notes = [
        f"{said}. A difference is called one at p <= 0.05.",
        f"gained, lost: questions that {gained}.",
    ]
    pairing = found.pairing
    for ids, what in (
        (pairing.only_first, "only A was asked"),
        (pairing.only_second, "only B was asked"),
        (pairing.other_label, "have another label"),
        (pairing.no_verdict, "have no verdict"),
    ):
        if ids:
            notes.append(f"Left out: {len(ids):,} questions that {what}.")
    for key, (first, second) in found.settings.items():
        notes.append(f"Asked or judged differently: {key} is {first!r} for A, {second!r} for B.")
    return notes


def evaluation_sheet(rows: Mapping[str, Sequence[Row]]) -> Sheet:
    """Accuracy of one or several evaluations, by category.

    Args:
        rows: name of the evaluation -> what `categories.score_tables` gives.
    """
    cells: list[tuple[str, ...]] = []
    for name, found in rows.items():
        several = len({row["by"] for row in found if row["by"] != "all"}) > 1
        for row in found:
            interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
            what = _what(row["by"], row["category"], several=several)
            line = (what, percent(row["value"]), interval, f"{row['n']:,}")
            cells.append((name, *line) if len(rows) > 1 else line)
    missing = sum(row["missing"] for found in rows.values() for row in found if row["by"] == "all")
    notes = ["95 % intervals over questions"]
    if missing:
        notes.append(f"{missing:,} answers have no verdict and are left out")
    heads = ("questions", "accuracy", "interval", "n")
    return Sheet(
        title="Accuracy" if len(rows) > 1 else f"Accuracy of {next(iter(rows))}",
        heads=("model", *heads) if len(rows) > 1 else heads,
        rows=tuple(cells),
        notes=tuple(notes),
        strong=frozenset(i for i, row in enumerate(r for f in rows.values() for r in f)
                         if row["by"] == "all"),
    )  # fmt: skip


def percent(value: float) -> str:
    """A share in per cent."""
    return f"{100 * value:.1f}"


def _comparison_cells(line: Line, *, several: bool) -> tuple[str, ...]:
    p = "< 0.0001" if line.adjusted < 1e-4 else f"{line.adjusted:.4f}"
    return (
        _what(line.by, line.category, several=several),
        f"{line.n:,}",
        percent(line.first.value),
        percent(line.second.value),
        _signed(line.difference.value),
        _bounds(line.difference),
        f"{line.gained:,}",
        f"{line.lost:,}",
        p,
        line.verdict,
    )


def _what(by: str, category: str, *, several: bool) -> str:
    return category if by == "all" or not several else f"{by}: {category}"


def _bounds(interval: Interval) -> str:
    if interval.low != interval.low:  # a single question gives none
        return ""
    return f"{_signed(interval.low)} to {_signed(interval.high)}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", _MINUS)


def _piped(cells: Sequence[str]) -> str:
    return "| " + " | ".join(markdown(cell) for cell in cells) + " |"
