"""Magnitude thresholds of the teacher's mask (Eq. 1 and 2 of arXiv 2512.22238).

For ratio r and a layer of n weights, lambda_r is the floor(r n)-th smallest magnitude (counted from
0) and a weight is zeroed where |w| < lambda_r: at most r n zeros, masks of rising ratios nested,
and r = 0 changes nothing. All of it is exact and happens on the stored dtype.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from masters.errors import ModelError
from masters.models.checkpoint import TensorEntry, read_chunks

SCALE = 10_000
FORMAT = 2
Kind = Literal["magnitude", "random", "softness"]
#: Stored dtype -> (unsigned view, bits of magnitude, dtype the threshold is read back as).
VIEWS = {"F32": (np.uint32, 31), "BF16": (np.uint16, 15), "F16": (np.uint16, 15)}


@dataclass(frozen=True, kw_only=True)
class LayerThresholds:
    """Thresholds of one weight matrix, for each ratio in the order of ``Thresholds.ratios``.

    Args:
        tensor: the checkpoint's name of the weight.
        size: number of weights n.
        values: lambda for each ratio, exactly representable in the stored dtype; of a random mask,
            on the scores drawn for the weights in place of their magnitudes.
        zeros: weights below it (zeros the mask leaves), for each ratio.
        matrix: which one of the tensor's stack of matrices (experts); None: all of it.
        transposed: the model holds the matrix the other way round.
    """

    tensor: str
    size: int
    values: tuple[float, ...]
    zeros: tuple[int, ...]
    matrix: int | None = None
    transposed: bool = False


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The mask of one teacher at every ratio.

    Args:
        ratios: rising, per 10,000, each above 0.
        layers: by the name of `models.layers.Layer`.
        parameters: all parameters of the model, masked or not (N of Eq. 1).
        weights: fingerprint of the checkpoint's tensor names, dtypes and shapes. That the values
            are those measured is proved by the zeros counted when a mask is applied (a random one
            depends on none of them).
        kind: how weights are chosen; softness chooses none and divides the output head.
        temperatures: by which it does, for each ratio; empty for the other kinds.
    """

    ratios: tuple[int, ...]
    layers: Mapping[str, LayerThresholds]
    parameters: int
    weights: str
    kind: Kind = "magnitude"
    temperatures: tuple[float, ...] = ()

    def share_of_zeros(self, ratio: int) -> float:
        """Share of all the model's parameters that the mask zeroes at this ratio; 0 at ratio 0."""
        if ratio == 0:
            return 0.0
        column = self.ratios.index(ratio)
        return sum(layer.zeros[column] for layer in self.layers.values()) / self.parameters


def layer_thresholds(
    weight: np.ndarray, ratios: Sequence[int]
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Thresholds of one float array: (lambda per ratio, number of weights below it per ratio).

    Args:
        weight: float32 or float16, any shape.
        ratios: per 10,000, each in [0, 10000).

    Returns:
        lambda_r = the floor(r n)-th smallest |w|, counted from 0; and #{|w| < lambda_r} <= r n.
    """
    kinds = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16"}
    if weight.dtype not in kinds:
        raise ValueError(f"weight is {weight.dtype}; expected float32 or float16")
    raw = np.ascontiguousarray(weight).reshape(-1).view(np.uint8)
    return _thresholds(lambda: iter((raw,)), kinds[weight.dtype], ratios, "the weight")


def tensor_thresholds(
    entry: TensorEntry, ratios: Sequence[int], *, matrix: int | None = None
) -> LayerThresholds:
    """The same for one tensor on disk, or one matrix of a stack of them, read in chunks.

    16-bit weights are read once, 32-bit ones twice; memory does not depend on the tensor's size.
    """
    check_stored_dtype(entry)
    values, zeros = _thresholds(
        lambda: read_chunks(entry, matrix=matrix), entry.dtype, ratios, entry.name
    )
    size = entry.size if matrix is None else entry.size // entry.shape[0]
    return LayerThresholds(tensor=entry.name, size=size, values=values, zeros=zeros, matrix=matrix)


def check_stored_dtype(entry: TensorEntry) -> None:
    """Raises ModelError unless the tensor is stored as floats that can be masked."""
    if entry.dtype not in VIEWS:
        raise ModelError(
            f"{entry.file}: {entry.name} is stored as {entry.dtype}; expected F32, F16 or BF16. "
            "Quantised weights have no magnitudes of their own: mask the unquantised checkpoint"
        )


def _thresholds(
    chunks: Callable[[], Iterator[np.ndarray]], dtype: str, ratios: Sequence[int], name: str
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """From the raw bytes, in chunks that can be gone through more than once.

    Without its sign bit, an IEEE float's bit pattern orders like its magnitude. One histogram over
    the upper 16 bits serves every rank; 32-bit values need a second one inside the buckets found.
    """
    view, bits = VIEWS[dtype]
    mask, low = view((1 << bits) - 1), max(bits - 16, 0)
    upper = np.zeros(1 << (bits - low), dtype=np.int64)
    for raw in chunks():
        upper += np.bincount((raw.view(view) & mask) >> low, minlength=upper.size)
    if upper[_infinity(dtype) >> low :].any():
        raise ModelError(f"{name} holds NaN or infinite weights; expected finite ones")
    running = np.cumsum(upper)
    ranks = [ratio * int(running[-1]) // SCALE for ratio in ratios]
    buckets = [int(np.searchsorted(running, rank, side="right")) for rank in ranks]
    below = [int(running[bucket - 1]) if bucket else 0 for bucket in buckets]
    if not low:
        return tuple(_as_float(b, dtype) for b in buckets), tuple(below)
    inside = {bucket: np.zeros(1 << low, dtype=np.int64) for bucket in buckets}
    for raw in chunks():
        magnitude = raw.view(view) & mask
        for bucket, counts in inside.items():
            rest = magnitude[magnitude >> low == bucket] & view((1 << low) - 1)
            counts += np.bincount(rest, minlength=counts.size)
    values, zeros = [], []
    for rank, bucket, under in zip(ranks, buckets, below, strict=True):
        counts = np.cumsum(inside[bucket])
        rest = int(np.searchsorted(counts, rank - under, side="right"))
        values.append(_as_float((bucket << low) | rest, dtype))
        zeros.append(under + (int(counts[rest - 1]) if rest else 0))
    return tuple(values), tuple(zeros)


def _infinity(dtype: str) -> int:
    return {"F32": 0x7F800000, "BF16": 0x7F80, "F16": 0x7C00}[dtype]


def _as_float(pattern: int, dtype: str) -> float:
    if dtype == "F16":
        return float(np.uint16(pattern).view(np.float16))
    return float(np.uint32(pattern << (16 if dtype == "BF16" else 0)).view(np.float32))


def bit_pattern(value: float, dtype: str) -> int:
    """The bits of a magnitude that the stored dtype holds exactly; they order like magnitudes."""
    if dtype == "F16":
        return int(np.float16(value).view(np.uint16))
    return int(np.float32(value).view(np.uint32)) >> (16 if dtype == "BF16" else 0)


def save_thresholds(thresholds: Thresholds, file: Path) -> str:
    """The thresholds file's JSON text (shares of zeros included, for a reader)."""
    layers = {
        name: {**asdict(layer), "share": [z / layer.size for z in layer.zeros]}
        for name, layer in thresholds.layers.items()
    }
    shares = [thresholds.share_of_zeros(ratio) for ratio in thresholds.ratios]
    text = json.dumps(
        {
            "format": FORMAT,
            "ratios": thresholds.ratios,
            "share_of_zeros": shares,
            "parameters": thresholds.parameters,
            "weights": thresholds.weights,
            "kind": thresholds.kind,
            "temperatures": thresholds.temperatures,
            "layers": layers,
        },
        indent=1,
    )
    file.write_text(text + "\n")
    return text


def load_thresholds(file: Path) -> Thresholds:
    """Reads a thresholds file; raises ModelError when it is absent, broken or of another format."""
    try:
        data = json.loads(file.read_text())
        if data["format"] != FORMAT:
            raise ModelError(f"{file}: format {data['format']}; expected {FORMAT}. Run mask again")
        layers = {
            name: LayerThresholds(
                tensor=item["tensor"],
                size=item["size"],
                values=tuple(item["values"]),
                zeros=tuple(item["zeros"]),
                matrix=item["matrix"],
                transposed=item["transposed"],
            )
            for name, item in data["layers"].items()
        }
        return Thresholds(
            ratios=tuple(data["ratios"]),
            layers=layers,
            parameters=data["parameters"],
            weights=data["weights"],
            kind=data.get("kind", "magnitude"),  # files from before there were others
            temperatures=tuple(data.get("temperatures", ())),
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{file}: not a readable thresholds file ({error}); run mask again"
        ) from error
