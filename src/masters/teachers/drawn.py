"""Random masks: as many zeros in each matrix as a mask by magnitude, drawn once for it.

Every weight of a stored matrix has a score in [0, 1), a pure function of the tensor's name, the
matrix's place in its stack and the weight's place in the matrix. A weight is zeroed where its score
is below the floor(r n)-th smallest one (counted from 0): exactly floor(r n) zeros, masks of rising
ratios nested, and any part of a matrix masked without drawing the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from masters.models.checkpoint import TensorEntry
from masters.teachers.thresholds import SCALE, LayerThresholds, check_stored_dtype

#: Scores drawn at a time.
BLOCK = 1 << 20
BUCKETS = 1 << 12
#: Of all random masks: a control is compared over the seeds of models and runs, not of masks.
SEED = 0


def scores(tensor: str, matrix: int | None, start: int, stop: int) -> Iterator[np.ndarray]:
    """The scores of weights ``start`` to ``stop`` (exclusive) of a stored matrix, in blocks.

    Args:
        tensor: the checkpoint's name of it.
        matrix: which one of the tensor's stack of matrices; None: all of it.

    Returns:
        float64 in [0, 1): multiples of 2^-53.
    """
    digest = hashlib.sha256(f"{SEED}/{tensor}/{matrix}".encode()).digest()
    bits = np.random.PCG64(int.from_bytes(digest[:16], "big"))
    bits.advance(start)  # one step a score
    for at in range(start, stop, BLOCK):
        raw = bits.random_raw(min(BLOCK, stop - at))
        yield (raw >> np.uint64(11)) * 2.0**-53


def drawn_thresholds(
    entry: TensorEntry, ratios: Sequence[int], *, matrix: int | None = None
) -> LayerThresholds:
    """As `tensor_thresholds`, on scores: memory does not depend on the tensor's size.

    Args:
        entry: the tensor; nothing of it is read.
        ratios: per 10,000.
        matrix: which one of a stack of matrices.
    """
    check_stored_dtype(entry)
    size = entry.size if matrix is None else entry.size // entry.shape[0]
    counts = np.zeros(BUCKETS, dtype=np.int64)
    for block in scores(entry.name, matrix, 0, size):
        counts += np.bincount((block * BUCKETS).astype(np.int64), minlength=BUCKETS)
    running = np.cumsum(counts)
    ranks = [ratio * size // SCALE for ratio in ratios]
    buckets = [int(np.searchsorted(running, rank, side="right")) for rank in ranks]
    inside: dict[int, list[np.ndarray]] = {bucket: [] for bucket in buckets}
    for block in scores(entry.name, matrix, 0, size):
        of = (block * BUCKETS).astype(np.int64)
        for bucket, found in inside.items():
            found.append(block[of == bucket])
    ordered = {bucket: np.sort(np.concatenate(found)) for bucket, found in inside.items()}
    values: list[float] = []
    zeros: list[int] = []
    for rank, bucket in zip(ranks, buckets, strict=True):
        under = int(running[bucket - 1]) if bucket else 0
        values.append(float(ordered[bucket][rank - under]))
        zeros.append(under + int(np.searchsorted(ordered[bucket], values[-1])))
    return LayerThresholds(
        tensor=entry.name, size=size, values=tuple(values), zeros=tuple(zeros), matrix=matrix
    )


def drawn_below(layer: LayerThresholds, column: int, start: int, stop: int) -> np.ndarray:
    """Which of the weights ``start`` to ``stop`` of a stored matrix the mask zeroes: bool."""
    parts = scores(layer.tensor, layer.matrix, start, stop)
    below = [block < layer.values[column] for block in parts]
    return np.concatenate(below) if below else np.zeros(0, dtype=bool)
