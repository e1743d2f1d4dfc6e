"""The pictures of a report, drawn by matplotlib without a display, each returned as PNG bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

from masters.evaluation.evaluated import rank
from masters.evaluation.readings import RewardCounts, Row, TrainingCurve, finite_series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CARD = "#faf9f6"
INK = "#33373d"
MUTED = "#868b93"
RULE = "#dedcd5"
SHADE = "#c9a86a"
TEACHER = "#b7791f"
STUDENT = "#2f6f9f"

LOSS_COLOURS = {
    "total": INK,
    "jsd": "#2f6f9f",
    "grpo": "#c2622d",
    "policy": "#a8485a",
    "kl": "#7d5f93",
    "nll": "#4c8a64",
}
SPARE_COLOURS = ("#3d8f94", "#9a7b3f", "#5b6fa8", "#8a8f4a", "#99577a")

Series = tuple[list[float], list[float]]


def losses(curve: TrainingCurve) -> bytes | None:
    """Every loss term by step; None where no loss was logged."""
    return _terms(curve, "loss/", log=False)


def gradient_norms(curve: TrainingCurve) -> bytes | None:
    """Every term's gradient norm by step, on a logarithmic axis; None where none was logged."""
    return _terms(curve, "grad_norm/", log=True)


def rewards(curve: TrainingCurve) -> bytes | None:
    """Mean accuracy and distillation reward by step and source; None where none was logged."""
    lines: list[tuple[str, str, str, Series]] = []
    for kind, style in (("accuracy", "-"), ("distillation", "--")):
        for source, colour in (("teacher", TEACHER), ("student", STUDENT)):
            series = curve.series(f"reward/{kind}/{source}")
            if series[0]:
                lines.append((f"{source}, {kind}", colour, style, series))
    if not lines:
        return None
    figure, axes = panel("step")
    shade_masks(axes, curve)
    for label, colour, style, series in lines:
        _smooth_line(axes, series, colour, label, style=style, raw=False)
    axes.set_ylim(-0.03, 1.03)
    legend(axes)
    return png(figure)


def validation(curve: TrainingCurve) -> bytes | None:
    """Validation accuracy during training with its intervals; None without two validations."""
    if len(finite_series(curve.validation, "accuracy")[0]) < 2:
        return None
    figure, axes = panel("step")
    shade_masks(axes, curve)
    _accuracy_line(axes, curve.validation, STUDENT, "student")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return png(figure)


def model_training(curves: Mapping[str, Sequence[Row]]) -> bytes:
    """Validation accuracy of the models trained on the spot; the student's last third is shaded."""
    figure, axes = panel("share of its training steps", width=6.4, height=3.2)
    axes.axvspan(2 / 3, 1, color=RULE, alpha=0.55, lw=0)
    for place, (name, rows) in enumerate(curves.items()):
        colour = STUDENT if name == "student" else (TEACHER, *SPARE_COLOURS)[place - 1]
        last = rows[-1]["step"] or 1
        relative = [{**row, "step": row["step"] / last} for row in rows]
        _accuracy_line(axes, relative, colour, f"{name} ({last:,} steps)")
    axes.set_xlim(0, 1.01)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylim(bottom=0)
    legend(axes)
    return png(figure)


def masking_accuracy(curves: Mapping[str, Sequence[Row]], start: float | None) -> bytes:
    """Teacher accuracy by masking ratio, with intervals, and the untouched student's as a line."""

    def draw(axes: Axes) -> None:
        for colour, (name, rows) in zip((TEACHER, *SPARE_COLOURS), curves.items(), strict=False):
            ratios = [row["ratio"] for row in rows]
            axes.fill_between(
                ratios,
                [row["low"] for row in rows],
                [row["high"] for row in rows],
                color=colour,
                alpha=0.16,
                lw=0,
            )
            values = [row["accuracy"] for row in rows]
            axes.plot(ratios, values, color=colour, marker="o", ms=4.5, lw=1.8, label=name)
        if start is not None:
            axes.axhline(start, color=MUTED, lw=1.2, ls=(0, (4, 3)), label="student's start")
        axes.set_ylim(0, 1.02)

    return _by_ratio(draw)


def masking_zeros(curves: Mapping[str, Sequence[Row]]) -> bytes:
    """Share of all weights that are zero, by masking ratio, under the line where they're equal."""

    def draw(axes: Axes) -> None:
        top = max(row["ratio"] for rows in curves.values() for row in rows)
        axes.plot([0, top], [0, top], color=MUTED, lw=1.2, ls=(0, (4, 3)), label="the ratio itself")
        for colour, (name, rows) in zip((TEACHER, *SPARE_COLOURS), curves.items(), strict=False):
            known = [row for row in rows if row["zeros"] is not None]
            ratios = [row["ratio"] for row in known]
            zeros = [row["zeros"] for row in known]
            axes.plot(ratios, zeros, color=colour, marker="o", ms=4.5, lw=1.8, label=name)
        axes.set_ylim(bottom=0)

    return _by_ratio(draw)


def reward_histogram(teacher: RewardCounts | None, student: RewardCounts | None) -> bytes:
    """Shares of responses by accuracy reward, teacher beside student, missing verdicts last."""
    figure, axes = panel("accuracy reward")
    both = [counts for counts in (teacher, student) if counts is not None]
    values = sorted({value for counts in both for value in counts.values})
    coarse = len(values) > 6
    bins = [f"{low / 5:.1f}-{low / 5 + 0.2:.1f}" for low in range(5)]
    labels = [*(bins if coarse else [f"{value:g}" for value in values]), "missing"]
    for offset, counts, colour in ((-0.2, teacher, TEACHER), (0.2, student, STUDENT)):
        if counts is None:
            continue
        shares = [0.0] * len(labels)
        for value, count in counts.values.items():
            place = min(4, max(0, int(value * 5))) if coarse else values.index(value)
            shares[place] += count / counts.total
        shares[-1] = counts.missing / counts.total
        places = [place + offset for place in range(len(labels))]
        bars = axes.bar(places, shares, width=0.38, color=colour, label=counts.source)
        for bar, share in zip(bars, shares, strict=True):
            if share > 0:
                centre = bar.get_x() + bar.get_width() / 2
                text = f"{100 * share:.0f} %" if share >= 0.01 else "<1 %"
                axes.annotate(
                    text,
                    (centre, share),
                    ha="center",
                    va="bottom",
                    fontsize=8,
                    color=MUTED,
                    xytext=(0, 2),
                    textcoords="offset points",
                )
    axes.set_xticks(range(len(labels)), labels)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.margins(y=0.16)
    legend(axes)
    return png(figure)


def shade_masks(axes: Axes, curve: TrainingCurve) -> None:
    """Shades each stretch of steps by its masking ratio, given above it; dots part the stages."""
    steps, ratios = curve.series("mask/ratio")
    top = max(ratios, default=0.0)
    if top > 0:
        begin = 0
        for place in range(1, len(steps) + 1):
            if place < len(steps) and ratios[place] == ratios[begin]:
                continue
            end = steps[place] if place < len(steps) else steps[-1]
            strength = 0.05 + 0.33 * ratios[begin] / top if ratios[begin] > 0 else 0.0
            axes.axvspan(steps[begin], end, color=SHADE, alpha=strength, lw=0)
            axes.text(
                (steps[begin] + end) / 2,
                1.015,
                f"{100 * ratios[begin]:g}%",
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=7.5,
                color=MUTED,
            )
            begin = place
    for _, first in curve.phases[1:]:
        axes.axvline(first, color=INK, lw=1, ls=":")


def _terms(curve: TrainingCurve, prefix: str, *, log: bool) -> bytes | None:
    keys = sorted({key for row in curve.rows for key in row if key.startswith(prefix)})
    lines = [(key.removeprefix(prefix), curve.series(key)) for key in keys]
    lines = [(name, series) for name, series in lines if series[0]]
    if not lines:
        return None
    if len(lines) == 2 and lines[0][1] == lines[1][1]:
        lines = [line for line in lines if line[0] != "total"]
    figure, axes = panel("step")
    shade_masks(axes, curve)
    spare = iter(SPARE_COLOURS * 4)
    for name, series in sorted(lines, key=lambda line: line[0] != "total"):
        colour = LOSS_COLOURS.get(name) or next(spare)
        _smooth_line(axes, series, colour, name)
    if log and all(value > 0 for _, (_, values) in lines for value in values):
        log_scale(axes)
    legend(axes)
    return png(figure)


def speed_scatter(points: Sequence[Row], heading: str) -> bytes:
    """Accuracy over tokens a second, a point a model, its area by the logarithm of its size.

    Args:
        points: ``run``, ``line`` (value, low, high) and ``speed`` (decode, parameters) of each.
        heading: what the accuracy is called.
    """
    figure, axes = panel("tokens/s", height=3.3)
    least = min(point["speed"].parameters for point in points)
    own = [point["run"] for point in points if rank(point["run"]) == 1]
    for point in points:
        speed, line, run = point["speed"], point["line"], point["run"]
        colour = (MUTED, STUDENT, TEACHER)[rank(run)]
        if run in own[:-1]:  # the last one is the method's own
            colour = SPARE_COLOURS[own.index(run) % len(SPARE_COLOURS)]
        x, y = speed.decode.median, line["value"]
        wide = [[x - speed.decode.least], [speed.decode.most - x]]
        high = [[y - line["low"]], [line["high"] - y]]
        axes.errorbar(x, y, xerr=wide, yerr=high, fmt="none", ecolor=colour, alpha=0.5, lw=1.2)
        area = 40 * (1 + math.log10(speed.parameters / least))
        axes.scatter(x, y, s=area, color=colour, zorder=3, label=run)
    speeds = [point["speed"].decode.median for point in points]
    if max(speeds) > 4 * min(speeds):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_ylabel(heading, color=MUTED, fontsize=9)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.margins(x=0.12, y=0.08)
    legend(axes)
    return png(figure)


def log_scale(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers; between powers of ten only where they are few."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    inside = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=inside, numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _smooth_line(
    axes: Axes,
    series: Series,
    colour: str,
    label: str,
    *,
    style: str = "-",
    raw: bool = True,
) -> None:
    steps, values = series
    window = max(1, len(values) // 20)
    if raw and window > 1:
        axes.plot(steps, values, color=colour, lw=0.7, alpha=0.22)
    smooth = [
        sum(part) / len(part)
        for part in (values[max(0, i - window) : i + window + 1] for i in range(len(values)))
    ]
    axes.plot(steps, smooth, color=colour, lw=1.7, label=label, ls=style)


def _accuracy_line(axes: Axes, rows: Sequence[Row], colour: str, label: str) -> None:
    steps, values = finite_series(rows, "accuracy")
    bounded = [row for row in rows if row.get("low") is not None and row.get("high") is not None]
    axes.fill_between(
        [row["step"] for row in bounded],
        [row["low"] for row in bounded],
        [row["high"] for row in bounded],
        color=colour,
        alpha=0.14,
        lw=0,
    )
    axes.plot(steps, values, color=colour, lw=1.8, marker="o", ms=3.2, label=label)


def _by_ratio(draw: Callable[[Axes], None]) -> bytes:
    figure, axes = panel("masking ratio")
    draw(axes)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    legend(axes)
    return png(figure)


def panel(x_label: str, *, width: float = 4.3, height: float = 2.9) -> tuple[Figure, Axes]:
    """An empty figure in the report's look; inches."""
    figure = Figure(figsize=(width, height), facecolor=CARD, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    dress(axes, x_label)
    return figure, axes


def dress(axes: Axes, x_label: str) -> None:
    """The look of every picture: no box, faint rules, few ticks."""
    axes.set_facecolor(CARD)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(RULE)
    axes.grid(axis="y", color=RULE, lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=MUTED, labelsize=9, length=0)
    axes.set_xlabel(x_label, color=MUTED, fontsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.margins(x=0.01)


def legend(axes: Axes) -> None:
    """The labels of the axes' lines above the figure, where there are any."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.figure.legend(
            handles,
            labels,
            loc="outside upper left",
            ncols=len(labels) if sum(map(len, labels)) < 32 else 2,
            frameon=False,
            fontsize=8.5,
            labelcolor=INK,
            handlelength=1.4,
            columnspacing=1.2,
            borderaxespad=0.2,
        )


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes, the same for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=170, metadata={"Software": None})
    return buffer.getvalue()
