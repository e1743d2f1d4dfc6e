"""The page's tables: runs with their paired differences, the paper's layout, benchmarks, speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from masters.evaluation import markup, plots
from masters.evaluation.benchmarks.table import html_table
from masters.evaluation.beside import Beside
from masters.evaluation.evaluated import is_end, rank
from masters.evaluation.markup import figure, marked_cell, paragraph, section, table, text
from masters.evaluation.readings import Row, difference_of, measure
from masters.evaluation.speed import Speeds, speed_sheet


def legend(what: str, rows: Sequence[Row]) -> str:
    """What the marks mean, in escaped words.

    Args:
        what: the models that were compared with.
        rows: the differences that were tested as one family; at least one.
    """
    tests = text(" or ".join(dict.fromkeys(row["test"] for row in rows)))
    level = "at 5 %"
    if len(rows) > 1:
        level += f" for all {len(rows)} differences tested here together (Holm's correction)"
    return (
        '<span class="mark higher">▲</span> <span class="mark lower">▼</span> higher or lower than '
        f"{what} on the same questions: {tests} says so {level}. Without a mark the two are "
        "<em>not told apart</em>, which does not mean that they are equal."
    )


def runs_section(report: dict[str, Any]) -> str:
    """Every model with its interval, what it gained and how much of the gap it closed."""
    lines = report["summary"]["runs"]
    if not lines:
        words = "No model was evaluated over all kinds of questions."
        return section("Runs", paragraph(words), anchor="runs")
    left = min(line["low"] for line in lines)
    right = max(line["high"] for line in lines)
    margin = max(0.02, 0.04 * (right - left))
    scale = (max(0.0, left - margin), min(1.0, right + margin))
    guides = [line["value"] for line in lines if line["run"] in ("start", "teacher")]
    own = [line for line in lines if is_end(line["run"])]
    best = max(own, key=lambda line: line["value"])["run"] if own else None
    names = [name for name in ("start", "sft") if any(line["run"] == name for line in lines)]
    head = "".join(f'<th class="n">over {text(name)}</th>' for name in names)
    body = []
    for line in lines:
        kind = "best" if line["run"] == best else "" if rank(line["run"]) == 1 else "fixed"
        bar = markup.interval_bar(line["value"], line["low"], line["high"], scale, guides)
        gains = "".join(_gain_cell(report, line["run"], name) for name in names)
        gap = line["gap_closed"]
        closed = (
            f"{100 * gap:.0f} %".replace("-", "\N{MINUS SIGN}")
            if gap is not None and kind != "fixed"
            else ""
        )
        body.append(
            f'<tr class="{kind}"><th scope="row">{text(line["run"])}</th>'
            f'<td class="n">{markup.percent(line["value"])}</td>'
            f'{gains}<td class="n">{closed}</td>'
            f'<td class="n">{markup.interval(line["low"], line["high"])}</td><td>{bar}</td></tr>'
        )
    axis = f"{100 * scale[0]:.0f} % to {100 * scale[1]:.0f} %"
    shown = (
        '<div class="scroll"><table class="paper"><thead><tr><th>run</th>'
        f'<th class="n">{measure(lines)}</th>'
        f'{head}<th class="n">gap closed</th><th class="n">95 % interval</th>'
        f"<th>on a scale from {axis}</th></tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
    notes = [paragraph(words, "note") for words in _runs_notes(report, lines)]
    return section("Runs", shown, *notes, anchor="runs")


def _runs_notes(report: dict[str, Any], lines: Sequence[Row]) -> list[str]:
    rows = [
        row
        for line in lines
        for name in ("start", "sft")
        if (row := difference_of(report, line["run"], name)) is not None
    ]
    words = (
        f"{measure(lines).capitalize()} on the benchmark {text(lines[0]['benchmark'])}. "
        "Dashed lines: the student before any of this (start) and the teacher. "
        "<em>Over start</em> and <em>over sft</em> are "
        "paired differences in points, both models asked the same questions, with a 95 % "
        "interval below. Gap closed: the gain over the start as a share of the teacher's lead."
    )
    if len(report["seeds"]) > 1:
        words += (
            f" {len(report['seeds'])} seeds: means over seeds with a t-interval. A model that all "
            "seeds share was evaluated once and keeps the interval of its own questions."
        )
    else:
        words += f" One seed ({report['seed']}): the intervals cover the choice of questions only."
    if not rows:
        return [words]
    what = " or ".join(dict.fromkeys(row["against"] for row in rows))
    return [words, legend(text(what).replace("start", "the start"), rows)]


def _gain_cell(report: dict[str, Any], run: str, against: str) -> str:
    row = difference_of(report, run, against)
    if row is None:
        return '<td class="n"></td>'
    bounds = (
        "" if row["low"] is None else f"<small>{markup.interval(row['low'], row['high'])}</small>"
    )
    signed = f"{markup.points(row['difference'])}{markup.mark(row['verdict'], against)}"
    return f'<td class="n" title="p {markup.p_value(row["adjusted"])}">{signed}{bounds}</td>'


def tables_section(report: dict[str, Any]) -> str:
    """The paper's layout: models down, categories across, their mean last."""
    lines = report["summary"]["runs"]
    title = f"{measure(lines).capitalize()} by kind of question"
    if not report["tables"]:
        words = "The test questions are of one kind, so there is nothing to tell apart."
        return section(title, paragraph(words), anchor="kinds")
    parts = []
    for found in report["tables"]:
        if len(report["tables"]) > 1:
            parts.append(f"<h3>By {text(found['by'])}</h3>")
        parts.append(_paper_table(found, {line["run"]: line for line in lines}, report))
    tested = [
        cell["difference"]
        for found in report["tables"]
        for row in found["rows"]
        for cell in (*row["cells"].values(), row["average"])
        if cell and cell["difference"]
    ]
    notes = [
        "In per cent, with the 95 % interval beneath. <em>Mean</em>: of the columns, each weighing "
        "the same, as the paper averages benchmarks. <em>All</em>: over all questions, with the "
        "mark of the table above."
    ]
    if tested:
        notes.append(legend("the start", tested))
        notes[-1] += " The start and the teachers are not tested."
    return section(title, *parts, *(paragraph(note, "note") for note in notes), anchor="kinds")


def _paper_table(found: Row, lines: dict[str, Row], report: dict[str, Any]) -> str:
    averaged = any(row["average"] for row in found["rows"])
    heads = [*found["columns"], *(["mean"] if averaged else []), "all"]
    head = "".join(f'<th class="n">{text(name)}</th>' for name in heads)
    body = []
    for row in found["rows"]:
        run = row["run"]
        cells = [_tested_cell(row["cells"].get(column)) for column in found["columns"]]
        if averaged:
            cells.append(_tested_cell(row["average"]))
        whole = difference_of(report, run, "start")
        cells.append(marked_cell(lines.get(run), whole["verdict"] if whole else None))
        kind = "" if rank(run) == 1 else " class=fixed"
        body.append(f'<tr{kind}><th scope="row">{text(run)}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="scroll"><table class="paper"><thead><tr><th>model</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _tested_cell(cell: Row | None) -> str:
    if cell is None:
        return marked_cell(None)
    difference = cell["difference"]
    return marked_cell(cell, difference and difference["verdict"])


def benchmarks_section(beside: Beside) -> str:
    """The paper's thirteen benchmarks where `masters benchmark` ran them; nothing elsewhere."""
    if beside.benchmarks is None:
        return ""
    words = (
        "Answers and scores are those of the harness named below, in per cent with 95 % intervals; "
        "one that is not known is left out."
    )
    return section(
        "Public benchmarks", paragraph(words), html_table(beside.benchmarks), anchor="benchmarks"
    )


def speed_section(
    report: dict[str, Any], beside: Beside, pictures: dict[str, bytes], student: str
) -> str:
    """Accuracy against speed, as in the paper's Fig. 6, and the table of speeds."""
    speeds = beside.speeds
    if speeds is None:
        return ""
    lines = report["summary"]["runs"]
    figures = []
    for batch in dict.fromkeys(row.batch for row in speeds.rows):
        points = speed_points(lines, speeds, batch, student)
        if points:
            name = f"speed-{batch}.png"
            pictures[name] = plots.speed_scatter(points, measure(lines))
            title = f"{batch} question{'s'[: batch > 1]} at a time"
            figures.append(figure(pictures[name], title))
    sheet = speed_sheet(speeds)
    words = (
        f"{measure(lines).capitalize() if lines else 'Accuracy'} against tokens a second after the "
        "first one. Bars: 95 % intervals, and the least and the largest of the repeats. All "
        "students are one architecture, so they share the speed that was measured once; the larger "
        "a point, the more parameters."
        if figures
        else "No model that was timed here was evaluated in these runs."
    )
    return section(
        "Speed",
        paragraph(words),
        f'<div class="plots">{"".join(figures)}</div>',
        table(sheet.heads, sheet.rows, "speed"),
        *(paragraph(text(note), "note") for note in (sheet.title, *sheet.notes)),
        paragraph(f"Measured by <code>{text(speeds.command)}</code>", "note"),
        anchor="speed",
    )


def speed_points(
    lines: Sequence[Row], speeds: Speeds, batch: int, student: str
) -> list[dict[str, Any]]:
    """The evaluated models whose speed is known at this batch size.

    A model that was timed under its name in the report is that one. Else students share the speed
    of the role, or the name, of the student; the largest teacher is the report's ``teacher``,
    another one its ``teacher-<name>``.
    """
    rows = [row for row in speeds.rows if row.batch == batch]
    teachers = sorted((row for row in rows if row.role == "teacher"), key=lambda r: r.parameters)
    named = {f"teacher-{row.model}": row for row in teachers}
    if teachers:
        named["teacher"] = teachers[-1]
    named |= {row.model: row for row in rows if row.role == "model"}
    small = [row for row in rows if row.role == "student" or row.model == student]
    points = []
    for line in lines:
        shared = small[0] if small and rank(line["run"]) < 2 else None
        speed = named.get(line["run"], shared)
        if speed is not None:
            points.append({"run": line["run"], "line": line, "speed": speed})
    return points
