"""What a run's metrics.jsonl says of its training: by key, over thirds, and by masking ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from masters.evaluation.readings import Row

PREFIXES = ("loss/", "grad_norm/", "reward/", "entropy/", "groups/", "kl/", "signal/")
"""Keys that say something of the training itself; times and rates do not."""
_DIGITS = 5


def diagnose(rows: Sequence[Row]) -> dict[str, Any]:
    """Each key's mean over the steps, its most, its means over thirds, and those by ratio.

    Args:
        rows: of metrics.jsonl, in order; a value that is no finite number is left out.

    Returns:
        key -> {"mean", "max", "thirds": three means, None for one without values,
        "by_ratio": ratio as text -> mean; only where there are several}.
    """
    keys = sorted({key for row in rows for key in row if key.startswith(PREFIXES)})
    several = len({row.get("mask/ratio") for row in rows}) > 1
    found = {}
    for key in keys:
        values = [_finite(row.get(key)) for row in rows]
        known = [value for value in values if value is not None]
        if not known:
            continue
        cuts = [round(len(rows) * third / 3) for third in range(4)]
        found[key] = {
            "mean": _mean(known),
            "max": _rounded(max(known)),
            "thirds": [_mean(values[cuts[i] : cuts[i + 1]]) for i in range(3)],
        }
        if several:
            found[key]["by_ratio"] = _by_ratio(rows, key)
    return found


def _by_ratio(rows: Sequence[Row], key: str) -> dict[str, float | None]:
    ratios = dict.fromkeys(row["mask/ratio"] for row in rows if "mask/ratio" in row)
    return {
        f"{ratio:g}": _mean([_finite(r.get(key)) for r in rows if r.get("mask/ratio") == ratio])
        for ratio in ratios
    }


def _finite(value: Any) -> float | None:
    known = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if known else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _rounded(fmean(known)) if known else None


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
