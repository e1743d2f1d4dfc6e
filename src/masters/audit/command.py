"""`masters judge --audit`: a person marks a sample in the terminal, then sees who agrees."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console
from rich.text import Text

from masters.artifacts import atomic_write_text
from masters.audit.agreement import UNSURE, agreement_table, agreements
from masters.audit.marks import MARKS, keep_mark, read_answers, read_marks, write_sample
from masters.audit.sample import AuditItem, Sample, draw
from masters.data.answers import accepted_answers
from masters.data.questions import Questions
from masters.data.sources import open_questions
from masters.plan import Plan
from masters.show import line, show_images

FOLDER = "audit"
_KEYS = {mark[0]: mark for mark in MARKS}
_QUIT = "q"

Ask = Callable[[str], str]
"""Shows a prompt and returns what was typed; raises EOFError where nobody is there."""


def audit(
    plan: Plan,
    count: int,
    console: Console,
    *,
    answers: Path | None = None,
    ask: Ask | None = None,
) -> None:
    """Draws the sample, collects the marks that are missing and prints who agrees with whom.

    Marks are kept in ``OUT/audit/marks.jsonl`` as they are given, for every recipe of OUT. The
    sample lies beside it, to be filled in elsewhere and handed in as ``answers``.

    Args:
        plan: its judge stages are done.
        count: size of the sample.
        answers: a file with marks, instead of a person at the terminal.
        ask: None: the terminal, where there is one.

    Raises:
        StageError: nothing was judged.
        DataError: a file of marks is no such file.
    """
    sample = draw(plan, count, plan.seed)
    kept = plan.out / FOLDER / "marks.jsonl"
    given = read_marks(kept)
    if answers is not None:
        found = read_answers(answers)
        for item in sample.items:
            if item.id in found and found[item.id] != given.get(item.id):
                keep_mark(kept, item, found[item.id])
                given[item.id] = found[item.id]
        others = len(found.keys() - {item.id for item in sample.items})
        if others:
            said = f"{answers}: {others} marks are of items outside this sample; left out"
            console.print(said, markup=False, highlight=False, soft_wrap=True)
    elif ask is not None or sys.stdin.isatty():
        _ask_person(plan, sample, given, kept, console, ask or input)
    path = plan.out / FOLDER / f"{plan.name}.sample.jsonl"
    write_sample(path, sample.items, given)
    _conclude(plan, sample, given, path, console)


def _ask_person(
    plan: Plan, sample: Sample, given: dict[str, str], kept: Path, console: Console, ask: Ask
) -> None:
    """Asks for every mark that is missing, until all are there or the person stops."""
    left = [item for item in sample.items if item.id not in given]
    questions = _questions(plan)
    for number, item in enumerate(left, start=len(sample.items) - len(left) + 1):
        console.print()
        console.print(Text(f"{number} of {len(sample.items)}", style="bold"))
        _show(plan, questions, item, console)
        mark = _answer(ask)
        if mark is None:
            console.print("stopped; the same command goes on here")
            return
        keep_mark(kept, item, mark)
        given[item.id] = mark


def _answer(ask: Ask) -> str | None:
    """A mark; None where the person wants to stop."""
    while True:
        try:
            typed = ask("[r]ight, [w]rong, [u]nsure, [q]uit: ").strip().lower()
        except EOFError:
            return None
        if typed[:1] == _QUIT:
            return None
        if typed[:1] in _KEYS:
            return _KEYS[typed[:1]]


def _questions(plan: Plan) -> Questions:
    """What the plan trains on: all its judge stages are about these."""
    spec = next(stage.spec for stage in plan.stages if stage.kind == "judge")
    return open_questions(getattr(spec, "data"))  # noqa: B009


def _show(plan: Plan, questions: Questions, item: AuditItem, console: Console) -> None:
    """The item without what judge and rule said: the mark should be the person's own."""
    question = item.question
    line(console, "asked", question.text)
    if question.choices:
        line(console, "choices", " | ".join(question.choices))
    show_images(plan, questions, question, console)
    for label in accepted_answers(question):
        line(console, "label", label)
    line(console, "response", item.response)


def _conclude(
    plan: Plan, sample: Sample, given: Mapping[str, str], path: Path, console: Console
) -> None:
    marked = [item for item in sample.items if item.id in given]
    unsure = sum(given[item.id] == UNSURE for item in marked)
    console.print()
    console.print(
        f"{len(sample.items)} of {sample.judged:,} judged responses, "
        f"{len(marked)} marked, {unsure} of them unsure; "
        f"{sample.missing:,} without a verdict are not in the sample",
        highlight=False,
    )
    found = agreements(sample.items, given)
    console.print(agreement_table(found))
    if len(marked) < len(sample.items):
        console.print(
            f"to mark the rest: the same command in a terminal, or fill in mark in {path} and hand "
            "it in with --answers",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
    report = {
        "sample": len(sample.items),
        "judged": sample.judged,
        "missing": sample.missing,
        "marked": len(marked),
        "unsure": unsure,
        "agreements": [one.as_json() for one in found],
    }
    target = plan.out / FOLDER / f"{plan.name}.agreement.json"
    atomic_write_text(target, json.dumps(report, indent=1) + "\n")
