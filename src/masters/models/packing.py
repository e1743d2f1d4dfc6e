"""One row for a question and all its responses: ``[image + prompt | r1 | r2 | ... | rG]``.

Each response sees the prompt and itself, and its positions go on from the prompt's, so the hidden
states are those of G rows that repeat the prompt; the prompt and its image are computed once. Short
groups share a row. Shape suffixes: B rows, T tokens of a row, N response tokens of all groups, A
axes of a position (1, or 3 with multi-axis rotary positions).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from masters.errors import ModelError
from masters.models.encode import EncodedPrompt, pad_rows
from masters.models.families import family_of

Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class GroupSpan:
    """Where one group lies in its row: [start, stop) of its prompt and of each response."""

    row: int
    prompt: Span
    responses: tuple[Span, ...]

    @property
    def stop(self) -> int:
        """One past the group's last token."""
        return self.responses[-1][1] if self.responses else self.prompt[1]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where everything lies in B rows of T tokens; ``groups`` in the order they were given."""

    shape: tuple[int, int]
    groups: tuple[GroupSpan, ...]

    def in_row_order(self) -> list[int]:
        """Indices of the groups as they stand in the rows, first row first."""
        return sorted(
            range(len(self.groups)), key=lambda g: (self.groups[g].row, self.groups[g].prompt)
        )

    def rows_and_columns(self) -> tuple[list[int], list[int]]:
        """(row, column) of the hidden state that predicts each of the N response tokens."""
        rows, columns = [], []
        for group in self.groups:
            for start, stop in group.responses:
                rows += [group.row] * (stop - start)
                columns += [group.prompt[1] - 1, *range(start, stop - 1)]
        return rows, columns


def lay_out(sizes: Sequence[tuple[int, Sequence[int]]]) -> Layout:
    """Groups put into rows, the longest first, each into the first row that has room for it.

    Args:
        sizes: for each group the tokens of its prompt and of each response, all at least 1.

    Raises:
        ValueError: an empty response; it has nothing to predict.

    Returns:
        Rows as long as the longest group.
    """
    if any(length < 1 for _, responses in sizes for length in responses):
        raise ValueError("a response without tokens; expected at least one")
    lengths = [prompt + sum(responses) for prompt, responses in sizes]
    width = max(lengths)
    filled: list[int] = []
    found: dict[int, GroupSpan] = {}
    for g in sorted(range(len(sizes)), key=lambda g: (-lengths[g], g)):
        row = next((r for r, n in enumerate(filled) if n + lengths[g] <= width), len(filled))
        if row == len(filled):
            filled.append(0)
        prompt, responses = sizes[g]
        at = filled[row] + prompt
        spans = []
        for length in responses:
            spans.append((at, at + length))
            at += length
        start = filled[row]
        found[g] = GroupSpan(row=row, prompt=(start, start + prompt), responses=tuple(spans))
        filled[row] = at
    groups = tuple(found[g] for g in range(len(sizes)))
    return Layout(shape=(len(filled), width), groups=groups)


def packed_inputs(
    vlm: Any,
    groups: Sequence[tuple[EncodedPrompt, Sequence[Sequence[int]]]],
    layout: Layout,
    *,
    pad: int,
    device: torch.device | str = "cpu",
) -> dict[str, torch.Tensor]:
    """Model inputs [B, T] of groups in this layout, positions included, without an attention mask.

    Args:
        vlm: whose positions count (its ``get_rope_index`` where it has one).
        groups: prompts and their responses' ids, in the layout's order.
        pad: padding id.
    """
    order = layout.in_row_order()
    prompts = pad_rows([(groups[g][0], ()) for g in order], pad=pad)
    position_AGP = _prompt_positions(vlm, prompts)
    axes = position_AGP.shape[0]
    ids_BT = torch.full(layout.shape, pad, dtype=torch.long)
    position_ABT = torch.zeros((axes, *layout.shape), dtype=torch.long)
    types = {name: torch.zeros_like(ids_BT) for name in groups[order[0]][0].token_types}
    for i, g in enumerate(order):
        (prompt, responses), span = groups[g], layout.groups[g]
        start, stop = span.prompt
        ids_BT[span.row, start:stop] = torch.tensor(prompt.ids)
        position_AP = position_AGP[:, i, : stop - start]
        position_ABT[:, span.row, start:stop] = position_AP
        for name, values in prompt.token_types.items():
            types[name][span.row, start:stop] = torch.tensor(values)
        after = int(position_AP.max()) + 1
        for response, (begin, end) in zip(responses, span.responses, strict=True):
            ids_BT[span.row, begin:end] = torch.tensor(response)
            position_ABT[:, span.row, begin:end] = torch.arange(after, after + end - begin)
    images = {k: v for k, v in prompts.items() if k not in ("input_ids", "attention_mask", *types)}
    position = position_ABT if axes > 1 else position_ABT[0]
    inputs = {"input_ids": ids_BT, "position_ids": position, **types, **images}
    return {name: value.to(device) for name, value in inputs.items()}


def _prompt_positions(vlm: Any, prompts: dict[str, torch.Tensor]) -> torch.Tensor:
    """Positions [A, G, P] of right-padded prompts, as the model itself would count them."""
    index = getattr(vlm.base_model, "get_rope_index", None)
    if index is None:
        return (prompts["attention_mask"].cumsum(-1) - 1).clamp(min=0)[None]
    wanted = inspect.signature(index).parameters
    return index(**{name: value for name, value in prompts.items() if name in wanted})[0]


def attention_masks(
    vlm: Any, inputs: dict[str, torch.Tensor], layout: Layout
) -> torch.Tensor | dict[str, torch.Tensor]:
    """The mask of `packed_mask` as this model takes it: one, or one for each kind of its layers.

    Windows are measured in positions, as they would be in a row of prompt and response alone; where
    the family lets the tokens of a picture see each other, they do.

    Raises:
        ModelError: the language model has layers of another kind (linear attention, say), whose
            state would run from one response into the next.
    """
    config = vlm.config.get_text_config()
    if kinds := sorted(other_layers(config)):
        raise ModelError(
            f"model type '{vlm.config.model_type}' has {', '.join(kinds)} layers; responses in one "
            "row would reach each other through them. They are given rows of their own"
        )
    device = inputs["input_ids"].device
    full = packed_mask(layout, device=device)
    if family_of(vlm).bidirectional_images:
        full = full | _picture_blocks(inputs["token_type_ids"])[:, None]
    adds = config._attn_implementation == "eager"  # adds what sdpa selects by
    if "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
        return _added(full, vlm.dtype) if adds else full
    position_BT = inputs["position_ids"]
    far_BTT = (position_BT[:, :, None] - position_BT[:, None, :]).abs() >= config.sliding_window
    masks = {"full_attention": full, "sliding_attention": full & ~far_BTT[:, None]}
    return {name: _added(mask, vlm.dtype) for name, mask in masks.items()} if adds else masks


def _added(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where the mask is true, else the lowest number: to be added to scores."""
    low = torch.finfo(dtype).min
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, low)


def other_layers(config: Any) -> set[str]:
    """The kinds of a language model's layers that are no softmax attention."""
    kinds: set[str] = set(getattr(config, "layer_types", None) or ())
    return kinds - {"full_attention", "sliding_attention"}


def _picture_blocks(types_BT: torch.Tensor) -> torch.Tensor:
    """Pairs of tokens [B, T, T] in the same run of picture tokens (type 1)."""
    picture_BT = types_BT == 1
    starts_BT = picture_BT & ~torch.nn.functional.pad(picture_BT, (1, 0))[:, :-1]
    run_BT = starts_BT.cumsum(1).masked_fill(~picture_BT, 0)
    return (run_BT[:, :, None] == run_BT[:, None, :]) & picture_BT[:, :, None]


def packed_mask(layout: Layout, *, device: torch.device | str = "cpu") -> torch.Tensor:
    """Who sees whom, bool [B, 1, T, T]: the prompt and oneself, never another response or group.

    Padding sees itself only, so that no softmax is empty.
    """
    rows, width = layout.shape
    group_BT = torch.full(layout.shape, -1)
    part_BT = torch.zeros(layout.shape, dtype=torch.long)
    for g, group in enumerate(layout.groups):
        group_BT[group.row, group.prompt[0] : group.stop] = g
        for j, (start, stop) in enumerate(group.responses):
            part_BT[group.row, start:stop] = j + 1
    group_BT, part_BT = group_BT.to(device), part_BT.to(device)
    order_T = torch.arange(width, device=device)
    same_BTT = group_BT[:, :, None] == group_BT[:, None, :]
    part_BTT = (part_BT[:, None, :] == 0) | (part_BT[:, None, :] == part_BT[:, :, None])
    causal_TT = order_T[:, None] >= order_T[None, :]
    real_BTT = (group_BT >= 0)[:, None, :]
    itself_TT = torch.eye(width, dtype=torch.bool, device=device)
    return ((same_BTT & part_BTT & causal_TT & real_BTT) | itself_TT)[:, None]
