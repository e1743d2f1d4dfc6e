"""The report page: one self-contained HTML file, section by section."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import TYPE_CHECKING, Any

from masters.evaluation import markup
from masters.evaluation.beside import Beside
from masters.evaluation.evaluated import evaluations
from masters.evaluation.headline import headline
from masters.evaluation.markup import paragraph, section, text
from masters.evaluation.page_examples import changes_section, shelves, ten_section
from masters.evaluation.page_judging import judging_section
from masters.evaluation.page_results import (
    benchmarks_section,
    runs_section,
    speed_section,
    tables_section,
)
from masters.evaluation.page_training import (
    masking_section,
    student_section,
    training_section,
)
from masters.evaluation.readings import read_answers, recipe_models

if TYPE_CHECKING:
    from masters.artifacts import RunInfo

Pictures = dict[str, bytes]
_SECTION = re.compile(r'<section id="([^"]+)">\n<h2>(.*?)</h2>')


def render_page(
    report: dict[str, Any], runs: Sequence[RunInfo], beside: Beside | None = None
) -> tuple[str, Pictures]:
    """The page as HTML text and its pictures by file name (the page itself embeds them).

    Args:
        report: what report.json holds.
        runs: the runs it was made from; curves, rewards and examples show the first seed.
        beside: benchmarks and speed.
    """
    beside = beside or Beside()
    pictures: Pictures = {}
    shown = [run for run in runs if run.seed == runs[0].seed]
    found = evaluations(shown)
    answers = {folder: read_answers(folder) for folder in {item.folder: None for item in found}}
    opened = shelves(found)
    student = recipe_models(runs[0].recipe_yaml)[0].get("name") or "student"
    parts = [
        runs_section(report),
        tables_section(report),
        benchmarks_section(beside),
        changes_section(report, found, answers, opened),
        ten_section(found, answers, opened),
        training_section(shown, pictures),
        student_section(report, shown, pictures),
        masking_section(report, pictures),
        judging_section(report, shown, pictures),
        speed_section(report, beside, pictures, str(student)),
        _unread_section(beside),
        _times_section(report),
        _recipes_section(runs),
        _footer(report),
    ]
    body = "\n\n".join(part for part in parts if part)
    files = resources.files("masters.evaluation")
    page = Template(files.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=text("Masters: " + ", ".join(dict.fromkeys(run.name for run in runs))),
        style=files.joinpath("page.css").read_text(encoding="utf-8"),
        body=f"{headline(report, shown)}\n{_contents(body)}\n\n{body}",
    )
    return page, pictures


def _contents(body: str) -> str:
    """Links to the sections that can be linked to."""
    links = [f'<a href="#{anchor}">{title}</a>' for anchor, title in _SECTION.findall(body)]
    return f'<nav aria-label="Contents">{"".join(links)}</nav>'


def _unread_section(beside: Beside) -> str:
    if not beside.unread:
        return ""
    items = "".join(f"<li><bdi>{text(words)}</bdi></li>" for words in beside.unread)
    words = "These lie beside the runs and could not be read, so they are not shown."
    return section("Not shown", paragraph(words), f"<ul>{items}</ul>", anchor="unread")


def _times_section(report: dict[str, Any]) -> str:
    stages = report["stages"]
    total = sum(stage["seconds"] for stage in stages)
    longest = max((stage["seconds"] for stage in stages), default=0.0) or 1.0
    body = "".join(
        f'<tr><td>{text(stage["name"])}</td><td class="n">{markup.duration(stage["seconds"])}</td>'
        f'<td style="width:55%"><div class="fill" style="width:'
        f'{100 * stage["seconds"] / longest:.1f}%"></div></td></tr>'
        for stage in stages
    )
    words = (
        f"{len(stages)} stages, {markup.duration(total)} when their times are added up. A stage "
        "that several runs share was done, and is counted, once."
    )
    table = f'<div class="scroll"><table class="times"><tbody>{body}</tbody></table></div>'
    return section("Where the time went", paragraph(words), table, anchor="times")


def _recipes_section(runs: Sequence[RunInfo]) -> str:
    folded = "".join(
        f"<details><summary>{text(run.name)}, seed {run.seed}</summary>"
        f"<pre>{text(run.recipe_yaml)}</pre></details>"
        for run in runs
    )
    words = "Everything a run was told, defaults included."
    return section("Recipes, as resolved", paragraph(words), folded, anchor="recipes")


def _footer(report: dict[str, Any]) -> str:
    inputs = f"{len(report['inputs'])} stage fingerprints" if report["inputs"] else "the stages"
    return (
        "<footer>The numbers of this page stand in <code>report.json</code> beside it, with "
        f"{inputs} they were made from. This page loads nothing from anywhere.</footer>"
    )
