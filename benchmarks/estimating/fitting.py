"""Prices that explain the seconds of the fitted stages best, none of them negative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from estimating.running import Ran
from masters.estimate.cluster import Assumed, Cluster

#: What is fitted; the rest (disk, links) plays no part in these runs.
FITTED: tuple[str, ...] = (
    "train_flops", "forward_flops", "head_flops", "layer_passes", "passes", "logits", "updates",
    "questions", "patches", "rows", "masked", "matrices", "stages",
)  # fmt: skip
#: Amount -> the number of a cluster's efficiency that prices it.
NAMES = {
    "train_flops": "train", "forward_flops": "forward", "head_flops": "head",
    "layer_passes": "layer_seconds", "passes": "pass_seconds", "logits": "sample_seconds",
    "updates": "update_seconds", "questions": "question_seconds", "rows": "row_seconds",
    "patches": "patch_seconds", "masked": "mask_seconds", "matrices": "matrix_seconds",
    "stages": "stage_seconds",
}  # fmt: skip


def fitted_prices(ran: Sequence[Ran]) -> dict[str, float]:
    """Seconds of each amount: least squares of the relative error, negative prices left out."""
    rows = np.array([[asdict(one.work)[name] for name in FITTED] for one in ran])
    seconds = np.array([one.seconds for one in ran])
    scale = rows.max(axis=0)
    scale[scale == 0] = 1
    share = rows / scale / seconds[:, None]
    used = [k for k in range(len(FITTED)) if rows[:, k].any()]
    while True:
        found, *_ = np.linalg.lstsq(share[:, used], np.ones(len(seconds)), rcond=None)
        if (found >= 0).all():
            break
        used.pop(int(found.argmin()))
    prices = dict.fromkeys(FITTED, 0.0)
    for k, value in zip(used, found, strict=True):
        prices[FITTED[k]] = float(value / scale[k])
    return prices


def with_prices(cluster: Cluster, prices: dict[str, float], source: str) -> Cluster:
    """The cluster with what was fitted. A share of the peak that came out as free stays at 1."""
    peak = cluster.tflops.of("fp32")
    found = {}
    for amount, name in NAMES.items():
        value = prices[amount]
        if name in ("train", "forward", "head"):
            value = min(1.0, 1 / (peak * value)) if value else 1.0
        found[name] = Assumed(value=value, source=source)
    reached = cluster.efficiency.model_copy(update=found)
    return cluster.model_copy(update={"efficiency": reached})
