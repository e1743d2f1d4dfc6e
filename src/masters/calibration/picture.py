"""The picture of a calibration, as PNG bytes."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from masters.calibration.output import shared_prefix
from masters.calibration.recommendation import Measured, Recommendation
from masters.evaluation.plots import (
    CARD,
    INK,
    MUTED,
    SHADE,
    STUDENT,
    TEACHER,
    dress,
    legend,
    log_scale,
    png,
)
from masters.evaluation.statistics import Interval
from masters.ratios import WHOLE

_BARS = 24


def curves(rows: Sequence[Measured], found: Recommendation, tolerance: float) -> bytes:
    """Accuracy, divergence and entropy by ratio with 95 % bands; the recommended ratios shaded."""
    figure = Figure(figsize=(9.6, 3.1), facecolor=CARD, layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, divergence, entropy = figure.subplots(1, 3)
    for axes, title in (
        (accuracy, "accuracy"),
        (divergence, "JSD to the whole teacher (nats)"),
        (entropy, "entropy (nats)"),
    ):
        dress(axes, "masking ratio")
        axes.set_title(title, loc="left", fontsize=9.5, color=INK)
        if found.max_ratio:
            label = "recommended" if axes is accuracy else None
            axes.axvspan(0, found.max_ratio / WHOLE, color=SHADE, alpha=0.16, lw=0, label=label)
    _band(accuracy, rows, [row.accuracy for row in rows], TEACHER)
    limit = rows[0].accuracy.value - tolerance
    axis_label = f"{100 * tolerance:g} points below the whole teacher"
    accuracy.axhline(limit, color=MUTED, lw=1.1, ls=(0, (4, 3)), label=axis_label)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    masked = rows[1:]
    _band(divergence, masked, [row.jsd for row in masked], STUDENT)
    if all(row.jsd.low > 0 for row in masked):
        log_scale(divergence)
    else:
        divergence.set_ylim(bottom=0)
    _band(entropy, rows, [row.entropy for row in rows], STUDENT)
    entropy.set_ylim(bottom=0)
    for axes in (accuracy, divergence, entropy):
        axes.set_xlim(0, 1.03 * rows[-1].ratio / WHOLE)
    legend(accuracy)
    return png(figure)


def sensitivity(rows: Sequence[Measured], grain: str) -> bytes:
    """The most sensitive groups of layers by divergence when they alone are masked."""
    shown = sorted(rows, key=lambda row: row.jsd.value)[-_BARS:]
    figure = Figure(figsize=(7.2, 0.9 + 0.21 * len(shown)), facecolor=CARD, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    dress(axes, f"JSD with one {grain} masked at {rows[0].ratio / WHOLE:g} (nats)")
    axes.grid(visible=False)
    low = [row.jsd.value - row.jsd.low for row in shown]
    high = [row.jsd.high - row.jsd.value for row in shown]
    common = shared_prefix([row.group for row in rows])
    places = range(len(shown))
    axes.barh(
        places,
        [row.jsd.value for row in shown],
        xerr=(low, high),
        color=STUDENT,
        height=0.65,
        error_kw={"ecolor": MUTED, "lw": 1},
    )
    axes.tick_params(axis="y", labelsize=7.5)
    axes.set_yticks(places, [row.group.removeprefix(common) for row in shown])
    axes.set_xlim(left=0)
    axes.set_ylim(-0.6, len(shown) - 0.4)
    return png(figure)


def _band(axes: Axes, rows: Sequence[Measured], values: Sequence[Interval], colour: str) -> None:
    ratios = [row.ratio / WHOLE for row in rows]
    low, high = [value.low for value in values], [value.high for value in values]
    axes.fill_between(ratios, low, high, color=colour, alpha=0.16, lw=0)
    middle = [value.value for value in values]
    axes.plot(ratios, middle, color=colour, marker="o", ms=4, lw=1.7, clip_on=False)
