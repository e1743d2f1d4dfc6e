"""The picture of a claim: each seed's paired difference, their mean and its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping

from masters.ablation.verdict import MARGIN, Finding
from masters.evaluation.plots import INK, MUTED, RULE, SHADE, STUDENT, panel, png

_PER_ROW = 0.42


def differences(found: Mapping[str, Finding]) -> bytes | None:
    """A row for each suite and data set, as PNG bytes; None where no seed is complete.

    Args:
        found: by what the row is called; the first stands at the top.
    """
    rows = [(name, one) for name, one in found.items() if one.interval is not None]
    if not rows:
        return None
    figure, axes = panel("difference (points)", width=6.4, height=1.1 + _PER_ROW * len(rows))
    axes.axvspan(-MARGIN, MARGIN, color=RULE, alpha=0.5, lw=0)
    axes.axvline(0, color=INK, lw=1)
    for place, (_, one) in enumerate(rows):
        assert one.interval is not None
        mean, low, high = one.interval
        values = list(one.differences.values())
        axes.scatter(values, [place] * len(values), s=16, color=SHADE, lw=0, zorder=3)
        if not math.isnan(low):
            axes.plot([low, high], [place, place], color=STUDENT, lw=1.8, zorder=2)
        axes.scatter([mean], [place], marker="D", s=30, color=STUDENT, zorder=4)
        axes.annotate(
            f"{one.held}", (1.01, place), xycoords=("axes fraction", "data"), va="center",
            fontsize=9, color=INK, annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], color=MUTED)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.08)
    return png(figure)
