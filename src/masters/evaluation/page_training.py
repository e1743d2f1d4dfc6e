"""The page's sections on training: curves, how the student had learned before, the mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from masters.evaluation import markup, plots
from masters.evaluation.markup import figure, file_name, paragraph, section, text
from masters.evaluation.readings import measure, model_curves, training_curve

if TYPE_CHECKING:
    from masters.artifacts import RunInfo

Pictures = dict[str, bytes]


def training_section(runs: Sequence[RunInfo], pictures: Pictures) -> str:
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
            pictures[f"{file_name(run.name)}-{name}.png"] = png
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
    return section("Training", paragraph(intro), *parts, anchor="training")


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


def student_section(report: dict[str, Any], runs: Sequence[RunInfo], pictures: Pictures) -> str:
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


def masking_section(report: dict[str, Any], pictures: Pictures) -> str:
    curves = report["summary"]["masking"]
    if not curves:
        return section(
            "What the mask does to the teacher",
            paragraph("No masked teacher was evaluated in these runs, so there is no curve."),
        )
    starts = [line["value"] for line in report["summary"]["runs"] if line["run"] == "start"]
    accuracy = plots.masking_accuracy(curves, starts[0] if starts else None)
    pictures["masking-accuracy.png"] = accuracy
    said = measure(report["summary"]["runs"])
    figures = [figure(accuracy, f"Teacher's {said}", "Band: 95 % interval.")]
    if any(row["zeros"] is not None for rows in curves.values() for row in rows):
        zeros = plots.masking_zeros(curves)
        pictures["masking-zeros.png"] = zeros
        caption = "Below the line because embeddings, norms and the output head stay whole."
        figures.append(figure(zeros, "Share of all weights that are zero", caption))
    rows = curves.get("teacher") or next(iter(curves.values()))
    lost = rows[0]["accuracy"] - rows[-1]["accuracy"]
    words = (
        "The weights smallest in magnitude are set to zero, layer by layer. At the largest ratio "
        f"evaluated, {100 * rows[-1]['ratio']:g} %, the teacher's {said} is "
        f"{markup.percent(rows[-1]['accuracy'])}, {markup.points(-lost)} points from the whole "
        "teacher's."
    )
    plotted = f'<div class="plots">{"".join(figures)}</div>'
    return section("What the mask does to the teacher", paragraph(words), plotted, anchor="mask")
