"""The opening of the report page: what was distilled into what, and how far it got."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from masters.evaluation import markup
from masters.evaluation.evaluated import rank
from masters.evaluation.markup import paragraph, text
from masters.evaluation.readings import Row, difference_of, measure, recipe_models

if TYPE_CHECKING:
    from masters.artifacts import RunInfo


def headline(report: dict[str, Any], runs: Sequence[RunInfo]) -> str:
    """The page's title, its first paragraphs and the four numbers that matter most."""
    lines = {line["run"]: line for line in report["summary"]["runs"]}
    sizes = {role: model["parameters"] for role, model in report["models"].items()}
    own = [line for name, line in lines.items() if rank(name) == 1]
    best = max(own, key=lambda line: line["value"], default=None)
    parts = [
        '<p class="eyebrow">Masters · distillation report</p>',
        f"<h1>{_title(sizes)}</h1>",
        paragraph(_models_words(runs, sizes), "lead"),
    ]
    result = _result_words(report, lines, best, len(own))
    if result:
        parts.append(paragraph(result))
    parts.append(f'<div class="tiles">{"".join(_tiles(lines, best))}</div>')
    return f"<header>{''.join(parts)}</header>"


def _title(sizes: dict[str, int]) -> str:
    if {"student", "teacher"} <= sizes.keys():
        teacher, student = (markup.parameters(sizes[role]) for role in ("teacher", "student"))
        return f"From {teacher} to {student} parameters"
    return "What the models can do"


def _models_words(runs: Sequence[RunInfo], sizes: dict[str, int]) -> str:
    student, teachers = model_names(runs[0].recipe_yaml)
    small = f"The student is {text(student)}" if student else "The student"
    if "student" in sizes:
        small += f" ({sizes['student']:,} parameters)"
    if "teacher" not in sizes:
        return f"{small}." if student else "No teacher was evaluated in these runs."
    ratio = sizes["teacher"] / sizes["student"] if sizes.get("student") else 0.0
    large = " then ".join(text(name) for name in teachers) or "a teacher"
    times = f", {ratio:.1f} times its size" if ratio else ""
    verb = ", taught by" if student else " was taught by"
    return f"{small}{verb} {large} ({sizes['teacher']:,} parameters{times})."


def model_names(recipe_yaml: str) -> tuple[str | None, list[str]]:
    """Names of the student and the teachers as a resolved recipe gives them; None if it doesn't."""
    student, teachers = recipe_models(recipe_yaml)
    return _name(student), [name for teacher in teachers if (name := _name(teacher))]


def _name(model: Row) -> str | None:
    found = model.get("path") or model.get("tiny") or model.get("name")
    return str(found) if found else None


def _result_words(
    report: dict[str, Any], lines: dict[str, Any], best: dict[str, Any] | None, count: int
) -> str:
    start, teacher = lines.get("start"), lines.get("teacher")
    if best is None:
        return "No distilled student was evaluated in these runs."
    words = []
    if start is not None:
        asked = next(row["n"] for row in report["results"] if row["run"] == "start")
        before = f"Before, the student answered {markup.percent(start['value'])} of "
        before += f"{asked:,} test questions correctly"
        if measure([start]) != "accuracy":
            before = f"Before, the student's mean score on {asked:,} test questions was "
            before += markup.percent(start["value"])
        if teacher is not None:
            before += f", its teacher {markup.percent(teacher['value'])}"
        words.append(before + ".")
    name = f"<strong>{text(best['run'])}</strong>"
    which = f"The highest of the {count} runs, {name}," if count > 1 else name
    closed = best["gap_closed"]
    reached = f"{which} reached {markup.percent(best['value'])} "
    reached += f"(95 % interval {markup.interval(best['low'], best['high'])})"
    if closed is not None:
        reached += f", {_gap_words(closed)}"
    words.append(reached + ".")
    words.append(_difference_words(report, best["run"]))
    if count > 1:
        words.append("Being the highest of several is itself partly luck: read the intervals.")
    return " ".join(word for word in words if word)


def _gap_words(closed: float) -> str:
    if closed < 0:
        return "further from the teacher than before"
    return f"which closes {100 * closed:.0f} % of the gap to the teacher"


def _difference_words(report: dict[str, Any], run: str) -> str:
    found = [(name, difference_of(report, run, name)) for name in ("start", "sft")]
    rows = [(name, row) for name, row in found if row is not None]
    if not rows:
        return ""
    said = [
        f"{markup.points(row['difference'])} points over {text(name).replace('start', 'the start')}"
        f" ({markup.interval(row['low'], row['high'])})"
        for name, row in rows
    ]
    words = f"Question by question that is {' and '.join(said)}."
    if any(row["low"] <= 0 <= row["high"] for _, row in rows):
        words += " An interval that holds 0 leaves open whether there is any difference at all."
    return words


def _tiles(lines: dict[str, Any], best: dict[str, Any] | None) -> list[str]:
    tiles = []
    for name, words in (("teacher", "the teacher"), ("start", "the student, before")):
        if name in lines:
            tiles.append(_tile(markup.percent(lines[name]["value"]), words))
    if best is not None:
        tiles.append(
            _tile(markup.percent(best["value"]), f"the student, after {best['run']}", True)
        )
        if best["gap_closed"] is not None:
            share = f"{100 * best['gap_closed']:.0f} %".replace("-", "\N{MINUS SIGN}")
            tiles.append(_tile(share, "of the gap closed"))
    return tiles


def _tile(value: str, words: str, main: bool = False) -> str:
    kind = "tile main" if main else "tile"
    return f'<div class="{kind}"><b>{text(value)}</b><span>{text(words)}</span></div>'
