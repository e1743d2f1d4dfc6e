"""A teacher in memory whose mask can be set to any ratio: applied in place, restored going down.

Thresholds hold for a layer, so a rank that holds some rows of its weight masks those and reads
those back: no rank sees another's rows, only how many weights each of them zeroed.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from masters import ranks
from masters.errors import ModelError
from masters.models.checkpoint import TensorEntry, checkpoint_tensors, read_bytes
from masters.models.families import family_of
from masters.models.layers import maskable_layers
from masters.models.shards import is_sharded, own_rows
from masters.teachers.drawn import drawn_below
from masters.teachers.softness import SoftHead
from masters.teachers.thresholds import LayerThresholds, Thresholds

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class MaskedTeacher:
    """A frozen VLM in eval mode, masked in place.

    Rising ratios only zero more of what is in memory (masks are nested). A falling ratio reads the
    original weights back from the checkpoint, one matrix at a time: there is never a second copy of
    the model in memory. A matrix of which both masks take the same number of weights is left as it
    is: nested masks of one size are one mask.

    Args:
        model: the unmasked teacher, as loaded from ``folder``; its weights may be spread over
            ranks, which then set every mask at the same time.
        folder: its checkpoint.
        thresholds: None for a teacher that is never masked.

    Attributes:
        ratio: the mask's, per 10,000.
        bytes_read, seconds: what setting masks has taken so far, on this rank.
        masks_pictures: masks reach weights outside of the language model, which make the features.
    """

    def __init__(self, model: Any, folder: Path, thresholds: Thresholds | None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.ratio = 0
        self.bytes_read = 0
        self.seconds = 0.0
        self._thresholds = thresholds
        self._entries = checkpoint_tensors(folder) if thresholds is not None else {}
        layers = [] if thresholds is None else maskable_layers(model)
        self._layers = {layer.name: layer for layer in layers}
        soft = thresholds is not None and thresholds.kind == "softness"
        self._soft_head = SoftHead(self.model) if soft else None
        self.masks_pictures = False
        if thresholds is not None:
            family = family_of(model)
            self.masks_pictures = any(family.part_of(n) != "language" for n in thresholds.layers)
            self._check(thresholds, folder)

    def picture_ratio(self) -> int:
        """The ratio that features of pictures depend on: 0 where no mask touches their weights."""
        return self.ratio if self.masks_pictures else 0

    def _check(self, thresholds: Thresholds, folder: Path) -> None:
        for name, measured in thresholds.layers.items():
            entry = self._entries.get(measured.tensor)
            if entry is not None and name in self._layers:
                shape = self._shape(name)
                held = (*shape[:-2], shape[-1], shape[-2]) if measured.transposed else shape
                if _shape(entry, measured) == held:
                    continue
            raise ModelError(
                f"{folder}: the thresholds speak of {name} ({measured.tensor}), which model and "
                "checkpoint do not hold in one shape. Run mask again on this checkpoint"
            )

    def _shape(self, name: str) -> tuple[int, ...]:
        """Of the weight, wherever its rows are; of one matrix of a stack."""
        layer = self._layers[name]
        shape = tuple(self.model.get_parameter(layer.parameter).shape)
        return shape if layer.matrix is None else shape[1:]

    def _weight(self, name: str) -> tuple[torch.Tensor, range]:
        """(the weight in memory, a view for one matrix of a stack; which of its rows are here)."""
        layer = self._layers[name]
        weight, first = own_rows(self.model.get_parameter(layer.parameter).data)
        if layer.matrix is None:
            return weight, range(first, first + len(weight))
        if not first <= layer.matrix < first + len(weight):
            return weight[:0, :0].flatten(0, 1), range(0)
        matrix = weight[layer.matrix - first]
        return matrix, range(len(matrix))

    @torch.no_grad()
    def set_ratio(self, ratio: int) -> None:
        """Masks the weights at this ratio (per 10,000); 0 restores the original bit for bit.

        Raises:
            ModelError: the thresholds hold no such ratio.
        """
        if ratio == self.ratio:
            return
        thresholds = self._thresholds
        if thresholds is None or (ratio != 0 and ratio not in thresholds.ratios):
            known = () if thresholds is None else thresholds.ratios
            raise ModelError(f"no thresholds for masking ratio {ratio}/10000; there are {known}")
        begin = time.perf_counter()
        column = None if ratio == 0 else thresholds.ratios.index(ratio)
        before = None if self.ratio == 0 else thresholds.ratios.index(self.ratio)
        if self._soft_head is not None:
            self._soft_head.set(1.0 if column is None else thresholds.temperatures[column])
        counted: dict[str, int] = {}
        for name, layer in thresholds.layers.items():
            if _zeros(layer, before) == _zeros(layer, column):
                continue
            (weight, rows), entry = self._weight(name), self._entries[layer.tensor]
            # lambda was measured in the stored dtype; one that holds every value of it will do.
            exact = torch.promote_types(weight.dtype, DTYPES[entry.dtype]) == weight.dtype
            exact = exact or thresholds.kind == "random"
            if ratio < self.ratio or not exact:
                counted[name] = self._reload(weight, rows, entry, layer, column)
            elif column is not None:
                stored = weight.mT if layer.transposed else weight
                counted[name] = self._zero(stored, _first(weight, rows, layer), layer, column)
        if column is not None:
            self._check_zeros(counted, column)
        self.ratio = ratio
        self.seconds += time.perf_counter() - begin

    def _reload(
        self,
        weight: torch.Tensor,
        rows: range,
        entry: TensorEntry,
        layer: LayerThresholds,
        column: int | None,
    ) -> int:
        """Has the rows as the checkpoint has them, masked; returns how many weights are zeroed."""
        if weight.numel() == 0:
            return 0
        held = None if layer.transposed else rows  # a transposed matrix lies on one rank, whole
        raw = read_bytes(entry, matrix=layer.matrix, rows=held)
        self.bytes_read += raw.nbytes
        stored = torch.from_numpy(raw).view(DTYPES[entry.dtype])
        original = stored.view(weight.mT.shape if layer.transposed else weight.shape)
        first = _first(weight, rows, layer)
        zeros = 0 if column is None else self._zero(original, first, layer, column)
        weight.copy_(original.mT if layer.transposed else original)
        return zeros

    def _zero(self, stored: torch.Tensor, first: int, layer: LayerThresholds, column: int) -> int:
        """Eq. 2 in place; returns how many weights are zeroed.

        Args:
            stored: weights as they lie in the checkpoint, from the ``first`` one of the matrix on.
        """
        assert self._thresholds is not None
        if self._thresholds.kind == "random":
            below = drawn_below(layer, column, first, first + stored.numel())
            small = torch.from_numpy(below).view(stored.shape).to(stored.device)
        else:
            small = stored.abs() < layer.values[column]
        stored.masked_fill_(small, 0)
        return int(small.sum())

    def _check_zeros(self, counted: dict[str, int], column: int) -> None:
        """The count of zeros proves that these are the weights that were measured."""
        assert self._thresholds is not None
        sharded = any(is_sharded(parameter) for parameter in self.model.parameters())
        everyone = ranks.gathered(counted) if sharded else [counted]
        for name in counted:
            layer = self._thresholds.layers[name]
            zeros = sum(found[name] for found in everyone)
            if zeros != layer.zeros[column]:
                raise ModelError(
                    f"{layer.tensor}: {zeros} weights lie below the threshold; "
                    f"{layer.zeros[column]} did when it was measured, so the thresholds belong to "
                    "other weights. Run mask again"
                )


def _zeros(layer: LayerThresholds, column: int | None) -> int:
    return 0 if column is None else layer.zeros[column]


def _shape(entry: TensorEntry, layer: LayerThresholds) -> tuple[int, ...]:
    return entry.shape if layer.matrix is None else entry.shape[1:]


def _first(weight: torch.Tensor, rows: range, layer: LayerThresholds) -> int:
    """Which weight of the stored matrix is the first one here."""
    if layer.transposed or not len(rows):
        return 0  # a transposed matrix lies on one rank, whole
    return rows.start * (weight.numel() // len(rows))
