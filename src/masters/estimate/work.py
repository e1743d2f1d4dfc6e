"""What a process has to do, in amounts that a cluster puts a price on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from masters.estimate.cluster import Cluster
from masters.recipe import Precision


@dataclass(frozen=True, kw_only=True)
class Work:
    """Amounts of one process; they add up, and each has one price.

    Args:
        train_flops, forward_flops, head_flops: passes with gradient; without; scoring of tokens.
        generate_flops: reading prompts and going on, unless bound by ``decode_bytes``.
        decode_bytes: read from memory where generating is bound by that.
        layer_passes, passes: of models, a step of decoding is one; backward passes are two more.
        logits: that tokens are chosen from.
        updates: trained parameters, for each step.
        questions, patches, rows: handled on the host: questions encoded, patches of their pictures,
            responses.
        masked, matrices: whose thresholds are measured: weights, and matrices.
        disk_bytes, host_bytes, link_bytes: read from disk; from the host; from other GPUs.
        stages: opened.
    """

    train_flops: float = 0.0
    forward_flops: float = 0.0
    generate_flops: float = 0.0
    head_flops: float = 0.0
    decode_bytes: float = 0.0
    layer_passes: float = 0.0
    passes: float = 0.0
    logits: float = 0.0
    updates: float = 0.0
    questions: float = 0.0
    patches: float = 0.0
    rows: float = 0.0
    masked: float = 0.0
    matrices: float = 0.0
    disk_bytes: float = 0.0
    host_bytes: float = 0.0
    link_bytes: float = 0.0
    stages: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Work)}
        )

    def __mul__(self, times: float) -> Work:
        return Work(**{name: value * times for name, value in asdict(self).items()})

    @property
    def flops(self) -> float:
        """Floating-point operations of matrix products."""
        return self.train_flops + self.forward_flops + self.generate_flops + self.head_flops


def prices(cluster: Cluster, precision: Precision, *, gpus: int = 1) -> dict[str, float]:
    """Seconds of one of each amount of `Work`.

    Args:
        gpus: that one job is shared by: its link is the slower one beyond a node.
    """
    reached = cluster.efficiency
    peak = cluster.tflops.of(precision)
    link = cluster.node_gb_s if gpus <= cluster.gpus_per_node else cluster.network_gb_s
    return {
        "train_flops": 1 / (peak * reached.train.value),
        "forward_flops": 1 / (peak * reached.forward.value),
        "generate_flops": 1 / (peak * reached.generate.value),
        "head_flops": 1 / (peak * reached.head.value),
        "decode_bytes": 1e-9 / (cluster.bandwidth_gb_s * reached.decode.value),
        "layer_passes": reached.layer_seconds.value,
        "passes": reached.pass_seconds.value,
        "logits": reached.sample_seconds.value,
        "updates": reached.update_seconds.value,
        "questions": reached.question_seconds.value,
        "patches": reached.patch_seconds.value,
        "rows": reached.row_seconds.value,
        "masked": reached.mask_seconds.value,
        "matrices": reached.matrix_seconds.value,
        "disk_bytes": 1e-9 / cluster.disk_gb_s,
        "host_bytes": 1e-9 / cluster.host_gb_s,
        "link_bytes": 1e-9 / (link * reached.link.value),
        "stages": reached.stage_seconds.value,
    }


#: What transfers hide behind.
HIDING = ("train_flops", "forward_flops", "generate_flops", "head_flops", "layer_passes")


def seconds(work: Work, price: Mapping[str, float]) -> float:
    """Of one process; what comes over the link, or from the host, hides behind the arithmetic."""
    own = {name: amount * price[name] for name, amount in asdict(work).items()}
    moved = own.pop("link_bytes") + own.pop("host_bytes")
    hiding = sum(own[name] for name in HIDING)
    return sum(own.values()) + max(0.0, moved - hiding)
