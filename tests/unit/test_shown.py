"""Hostile text in terminals and Markdown: shown as it is, steering nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from masters.evaluation.benchmarks.catalogue import chosen
from masters.evaluation.benchmarks.reading import read_row
from masters.evaluation.benchmarks.table import markdown_table, print_table, table_json
from masters.evaluation.comparison_view import Sheet
from masters.plan import make_plan
from masters.recipe import load_recipe
from masters.show import line
from masters.shown import markdown, shown
from masters.verdicts_view import missing_lines, verdict_table

SAMPLE = Path(__file__).parents[1] / "samples" / "lmms_eval" / "start"
HOSTILE = "[/INST] [bold]x[/bold] \x1b[2J\u202ey <script>|"
SEEN = "[/INST] [bold]x[/bold] \u241b[2J\ufffdy <script>|"


def test_shown() -> None:
    assert shown(HOSTILE) == SEEN
    assert shown("a\tb\nc \x7f\x9b é 猫") == "a\tb\nc \ufffd\ufffd é 猫"


def test_a_sheet_shows_names_and_notes_as_they_are() -> None:
    sheet = Sheet(title=HOSTILE, heads=("a", "b"), rows=((HOSTILE, "1"),), notes=(HOSTILE,))
    console = Console(width=200)
    with console.capture() as capture:
        console.print(sheet.terminal())
    assert capture.get().count(SEEN) == 3
    assert sheet.markdown().count(r"\[bold\]x\[/bold\]") == 3
    assert "<script" not in sheet.markdown().replace(r"\<", "")
    assert {row.count("|") - row.count(r"\|") for row in sheet.markdown().split("\n")[2:5]} == {3}


def test_one_line_of_markdown() -> None:
    assert markdown("a|b\r\n`c` \\") == r"a\|b \`c\` \\"


def test_a_value_of_show_steers_no_terminal() -> None:
    console = Console(width=200)
    with console.capture() as capture:
        line(console, "explained", HOSTILE)
    assert SEEN in capture.get()


def test_reasons_with_markup_are_counted_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reason may hold what a server said; rich's markup in it stopped the command."""
    reason = f"no reply: {HOSTILE}"
    metrics = {
        "responses": 2, "missing": 1, "judges": {"server:[/x]": 2},
        "reasons": Counter({reason: 1, "right": 1}), "missing_reasons": {reason: 1},
    }  # fmt: skip
    plan = make_plan(load_recipe("masters", "tiny"), tmp_path)
    monkeypatch.setattr("masters.verdicts_view.is_done", lambda folder: True)
    monkeypatch.setattr("masters.verdicts_view.read_record", lambda folder: {"metrics": metrics})
    console = Console(width=250)
    with console.capture() as capture:
        console.print(verdict_table(plan))
    assert "server:[/x]" in capture.get() and SEEN in capture.get()
    assert SEEN in missing_lines([plan])[0]


def test_a_label_of_the_benchmarks_is_one_cell() -> None:
    content = table_json([read_row(f"{HOSTILE}={SAMPLE}", chosen("ai2d"))])
    console = Console(width=300)
    with console.capture() as capture:
        print_table(content, console)
    assert SEEN in capture.get()
    heads, _, row = markdown_table(content).split("\n")[:3]
    assert row.count("|") - row.count(r"\|") == heads.count("|") == 3
