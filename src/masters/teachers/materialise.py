"""A masked teacher written out as an ordinary checkpoint, for engines that must load one."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from masters.errors import ModelError
from masters.models.checkpoint import TensorEntry, checkpoint_tensors, read_chunks
from masters.models.load import WEIGHT_SUFFIXES
from masters.teachers.drawn import drawn_below
from masters.teachers.thresholds import SCALE, VIEWS, LayerThresholds, Thresholds, bit_pattern

NOTE = "masters_mask.json"


def write_masked(
    folder: Path,
    target: Path,
    thresholds: Thresholds,
    ratio: int,
    *,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> None:
    """Writes ``target``: the checkpoint of ``folder`` with the mask of this ratio applied (Eq. 2).

    Files, tensor names, dtypes and order stay; files that hold no weights are copied. Memory is a
    chunk's. ``target`` appears whole or not at all; its ``masters_mask.json`` says what it is.

    Args:
        ratio: per 10,000, one of the thresholds' ratios.
        progress: bytes done, bytes in all, note.

    Raises:
        ModelError: ``target`` exists, the ratio was not measured, or the weights are not those the
            thresholds were measured on.
    """
    if ratio not in thresholds.ratios:
        raise ModelError(
            f"no thresholds for masking ratio {ratio}/{SCALE}; there are {thresholds.ratios}"
        )
    if thresholds.kind == "softness":
        raise ModelError("a softness mask zeroes no weight; expected kind: magnitude or random")
    if target.exists():
        raise ModelError(f"{target} exists; move it away or choose another folder")
    column = thresholds.ratios.index(ratio)
    by_tensor: dict[str, list[LayerThresholds]] = defaultdict(list)
    for layer in thresholds.layers.values():
        by_tensor[layer.tensor].append(layer)
    entries = checkpoint_tensors(folder)
    if absent := sorted(by_tensor.keys() - entries.keys()):
        raise ModelError(f"{folder}: has no tensor {absent[0]}; run mask again on this checkpoint")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    total = sum(entry.stop - entry.start for entry in entries.values())
    done = 0
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix not in WEIGHT_SUFFIXES:
            shutil.copyfile(file, partial / file.name)
    for file in sorted({entry.file for entry in entries.values()}):
        own = sorted((e for e in entries.values() if e.file == file), key=lambda e: e.start)
        with file.open("rb") as source, (partial / file.name).open("wb") as sink:
            sink.write(source.read(min((entry.start for entry in own), default=0)))
            for entry in own:
                own_layers = by_tensor.get(entry.name, ())
                _write(entry, own_layers, column, sink, drawn=thresholds.kind == "random")
                done += entry.stop - entry.start
                progress(done, total, f"{done / 1e9:.1f} GB")
    note = {"ratio": ratio, "share_of_zeros": thresholds.share_of_zeros(ratio)}
    (partial / NOTE).write_text(json.dumps({**note, "weights": thresholds.weights}, indent=1))
    partial.rename(target)


def _write(
    entry: TensorEntry,
    layers: list[LayerThresholds] | tuple[()],
    column: int,
    sink: BinaryIO,
    *,
    drawn: bool,
) -> None:
    """One tensor, its matrices masked; those of a stack that have no thresholds are copied."""
    sink.seek(entry.start)
    if not layers:
        for raw in read_chunks(entry):
            sink.write(raw.data)
        return
    by_matrix = {layer.matrix: layer for layer in layers}
    for matrix in (None,) if None in by_matrix else range(entry.shape[0]):
        layer = by_matrix.get(matrix)
        zeros = at = 0
        for raw in read_chunks(entry, matrix=matrix):
            if layer is not None and drawn:
                weights = raw.view(VIEWS[entry.dtype][0])
                below = drawn_below(layer, column, at, at + len(weights))
                weights[below] = 0
                zeros, at = zeros + int(np.count_nonzero(below)), at + len(weights)
            elif layer is not None:
                zeros += _zero_small(raw, entry.dtype, layer.values[column])
            sink.write(raw.data)
        if layer is not None and zeros != layer.zeros[column]:
            raise ModelError(
                f"{entry.file}: {zeros} weights of {entry.name} lie below the threshold; "
                f"{layer.zeros[column]} did when it was measured. Run mask again"
            )


def _zero_small(raw: np.ndarray, dtype: str, threshold: float) -> int:
    """Zeroes |w| < threshold in raw bytes; returns how many there were."""
    view, bits = VIEWS[dtype]
    weights = raw.view(view)
    small = (weights & view((1 << bits) - 1)) < view(bit_pattern(threshold, dtype))
    weights[small] = 0
    return int(np.count_nonzero(small))
