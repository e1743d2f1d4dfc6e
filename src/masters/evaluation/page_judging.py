"""The page's section on the judge: rewards of the responses, and verdicts that are missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from masters.evaluation import plots
from masters.evaluation.markup import (
    figure,
    file_name,
    paragraph,
    section,
    table,
)
from masters.evaluation.readings import Row, merge_counts, reward_counts

if TYPE_CHECKING:
    from masters.artifacts import RunInfo


def judging_section(
    report: dict[str, Any], runs: Sequence[RunInfo], pictures: dict[str, bytes]
) -> str:
    """Rewards of the stored responses, and every verdict that is missing."""
    title = "How the responses were judged"
    counts = merge_counts(reward_counts(runs))
    if not counts:
        said = paragraph("No responses were judged in these runs.")
        return section(title, said, *_missing(report), anchor="judging")
    figures = []
    for phase in dict.fromkeys(count.phase for count in counts):
        by_source = {count.source: count for count in counts if count.phase == phase}
        png = plots.reward_histogram(by_source.get("teacher"), by_source.get("student"))
        pictures[f"rewards-{file_name(phase)}.png"] = png
        caption = ". ".join(
            f"{count.source.capitalize()}: {count.total:,} responses, "
            + (f"{count.missing:,} without a verdict" if count.missing else "all with a verdict")
            for count in by_source.values()
        )
        figures.append(figure(png, f"Phase {phase}", caption + "."))
    words = (
        "Accuracy rewards of the stored responses, by who gave them. Responses that several runs "
        "share are counted once. A missing verdict is neither right nor wrong: such a response "
        "leaves its group before training."
    )
    plotted = f'<div class="plots">{"".join(figures)}</div>'
    return section(title, paragraph(words), plotted, *_missing(report), anchor="judging")


def _missing(report: dict[str, Any]) -> list[str]:
    """The verdicts that are missing, stage by stage; one sentence where none is."""
    judged: list[Row] = report["verdicts"]["judged"]
    evaluated: list[Row] = report["verdicts"]["evaluated"]
    responses = sum(row["responses"] for row in judged)
    answers = sum(row["answers"] for row in evaluated)
    lacking = sum(row["missing"] for row in (*judged, *evaluated))
    asked = f"{responses:,} responses and {answers:,} answers"
    if not lacking:
        return ["<h3>Missing verdicts</h3>", paragraph(f"None: all {asked} have a verdict.")]
    words = (
        f"{lacking:,} of {asked} have no verdict: the judge gave none that could be read. They "
        "count neither as right nor as wrong. Such a response leaves its group before training; "
        "such an answer is left out of accuracies and of paired comparisons."
    )
    parts = ["<h3>Missing verdicts</h3>", paragraph(words)]
    if judged:
        heads = ("judge stage", "judge", "responses", "missing", "share", "why")
        parts.append(table(heads, [_judged_cells(row) for row in judged], "verdicts"))
    if any(row["missing"] for row in evaluated):
        several = len({row["seed"] for row in evaluated}) > 1
        heads = ("evaluation", "answers", "missing", "share", "of these cut at the limit")
        rows = [_evaluated_cells(row, several=several) for row in evaluated]
        parts.append(table(heads, rows, "verdicts"))
        parts.append(
            paragraph(
                "A table of answers keeps no reason for a missing verdict; an answer that was cut "
                "at the limit of tokens is often one.",
                "note",
            )
        )
    elif answers:
        parts.append(paragraph(f"Of the {answers:,} answers that were evaluated none lacks one."))
    return parts


def _judged_cells(row: Row) -> tuple[str, ...]:
    why = "; ".join(
        f"{reason or 'no reason'}: {count:,}" for reason, count in row["reasons"].items()
    )
    return (
        row["stage"], ", ".join(row["judges"]), f"{row['responses']:,}", f"{row['missing']:,}",
        _share(row), why,
    )  # fmt: skip


def _evaluated_cells(row: Row, *, several: bool) -> tuple[str, ...]:
    name = f"{row['run']}, seed {row['seed']}" if several else row["run"]
    cut = f"{row['cut']:,}" if row["missing"] else ""
    return name, f"{row['answers']:,}", f"{row['missing']:,}", _share(row), cut


def _share(row: Row) -> str:
    return f"{100 * row['share']:.2f} %"
