"""Attention over packed rows without a T x T mask, registered through transformers' interface.

On a CPU, three calls of a flash kernel for each group: the prompt on itself (causal), all responses
on the prompt (no mask), each response on itself (causal). The two halves of a response's attention
are merged by their log-sum-exps; backward calls the same kernels with the merged output and
log-sum-exp, which gives each part exactly its share of the gradient. On CUDA, FlexAttention takes
all at once (`models.packed_flex`). Shape suffixes: B rows, H heads, T tokens, D channels of a head,
G responses, R tokens of the longest response.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from masters.errors import ModelError
from masters.models.packed_flex import flex_packed
from masters.models.packing import GroupSpan, Layout

NAME = "masters_packed"
LAYOUT = "packed_layout"
"""The keyword under which a forward pass hands its `Layout` down to the attention."""
DEVICES = ("cpu", "cuda")
"""The kinds of device that it computes on."""
#: What some models' layers ask of their attention beside a causal softmax.
MORE = ("softcap", "s_aux", "position_bias", "dropout")


def use_packed_attention(vlm: Any) -> None:
    """Lets the language model of ``vlm`` take packed rows; without a layout it is plain sdpa."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    vlm.set_attn_implementation({"text_config": NAME})


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Output [B, T, H, D] of attention; see transformers' ``AttentionInterface``.

    Args:
        query: [B, H, T, D].
        key, value: [B, H / groups, T, D].
        attention_mask: ignored where the call has a layout.
        scaling: of the scores; D ** -0.5 when None.

    Raises:
        ModelError: the layer wants more of packed rows than a causal softmax.
    """
    layout: Layout | None = kwargs.get(LAYOUT)
    if layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        kwargs.pop(LAYOUT, None)
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    for name in MORE:
        wanted = kwargs.get(name)
        if isinstance(wanted, torch.Tensor) or wanted:
            raise ModelError(f"a layer wants {name}, which attention over packed rows leaves out")
    if torch.is_autocast_enabled(query.device.type):  # which knows sdpa, but not this
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if not has_cpu_kernels(query.device):
        return flex_packed(query, key, value, layout, scale), None
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    out_BHTD: Any = _Packed.apply(query, key, value, layout, scale)
    return out_BHTD.transpose(1, 2).contiguous(), None


def has_cpu_kernels(device: torch.device) -> bool:
    """Whether the flash kernels below compute there; FlexAttention does elsewhere."""
    return device.type == "cpu"


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query, key, value, layout, scale):
        out = torch.zeros_like(query)
        sums = query.new_zeros(query.shape[:3], dtype=_wide(query.dtype))
        for group in layout.groups:
            _group_forward(query, key, value, out, sums, group, scale)
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad):  # pyright: ignore
        query, key, value, out, sums = ctx.saved_tensors
        grads = tuple(torch.zeros_like(x) for x in (query, key, value))
        for group in ctx.layout.groups:
            _group_backward(grad, query, key, value, out, sums, grads, group, ctx.scale)
        return (*grads, None, None)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _group_forward(query, key, value, out, sums, group: GroupSpan, scale: float) -> None:
    row, (start, stop), end = group.row, group.prompt, group.stop
    q, k, v = (x[row : row + 1] for x in (query, key, value))
    own = slice(start, stop)
    out[row, :, own], sums[row, :, own] = _flash(
        q[:, :, own], k[:, :, own], v[:, :, own], causal=True, scale=scale
    )
    if not group.responses:
        return
    rest = slice(stop, end)
    first, first_sum = _flash(q[:, :, rest], k[:, :, own], v[:, :, own], causal=False, scale=scale)
    fold = _fold(group, query.device)
    folded = (fold(x[:, :, rest]) for x in (q, k, v))
    second, second_sum = _flash(*folded, causal=True, scale=scale)
    second, second_sum = fold.back(second), fold.back(second_sum[..., None])[..., 0]
    total = torch.logaddexp(first_sum, second_sum)
    share, other = (first_sum - total).exp(), (second_sum - total).exp()
    merged = first * share[..., None] + second * other[..., None]
    out[row, :, rest], sums[row, :, rest] = merged[0].to(out.dtype), total[0]


def _group_backward(grad, query, key, value, out, sums, grads, group: GroupSpan, scale: float):
    row, (start, stop), end = group.row, group.prompt, group.stop
    own, rest = slice(start, stop), slice(stop, end)
    g, q, k, v, o = (x[row : row + 1] for x in (grad, query, key, value, out))
    s = sums[row : row + 1]
    d_query, d_key, d_value = (x[row : row + 1] for x in grads)

    def part(x: torch.Tensor, where: slice) -> torch.Tensor:
        return x[:, :, where].contiguous()

    d_query[:, :, own], d_key[:, :, own], d_value[:, :, own] = _flash_backward(
        *(part(x, own) for x in (g, q, k, v, o, s)), causal=True, scale=scale
    )
    if not group.responses:
        return
    on_prompt = _flash_backward(
        part(g, rest), part(q, rest), part(k, own), part(v, own), part(o, rest), part(s, rest),
        causal=False, scale=scale,
    )  # fmt: skip
    fold = _fold(group, query.device)
    folded = [fold(part(x, rest)) for x in (g, q, k, v, o)]
    if not fold.even:
        folded[0] = folded[0] * fold.real
    folded_sums = fold(part(s, rest)[..., None])[..., 0].contiguous()
    g, q, k, v, o = folded
    on_itself = _flash_backward(g, q, k, v, o, folded_sums, causal=True, scale=scale)
    d_query[:, :, rest] = on_prompt[0] + fold.back(on_itself[0])
    d_key[:, :, own] += on_prompt[1]
    d_value[:, :, own] += on_prompt[2]
    d_key[:, :, rest] = fold.back(on_itself[1])
    d_value[:, :, rest] = fold.back(on_itself[2])


class _Fold:
    """Responses of unequal length as a batch [G, H, R, D] and back; filled up with first tokens."""

    def __init__(self, group: GroupSpan, device: torch.device) -> None:
        base = group.prompt[1]
        lengths = [stop - start for start, stop in group.responses]
        self.even = len(set(lengths)) == 1
        self._shape = (len(lengths), max(lengths))
        place_GR = torch.arange(max(lengths)).expand(len(lengths), -1)
        real_GR = place_GR < torch.tensor(lengths)[:, None]
        first_G = torch.tensor([start - base for start, _ in group.responses])
        self._index_GR = torch.where(real_GR, first_G[:, None] + place_GR, first_G[:, None])
        self._index_GR = self._index_GR.to(device)
        self._real_GR = real_GR.to(device)
        self.real = self._real_GR[:, None, :, None]

    def __call__(self, x_1HTD: torch.Tensor) -> torch.Tensor:
        x_HTD = x_1HTD[0]
        x_HGRD = x_HTD.unflatten(1, self._shape) if self.even else x_HTD[:, self._index_GR]
        return x_HGRD.transpose(0, 1).contiguous()

    def back(self, x_GHRD: torch.Tensor) -> torch.Tensor:
        if self.even:
            return x_GHRD.transpose(0, 1).flatten(1, 2)[None]
        return x_GHRD.transpose(1, 2)[self._real_GR].transpose(0, 1)[None]


@lru_cache(maxsize=512)
def _fold(group: GroupSpan, device: torch.device) -> _Fold:
    """Every layer folds a group in the same way: its indices are made once a step."""
    return _Fold(group, device)


def _flash(q, k, v, *, causal: bool, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(output [B, H, T, D], log-sum-exp [B, H, T]) of unmasked or causal attention."""
    out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=None, scale=scale
    )
    return out, sums


def _flash_backward(g, q, k, v, out, sums, *, causal: bool, scale: float):
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        g, q, k, v, out, sums, 0.0, causal, attn_mask=None, scale=scale
    )
