"""How a model sees a group, as repeated prompts or one packed row, and the check of the latter.

``repeat`` gives every response a row with the prompt in front: the reference. ``mask`` packs a
group into one row under a 4-D mask, ``attention`` packs it for `models.packed_attention`. All give
the same hidden states up to rounding; a model for which they don't is given ``repeat``. Shape
suffixes: N response tokens of distinct rows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from masters.errors import ModelError
from masters.models.families import family_of
from masters.models.packed_attention import LAYOUT, NAME, use_packed_attention
from masters.models.packing import attention_masks, lay_out, other_layers, packed_inputs
from masters.training.groups import Group, Rows, make_rows
from masters.training.student import autocast, response_states

Form = Literal["repeat", "mask", "attention"]
#: Up to this many tokens a mask is no dearer than three kernel calls a group and layer; measured
#: on a CPU by ``benchmarks/step.py --only forms``, 64 and 512 wide.
SHORT = 256
#: A packed row may differ from repeated ones by so many times what two batch shapes differ.
TIMES_NOISE = 4.0
FLOOR = 1e-4
_LOG = logging.getLogger(__name__)

Inputs = dict[str, Any]


def group_inputs(
    vlm: Any, rows: Rows, *, form: Form, teacher: bool, pad: int, device: torch.device | str
) -> tuple[Inputs, torch.Tensor, torch.Tensor]:
    """(model inputs, row [N], column [N] of the hidden state that predicts each response token).

    Args:
        vlm: whose positions and masks count.
        rows: the distinct responses of some groups.
        form: how they are arranged.
        teacher: read the teachers' prompts.
        pad: padding id.
        device: of the model's inputs.
    """
    if form == "repeat":
        inputs, column_N = rows.inputs(teacher=teacher, pad=pad, device=device)
        return inputs, rows.row_N.to(device), column_N
    groups = rows.by_group(teacher=teacher)
    layout = lay_out([(len(p.ids), [len(ids) for ids in responses]) for p, responses in groups])
    inputs: Inputs = packed_inputs(vlm, groups, layout, pad=pad, device=device)
    if form == "mask":
        inputs["attention_mask"] = attention_masks(vlm, inputs, layout)
    else:
        # Four dimensions are taken as made: transformers makes no T x T mask of its own.
        inputs["attention_mask"] = torch.zeros(1, 1, 0, 0, device=device)
        inputs[LAYOUT] = layout
    row_N, column_N = (torch.tensor(x, device=device) for x in layout.rows_and_columns())
    return inputs, row_N, column_N


def make_ready(vlm: Any, form: Form) -> None:
    """Has the model's attention take what ``group_inputs`` gives it in this form."""
    if form == "attention":
        use_packed_attention(vlm)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the first batch showed.

    Args:
        form: the form to use.
        asked: the form that was asked for.
        difference: mean |log-prob difference| of packed and repeated tokens, in nats.
        noise: the same of two repeated runs of different batch shapes.
        reason: why ``form`` is not ``asked``; empty where it is.
    """

    form: Form
    asked: str
    difference: float
    noise: float
    reason: str = ""


def choose_form(vlm: Any, asked: str, *, tokens: int) -> tuple[Form, str]:
    """(the form that suits the model, why it is not the one asked for).

    Args:
        asked: auto, or a form.
        tokens: of the longest packed row at hand; auto masks short ones.
    """
    if asked == "repeat":
        return "repeat", ""
    config = vlm.config.get_text_config()
    if kinds := sorted(other_layers(config)):
        return "repeat", f"its language model has {', '.join(kinds)} layers"
    plain = (
        vlm.config.get_text_config()._attn_implementation in ("sdpa", NAME)
        and not family_of(vlm).bidirectional_images
        and "sliding_attention" not in (getattr(config, "layer_types", None) or ())
    )
    if not plain and asked == "attention":
        return "mask", "its language model needs more than causal sdpa attention"
    if vlm.config.get_text_config()._attn_implementation.startswith("flash"):
        return "repeat", "flash attention takes no 4-D mask"
    if asked == "auto":
        on_cpu = vlm.device.type == "cpu"
        return ("attention" if plain and on_cpu and tokens > SHORT else "mask"), ""
    return ("attention" if asked == "attention" else "mask"), ""


@torch.no_grad()
def first_use(
    vlm: Any,
    groups: Sequence[Group],
    asked: str,
    *,
    teacher: bool,
    pad: int,
    precision: torch.dtype,
    vocabulary: int,
) -> Verdict:
    """Compares packed rows with repeated ones on real groups and says which form to use.

    Mean |difference| of the tokens' log-probs must stay within 4 times that of two repeated runs of
    different batch shape, or within 1e-4 nat.

    Args:
        vlm: in the state it will be used in; its attention is made ready for the form.
        groups: of a first batch; two are looked at.
        asked: auto, or a form.
        teacher: read the teachers' prompts.
    """
    looked_at = sorted(groups, key=lambda group: -len(group.responses))[:2]
    rows = make_rows(looked_at)
    tokens = max((_packed_tokens(group, teacher) for group in groups), default=0)
    form, reason = choose_form(vlm, asked, tokens=tokens)
    if len(rows.spans) == len(looked_at):  # nothing to share: one response a question
        form, reason = "repeat", ""
    if form == "repeat":
        return _said(vlm, Verdict(form=form, asked=asked, difference=0, noise=0, reason=reason))
    make_ready(vlm, form)

    def scored(rows: Rows, form: Form) -> torch.Tensor:
        return _log_probs(vlm, rows, form, teacher, pad, precision, vocabulary)

    together = scored(rows, "repeat")
    alone = torch.cat([scored(rows.part(u, u + 1), "repeat") for u in range(len(rows.spans))])
    noise = (together - alone).abs().mean().item()
    try:
        difference = (together - scored(rows, form)).abs().mean().item()
    except (ModelError, RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        reason = f"its packed forward pass failed ({error})"
        return _said(vlm, Verdict(form="repeat", asked=asked, difference=-1, noise=noise,
                                  reason=reason))  # fmt: skip
    if not difference <= max(TIMES_NOISE * noise, FLOOR):
        reason = (
            f"packed and repeated log-probs differ by {difference:.2g} nat a token, two repeated "
            f"batches by {noise:.2g}"
        )
        form = "repeat"
    return _said(
        vlm,
        Verdict(form=form, asked=asked, difference=difference, noise=noise, reason=reason),
    )


def _packed_tokens(group: Group, teacher: bool) -> int:
    prompt = group.teacher_prompt if teacher else group.student_prompt
    distinct = {response.token_ids for response in group.responses}
    return (0 if prompt is None else len(prompt.ids)) + sum(map(len, distinct))


def _log_probs(
    vlm: Any,
    rows: Rows,
    form: Form,
    teacher: bool,
    pad: int,
    precision: torch.dtype,
    vocabulary: int,
) -> torch.Tensor:
    device = vlm.device
    inputs, row_N, column_N = group_inputs(
        vlm, rows, form=form, teacher=teacher, pad=pad, device=device
    )
    with autocast(device, precision):
        hidden_ND = response_states(vlm, inputs, row_N, column_N)
    head_VD = vlm.get_output_embeddings().weight[:vocabulary]
    logits_NV = hidden_ND.to(head_VD.dtype) @ head_VD.T
    targets_N = rows.targets_N.to(device)
    return logits_NV.float().log_softmax(-1).gather(1, targets_N[:, None])[:, 0]


def _said(vlm: Any, verdict: Verdict) -> Verdict:
    if verdict.reason:
        _LOG.warning(
            "%s: groups are seen as '%s', not '%s': %s",
            vlm.name_or_path, verdict.form, verdict.asked, verdict.reason,
        )  # fmt: skip
    return verdict
