"""Attention over packed rows by torch's FlexAttention: what `packed_attention` is off the CPU.

All rows are taken as one long one, and each token is told which keys it sees by two ranges: its
group's prompt, and its own segment up to itself. A `BlockMask` made from these ranges lets the
kernel leave out blocks of 128 x 128 pairs that nobody sees, and look at ranges only where a block
is seen in part; there is no T x T tensor. One compilation serves rows of any length. Shape
suffixes: B rows, T tokens of a row, L tokens of all rows (a multiple of 128), K blocks of 128, H
heads, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from masters.errors import ModelError
from masters.models.memory import is_out_of_memory
from masters.models.packing import Layout, lay_out, packed_mask

#: Tokens on a block's side, as FlexAttention has it unless it is told otherwise.
BLOCK = 128
#: Share of the largest entry by which the kernel may differ from plain attention in float32.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}


def flex_packed(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scale: float
) -> torch.Tensor:
    """Output [B, T, H, D] of attention.

    Args:
        query: [B, H, T, D].
        key, value: [B, H / groups, T, D].
        layout: who sees whom.
        scale: of the scores.
    """
    rows, width = query.shape[0], query.shape[2]
    fill = -(rows * width) % BLOCK

    def as_one_row(x_BHTD: torch.Tensor) -> torch.Tensor:
        # Models make heads from [B, T, H, D], so this is a copy only where there is room to fill.
        x_1LHD = x_BHTD.transpose(1, 2).flatten(0, 1)[None]
        return pad(x_1LHD, (0, 0, 0, 0, 0, fill)).contiguous().transpose(1, 2)

    mask = block_mask(layout, query.device)
    usual = query.shape[-1] ** -0.5
    if scale != usual:
        query = query * (scale / usual)
    parts = [as_one_row(x) for x in (query, key, value)]
    with torch.autocast(query.device.type, enabled=False):  # the dtype is the caller's
        out_1HLD = _kernel(query.device.type)(*parts, mask)
    return out_1HLD.transpose(1, 2)[0, : rows * width].unflatten(0, (rows, width)).contiguous()


def _flex(query: Any, key: Any, value: Any, mask: Any) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # No scale: a number handed in would be a symbol too, and the kernel wants a constant.
    return flex_attention(query, key, value, block_mask=mask, enable_gqa=True)


@lru_cache(maxsize=4)
def _kernel(device: str) -> Callable[..., torch.Tensor]:
    """Compiled, but on a CPU, where torch has no compiled backward pass.

    Lengths are symbols from the start, else every new one would be compiled; ``fullgraph`` makes an
    error of what torch would else do eagerly, with all scores at once.
    """
    return _flex if device == "cpu" else torch.compile(_flex, dynamic=True, fullgraph=True)


def seen_ranges(layout: Layout) -> torch.Tensor:
    """For each token of all rows, int32 [3, L]: it sees [0] to [1] (exclusive) and [2] to itself.

    Columns count over all rows. A prompt's token has no first range; padding sees itself only, so
    that no softmax is empty.
    """
    rows, width = layout.shape
    length = -(-rows * width // BLOCK) * BLOCK
    place_L = torch.arange(length, dtype=torch.int32)
    range_3L = place_L.expand(3, -1).clone()
    for group in layout.groups:
        begin, stop = (group.row * width + column for column in group.prompt)
        range_3L[2, begin:stop] = begin
        for first, end in group.responses:
            own = slice(group.row * width + first, group.row * width + end)
            for which, bound in enumerate((begin, stop, own.start)):
                range_3L[which, own] = bound
    return range_3L


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # kept for steps that may want gradients
def block_mask(layout: Layout, device: torch.device) -> Any:
    """The ``BlockMask`` of a layout over all its rows as one; made once for all layers."""
    from torch.nn.attention.flex_attention import BlockMask

    range_3L = seen_ranges(layout).to(device)
    prompt_L, stop_L, own_L = (x.contiguous() for x in range_3L)  # kept by the mask

    def sees(batch: Any, head: Any, query: Any, key: Any) -> Any:
        told = (key >= prompt_L[query]) & (key < stop_L[query])
        return (told | (key >= own_L[query])) & (key <= query)

    pairs_KK = _pairs(range_3L)
    full_KK = pairs_KK == BLOCK * BLOCK
    return BlockMask.from_kv_blocks(
        *_listed((pairs_KK > 0) & ~full_KK), *_listed(full_KK), BLOCK_SIZE=BLOCK, mask_mod=sees,
        seq_lengths=(len(own_L), len(own_L)),
    )  # fmt: skip


def _pairs(range_3L: torch.Tensor) -> torch.Tensor:
    """How many pairs of each block are seen, [K, K], from the ranges' overlaps with its columns."""
    place_L = torch.arange(range_3L.shape[1], device=range_3L.device)
    start_K = place_L[::BLOCK]

    def overlap(begin_L: torch.Tensor, stop_L: torch.Tensor) -> torch.Tensor:
        least_LK = torch.maximum(begin_L[:, None], start_K)
        return (torch.minimum(stop_L[:, None], start_K + BLOCK) - least_LK).clamp_min(0)

    pairs_LK = overlap(range_3L[0], range_3L[1]) + overlap(range_3L[2], place_L + 1)
    return pairs_LK.unflatten(0, (-1, BLOCK)).sum(1)


def _listed(taken_KK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(how many blocks of each row are taken [1, 1, K], which: those first [1, 1, K, K])."""
    which_KK = taken_KK.int().argsort(dim=1, descending=True, stable=True)
    return taken_KK.sum(1).int()[None, None], which_KK.int()[None, None]


def check_kernel(
    heads: tuple[int, int], channels: int, *, dtype: torch.dtype, device: torch.device,
    backward: bool,
) -> None:  # fmt: skip
    """Compares the kernel with plain attention on a few random tokens, gradients included.

    A compiler that fails, or a kernel that does not fit the device, shows here and not in the first
    step; so does a wrong gradient, which no log-prob tells of.

    Args:
        heads: of queries, of keys and values.
        channels: of a head.
        dtype: that the model computes in.
        backward: whether gradients will be wanted.

    Raises:
        ModelError: it fails, or differs by more than rounding.
    """
    layout = lay_out([(150, [40, 7, 60]), (90, [20]), (30, [5, 1])])
    rows, width = layout.shape
    draw = torch.Generator().manual_seed(0)
    shapes = [(rows, n, width, channels) for n in (heads[0], heads[1], heads[1])]
    exact = [torch.randn(shape, generator=draw) for shape in shapes]
    slope = torch.randn((rows, width, heads[0], channels), generator=draw).to(device)
    wide = torch.promote_types(dtype, torch.float32)

    def results(attend: Callable[..., torch.Tensor], kind: torch.dtype) -> list[torch.Tensor]:
        # The same numbers for both: those that the model's dtype can hold.
        leaves = [x.to(device, dtype).to(kind).requires_grad_(backward) for x in exact]
        out = attend(*leaves)
        return [out, *(torch.autograd.grad(out, leaves, slope.to(kind)) if backward else ())]

    def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        mask = packed_mask(layout, device=device)
        out = scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
        return out.transpose(1, 2)

    try:
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            found = results(lambda q, k, v: flex_packed(q, k, v, layout, channels**-0.5), dtype)
            expected = results(plain, wide)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"FlexAttention does not run here ({_short(error)})") from error
    for name, one, other in zip(("output", "dq", "dk", "dv"), found, expected, strict=False):
        apart = ((one.to(wide) - other).abs().max() / other.abs().max()).item()
        if not apart <= TOLERANCE[dtype]:
            raise ModelError(
                f"FlexAttention's {name} differs from plain attention's by {apart:.2g} of its "
                f"largest entry; expected at most {TOLERANCE[dtype]:.2g} in {dtype}"
            )


def _short(error: Exception) -> str:
    """A compiler's errors run over pages; their first line says what it was."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
