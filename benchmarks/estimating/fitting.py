"""Prices that explain the seconds of the fitted stages best, none of them negative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from estimating.running import Ran
from masters.estimate.cluster import Assumed, Cluster

#: What is fitted; the rest (disk, links) plays no part in these runs.
FITTED: tuple[str, ...] = (
    "train_flops", "forward_flops", "generate_flops", "head_flops", "decode_bytes", "layer_passes",
    "passes", "logits", "updates", "questions", "patches", "rows", "masked", "matrices", "stages",
)  # fmt: skip
#: Amount -> the number of a cluster's efficiency that prices it.
NAMES = {
    "train_flops": "train", "forward_flops": "forward", "generate_flops": "generate",
    "head_flops": "head", "decode_bytes": "decode",
    "layer_passes": "layer_seconds", "passes": "pass_seconds", "logits": "sample_seconds",
    "updates": "update_seconds", "questions": "question_seconds", "rows": "row_seconds",
    "patches": "patch_seconds", "masked": "mask_seconds", "matrices": "matrix_seconds",
    "stages": "stage_seconds",
}  # fmt: skip


def fitted(cluster: Cluster, ran: Sequence[Ran]) -> Cluster:
    """The cluster with prices fitted to the runs.

    Whether generating is bound by memory follows from the prices: they are fitted twice.
    """
    for _ in range(2):
        cluster = _with_prices(cluster, _prices(cluster, ran))
    return cluster


def _prices(cluster: Cluster, ran: Sequence[Ran]) -> dict[str, float]:
    """Seconds of each amount: least squares of the relative error, negative prices left out."""
    rows = np.array([[asdict(one.work(cluster))[name] for name in FITTED] for one in ran])
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


def _with_prices(cluster: Cluster, prices: dict[str, float]) -> Cluster:
    """The cluster with these; a share that came out as free is 1."""
    peak = cluster.tflops.of("fp32")
    full: dict[str, float] = dict.fromkeys(("train", "forward", "generate", "head"), peak)
    full["decode"] = 1e9 * cluster.bandwidth_gb_s
    found = {}
    for amount, name in NAMES.items():
        value = prices[amount]
        if name in full:
            value = min(1.0, 1 / (full[name] * value)) if value else 1.0
        digits = float(f"{value:.4g}")
        found[name] = Assumed(value=digits, source="fitted by benchmarks/estimate.py")
    reached = cluster.efficiency.model_copy(update=found)
    return cluster.model_copy(update={"efficiency": reached})
