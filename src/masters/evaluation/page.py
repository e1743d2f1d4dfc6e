"""The report page: one self-contained HTML file, section by section."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from string import Template
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from masters.evaluation import markup, plots
from masters.evaluation.evaluated import evaluations, rank
from masters.evaluation.examples import RULE, Example, Picture, examples
from masters.evaluation.headline import headline
from masters.evaluation.markup import figure, paragraph, section, text
from masters.evaluation.readings import (
    METRICS,
    Row,
    difference_of,
    measure,
    merge_counts,
    model_curves,
    read_answers,
    read_json,
    reward_counts,
    training_curve,
)

if TYPE_CHECKING:
    from pathlib import Path

    from masters.artifacts import RunInfo
    from masters.data.questions import Questions
    from masters.data.sources import Source

Pictures = dict[str, bytes]


def render_page(report: dict[str, Any], runs: Sequence[RunInfo]) -> tuple[str, Pictures]:
    """The page as HTML text and its pictures by file name (the page itself embeds them).

    Args:
        report: what report.json holds.
        runs: the runs it was made from; curves, rewards and examples show the first seed.
    """
    pictures: Pictures = {}
    shown = [run for run in runs if run.seed == runs[0].seed]
    parts = [
        headline(report, shown),
        _runs_section(report),
        _training_section(shown, pictures),
        _student_section(report, shown, pictures),
        _masking_section(report, pictures),
        _rewards_section(shown, pictures),
        _kinds_section(report),
        _examples_section(shown),
        _times_section(report),
        _recipes_section(runs),
        _footer(report),
    ]
    files = resources.files("masters.evaluation")
    page = Template(files.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=text("Masters: " + ", ".join(dict.fromkeys(run.name for run in runs))),
        style=files.joinpath("page.css").read_text(encoding="utf-8"),
        body="\n\n".join(parts),
    )
    return page, pictures


def _runs_section(report: dict[str, Any]) -> str:
    lines = report["summary"]["runs"]
    if not lines:
        return section("Runs", paragraph("No model was evaluated over all kinds of questions."))
    left = min(line["low"] for line in lines)
    right = max(line["high"] for line in lines)
    margin = max(0.02, 0.04 * (right - left))
    scale = (max(0.0, left - margin), min(1.0, right + margin))
    guides = [line["value"] for line in lines if line["run"] in ("start", "teacher")]
    own = [line for line in lines if rank(line["run"]) == 1]
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
            f'<tr class="{kind}"><td>{text(line["run"])}</td>'
            f'<td class="n">{markup.percent(line["value"])}</td>'
            f'<td class="n">{markup.interval(line["low"], line["high"])}</td>'
            f'<td>{bar}</td>{gains}<td class="n">{closed}</td></tr>'
        )
    axis = f"{100 * scale[0]:.0f} % to {100 * scale[1]:.0f} %"
    table = (
        '<div class="scroll"><table><thead><tr><th>run</th>'
        f'<th class="n">{measure(lines)}</th>'
        f'<th class="n">95 % interval</th><th>on a scale from {axis}</th>{head}'
        f'<th class="n">gap closed</th></tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )
    return section("Runs", table, paragraph(_runs_note(report, lines), "note"))


def _runs_note(report: dict[str, Any], lines: Sequence[Row]) -> str:
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
    return words


def _gain_cell(report: dict[str, Any], run: str, against: str) -> str:
    row = difference_of(report, run, against)
    if row is None:
        return '<td class="n"></td>'
    bounds = markup.interval(row["low"], row["high"])
    return f'<td class="n">{markup.points(row["difference"])}<small>{bounds}</small></td>'


def _training_section(runs: Sequence[RunInfo], pictures: Pictures) -> str:
    parts = []
    for run in runs:
        curve = training_curve(run)
        if not curve.rows:
            parts.append(paragraph(f"{text(run.name)} has no training stage with metrics.", "note"))
            continue
        drawings = [
            ("losses", "Loss terms", plots.losses(curve)),
            ("rewards", "Rewards by source", plots.rewards(curve)),
            ("gradients", "Gradient norm of each term", plots.gradient_norms(curve)),
            ("validation", "Validation accuracy", plots.validation(curve)),
        ]
        figures = []
        missing = []
        for name, title, png in drawings:
            if png is None:
                missing.append(name)
                continue
            pictures[f"{_file_name(run.name)}-{name}.png"] = png
            figures.append(figure(png, title))
        steps = f"{len(curve.rows):,} steps"
        if len(curve.phases) > 1:
            names = dict.fromkeys(name.split("/")[0] for name, _ in curve.phases)
            steps += f" in {len(curve.phases)} train stages (dotted lines) of {', '.join(names)}"
        note = f"{steps}. " + _missing_words(missing)
        parts.append(f"<h3>{text(run.name)}</h3>{paragraph(note, 'note')}")
        grid = "plots three" if len(figures) == 3 else "plots"
        parts.append(f'<div class="{grid}">{"".join(figures)}</div>')
    intro = (
        "Thick lines are moving averages, thin ones single steps. Where the teacher was masked, "
        "the background is shaded: the darker, the more of its small weights were zero; the ratio "
        "stands above each stretch."
    )
    return section("Training", paragraph(intro), *parts)


def _missing_words(missing: Sequence[str]) -> str:
    if not missing:
        return ""
    reasons = {
        "losses": "no loss terms were logged",
        "rewards": "no rewards: it is not rewarded for responses",
        "gradients": "no gradient norms were logged",
        "validation": "no validation was made during training",
    }
    words = "; ".join(reasons[name] for name in missing)
    return f"{words[0].upper()}{words[1:]}."


def _student_section(report: dict[str, Any], runs: Sequence[RunInfo], pictures: Pictures) -> str:
    title = "How the student had learned before"
    curves = model_curves(runs)
    if "student" not in curves:
        return section(
            title,
            paragraph(
                "The student came as a finished model, or its own training kept no validations, "
                "so there is no curve to show."
            ),
        )
    png = plots.model_training(curves)
    pictures["models.png"] = png
    gain = report["summary"]["student_sft"]["last_third_gain"]
    if gain is None:
        words = "Too few validations to say whether the student had stopped improving."
    else:
        verdict = "it was close to its plateau" if gain < 0.03 else "it was still learning"
        words = (
            f"Over the last third of its supervised training (shaded) the student's validation "
            f"accuracy changed by <strong>{markup.points(gain)} points</strong>, from two thirds "
            f"of the steps to the end: {verdict}."
        )
    caption = "Validation accuracy with 95 % intervals; each model over the share of its own steps."
    return section(title, paragraph(words), figure(png, "Supervised training", caption, wide=True))


def _masking_section(report: dict[str, Any], pictures: Pictures) -> str:
    curves = report["summary"]["masking"]
    if not curves:
        return section(
            "What the mask does to the teacher",
            paragraph("No masked teacher was evaluated in these runs, so there is no curve."),
        )
    starts = [line["value"] for line in report["summary"]["runs"] if line["run"] == "start"]
    accuracy = plots.masking_accuracy(curves, starts[0] if starts else None)
    pictures["masking-accuracy.png"] = accuracy
    figures = [figure(accuracy, "Teacher's accuracy", "Band: 95 % interval.")]
    if any(row["zeros"] is not None for rows in curves.values() for row in rows):
        zeros = plots.masking_zeros(curves)
        pictures["masking-zeros.png"] = zeros
        caption = "Below the line because embeddings, norms and the output head stay whole."
        figures.append(figure(zeros, "Share of all weights that are zero", caption))
    rows = curves.get("teacher") or next(iter(curves.values()))
    lost = rows[0]["accuracy"] - rows[-1]["accuracy"]
    words = (
        "The weights smallest in magnitude are set to zero, layer by layer. At the largest ratio "
        f"evaluated, {100 * rows[-1]['ratio']:g} %, the teacher's accuracy is "
        f"{markup.percent(rows[-1]['accuracy'])}, {markup.points(-lost)} points from the whole "
        "teacher's."
    )
    plotted = f'<div class="plots">{"".join(figures)}</div>'
    return section("What the mask does to the teacher", paragraph(words), plotted)


def _rewards_section(runs: Sequence[RunInfo], pictures: Pictures) -> str:
    title = "How the responses were judged"
    counts = merge_counts(reward_counts(runs))
    if not counts:
        return section(title, paragraph("No responses were judged in these runs."))
    figures = []
    for phase in dict.fromkeys(count.phase for count in counts):
        by_source = {count.source: count for count in counts if count.phase == phase}
        png = plots.reward_histogram(by_source.get("teacher"), by_source.get("student"))
        pictures[f"rewards-{_file_name(phase)}.png"] = png
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
    return section(title, paragraph(words), f'<div class="plots">{"".join(figures)}</div>')


def _kinds_section(report: dict[str, Any]) -> str:
    seed = None if len(report["seeds"]) > 1 else report["seed"]
    lines = report["summary"]["runs"]
    benchmark = lines[0]["benchmark"] if lines else None
    cells: dict[str, dict[str, Row]] = {}
    for row in report["results"]:
        if row["benchmark"] == benchmark and row["kind"] != "all" and row["metric"] in METRICS:
            known = cells.setdefault(row["kind"], {})
            if row["seed"] == seed or row["run"] not in known:
                known[row["run"]] = row
    title = f"{measure(lines).capitalize()} by kind of question"
    if not cells:
        words = "The test questions are of one kind, so there is nothing to tell apart."
        return section(title, paragraph(words))
    names = [line["run"] for line in lines]
    head = "".join(f'<th class="n">{text(name)}</th>' for name in names)
    body = []
    for kind, known in cells.items():
        tds = "".join(_heat_cell(known.get(name)) for name in names)
        body.append(f"<tr><td>{text(kind)}</td>{tds}</tr>")
    table = (
        f'<div class="scroll"><table class="heat"><thead><tr><th>kind</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
    note = "In per cent; below, half the width of the 95 % interval. Stronger colour: higher."
    return section(title, table, paragraph(note, "note"))


def _heat_cell(row: Row | None) -> str:
    if row is None:
        return '<td class="n"></td>'
    half = 50 * (row["high"] - row["low"])
    value = 100 * row["value"]
    style = f"--v:{row['value']:.3f}"
    return f'<td class="n" style="{style}">{value:.1f}<small>± {half:.1f}</small></td>'


def _examples_section(runs: Sequence[RunInfo]) -> str:
    title = "Ten questions"
    found = evaluations(runs)
    answers = {item.run: read_answers(item.folder) for item in found}
    chosen = examples(answers, lambda: _open_data(found[0].folder))
    if not chosen:
        words = "The models were not evaluated on the same questions, so none can be compared."
        return section("Example questions", paragraph(words))
    title = title if len(chosen) == 10 else f"{len(chosen)} question{'s'[: len(chosen) > 1]}"
    cards = "".join(_example_card(example) for example in chosen)
    return section(
        title,
        paragraph(f"Not picked by hand. The rule: {RULE}."),
        f'<div class="examples">{cards}</div>',
    )


def _example_card(example: Example) -> str:
    image = "".join(_example_image(picture, example.id) for picture in example.pictures)
    if not image:
        image = f'<div class="noimage">{text(example.note or "no image")}</div>'
    elif len(example.pictures) > 1:
        image = f'<div class="images">{image}</div>'
    lines = []
    for model, row in example.answers.items():
        kind, mark = ("right", "✓") if row["correct"] else ("wrong", "✗")
        cut = ' <em class="soft">(cut at the limit)</em>' if row.get("finish") == "length" else ""
        lines.append(
            f'<li class="{kind}"><b title="{kind}">{mark}</b><span>{text(model)}</span>'
            f"<div>{markup.answer(row['text'])}{cut}</div></li>"
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
    return section("Where the time went", paragraph(words), table)


def _recipes_section(runs: Sequence[RunInfo]) -> str:
    folded = "".join(
        f"<details><summary>{text(run.name)}, seed {run.seed}</summary>"
        f"<pre>{text(run.recipe_yaml)}</pre></details>"
        for run in runs
    )
    words = "Everything a run was told, defaults included."
    return section("Recipes, as resolved", paragraph(words), folded)


def _footer(report: dict[str, Any]) -> str:
    inputs = f"{len(report['inputs'])} stage fingerprints" if report["inputs"] else "the stages"
    return (
        "<footer>The numbers of this page stand in <code>report.json</code> beside it, with "
        f"{inputs} they were made from. This page loads nothing from anywhere.</footer>"
    )


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)


def _open_data(folder: Path) -> Questions:
    from masters.data.sources import open_questions

    source = read_json(folder / "record.json")["spec"]["data"]
    return open_questions(cast("Source", SimpleNamespace(**source)))
