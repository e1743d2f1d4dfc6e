"""The page's example questions: what training changed, both ways, and ten chosen by a rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from masters.evaluation import changes
from masters.evaluation.contrasts import Tables, pairs
from masters.evaluation.evaluated import Evaluated
from masters.evaluation.examples import RULE, Example, Picture, Shelf, examples, open_shelf
from masters.evaluation.markup import answer, file_name, paragraph, section, text
from masters.evaluation.readings import Row, read_json

if TYPE_CHECKING:
    from masters.data.questions import Questions
    from masters.data.sources import Source

_WAYS = {
    False: {"better": "Wrong at the start, right now", "worse": "Right at the start, wrong now"},
    True: {"better": "Scores more than at the start", "worse": "Scores less than at the start"},
}


def shelves(found: Sequence[Evaluated]) -> dict[Path, Shelf]:
    """The data of every evaluation, by its stage's folder; those that are the same opened once."""
    opened: dict[str, Shelf] = {}
    by_folder: dict[Path, Shelf] = {}
    for item in found:
        source = read_json(item.folder / "record.json")["spec"]["data"]
        key = repr(source)
        if key not in opened:
            opened[key] = open_shelf(lambda source=source: _open_data(source))
        by_folder[item.folder] = opened[key]
    return by_folder


def changes_section(
    report: dict[str, Any],
    found: Sequence[Evaluated],
    answers: Tables,
    opened: Mapping[Path, Shelf],
) -> str:
    """Counts of both ways for every run, then the sampled questions, each run's under its link."""
    rows: list[Row] = report["changes"]
    title = "What the student learned, and what it lost"
    if not rows:
        words = "No run was evaluated beside its start, so no question can be followed."
        return section(title, paragraph(words), anchor="changes")
    lines = "".join(_counts(row) for row in rows)
    graded = any(row["graded"] for row in rows)
    heads = [_WAYS[graded]["better"], _WAYS[graded]["worse"], "the same", "no verdict"]
    head = "".join(f'<th class="n">{text(name)}</th>' for name in heads)
    table = (
        '<div class="scroll"><table class="paper counts">'
        f"<thead><tr><th>run</th>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )
    words = (
        "Test questions before and after, counted; the numbers lead to examples. Those shown are "
        f"not picked by hand: of each kind {text(changes.RULE)}."
    )
    if len(report["seeds"]) > 1:
        words += f" Seed {rows[0]['seed']}."
    parts = []
    for row in rows:
        one, start = pairs(found, row["run"], "start")[row["seed"]]
        both = {"at the start": answers[start.folder], "now": answers[one.folder]}
        shown = [_way(row, way, both, opened[one.folder]) for way in ("better", "worse")]
        if len(rows) == 1:
            parts += shown
            continue
        parts.append(
            f"<details class=run open><summary>{text(row['run'])}</summary>{''.join(shown)}"
            "</details>"
        )
    return section(title, paragraph(words), table, *parts, anchor="changes")


def ten_section(found: Sequence[Evaluated], answers: Tables, opened: Mapping[Path, Shelf]) -> str:
    """Ten questions with every model's answer."""
    by_run = {item.run: answers[item.folder] for item in found}
    chosen = examples(by_run, opened[found[0].folder]) if found else []
    if not chosen:
        words = "The models were not evaluated on the same questions, so none can be compared."
        return section("Example questions", paragraph(words), anchor="ten")
    title = "Ten questions"
    title = title if len(chosen) == 10 else f"{len(chosen)} question{'s'[: len(chosen) > 1]}"
    cards = "".join(_example_card(example) for example in chosen)
    return section(
        title,
        paragraph(f"Not picked by hand. The rule: {RULE}."),
        f'<div class="examples">{cards}</div>',
        anchor="ten",
    )


def _counts(row: Row) -> str:
    cells = "".join(
        f'<td class="n"><a href="#{_anchor(row, way)}">{row[way]:,}</a>'
        f"<small>{_share(row[way], row['n'])}</small></td>"
        for way in ("better", "worse")
    )
    same = f'<td class="n">{row["same"]:,}<small>{_share(row["same"], row["n"])}</small></td>'
    return (
        f'<tr><th scope="row">{text(row["run"])}</th>{cells}{same}'
        f'<td class="n">{row["no_verdict"]:,}</td></tr>'
    )


def _share(count: int, n: int) -> str:
    return f"{100 * count / n:.1f}\N{NO-BREAK SPACE}%" if n else ""


def _anchor(row: Row, way: str) -> str:
    return f"{file_name(row['run'])}-{way}"


def _way(row: Row, way: str, both: Mapping[str, Mapping[str, Row]], shelf: Shelf) -> str:
    """The examples of one way, with how many there are of it."""
    ids: list[str] = row["examples"][way]
    title = f"{_WAYS[row['graded']][way]}: {row[way]:,}"
    head = f'<h3 id="{_anchor(row, way)}">{text(title)}</h3>'
    if not ids:
        return head + paragraph(f"No question of {row['n']:,}.", "note")
    cards = "".join(
        _example_card(shelf.example(key, {model: rows[key] for model, rows in both.items()}))
        for key in ids
    )
    shown = "All of them" if len(ids) == row[way] else f"{len(ids)} of {row[way]:,}"
    back = '<a href="#changes">back to the counts</a>'
    said = paragraph(f"{shown}, out of {row['n']:,} questions; {back}.", "note")
    return f'{head}{said}<div class="examples">{cards}</div>'


def _mark(row: Row) -> tuple[str, str, str]:
    """Class, sign and words of an answer's verdict."""
    score = row.get("score", float(row["correct"]))
    if score is None:
        return "unjudged", "?", "no verdict"
    if 0 < score < 1:
        return "partly", f"{100 * score:.0f}", f"{100 * score:.0f} % of full marks"
    return ("right", "✓", "right") if score else ("wrong", "✗", "wrong")


def _example_card(example: Example) -> str:
    image = "".join(_example_image(picture, example.id) for picture in example.pictures)
    if not image:
        image = f'<div class="noimage">{text(example.note or "no image")}</div>'
    elif len(example.pictures) > 1:
        image = f'<div class="images">{image}</div>'
    lines = []
    for model, row in example.answers.items():
        kind, sign, words = _mark(row)
        cut = ' <em class="soft">(cut at the limit)</em>' if row.get("finish") == "length" else ""
        lines.append(
            f'<li class="{kind}"><b title="{words}">{sign}</b><span>{text(model)}</span>'
            f"<div>{answer(row['text'])}{cut}</div></li>"
        )
    asked = text(example.question) if example.question is not None else text(example.id)
    return (
        f'<article class="example">{image}<div class="body">'
        f'<p class="asked"><bdi>{asked}</bdi></p>'
        f'<p class="label">Label: <bdi>{text(example.label) or "none"}</bdi> · '
        f"{text(example.kind)} · <code>{text(example.id)}</code></p>"
        f"<ul>{''.join(lines)}</ul></div></article>"
    )


def _example_image(picture: Picture, question: str) -> str:
    tiny = ' class="tiny"' if max(picture.width, picture.height) <= 144 else ""
    return f'<img{tiny} src="{picture.uri}" alt="the image of question {text(question)}">'


def _open_data(source: dict[str, Any]) -> Questions:
    from masters.data.sources import open_questions

    return open_questions(cast("Source", SimpleNamespace(**source)))
