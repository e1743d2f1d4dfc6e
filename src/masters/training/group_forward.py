"""How a model sees a group, as repeated prompts or one packed row, and the check of the latter.

``repeat`` gives every response a row with the prompt in front: the reference. ``mask`` packs a
group into one row under a 4-D mask, ``attention`` packs it for `models.packed_attention`. All give
the same hidden states up to rounding; a model for which they don't is given ``repeat``. Shape
suffixes: N response tokens of distinct rows.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from masters.artifacts import atomic_write_text
from masters.errors import ModelError
from masters.models.families import family_of
from masters.models.feature_cache import PICTURES, feature_cache
from masters.models.memory import doing, is_out_of_memory
from masters.models.output_head import whole_head
from masters.models.packed_attention import (
    DEVICES,
    LAYOUT,
    NAME,
    has_cpu_kernels,
    use_packed_attention,
)
from masters.models.packed_flex import check_kernel
from masters.models.packing import attention_masks, lay_out, other_layers, packed_inputs
from masters.models.sight import evaluating
from masters.ranks import gathered, given_by
from masters.training.groups import Group, Rows, make_rows
from masters.training.student import autocast, response_states
from masters.training.token_scores import ScoreSettings, token_scores

Form = Literal["repeat", "mask", "attention"]
#: Up to this many tokens a mask is no dearer than three kernel calls a group and layer; measured
#: on a CPU by ``benchmarks/step.py --only forms``, 64 and 512 wide.
SHORT = 256
#: A packed row may differ from repeated ones by so many times what two batch shapes differ.
TIMES_NOISE = 4.0
FLOOR = 1e-4
FIRST_USE = "first_use.json"
#: Keys of a language model's configuration that make its attention more than a causal softmax.
_MORE = ("attn_logit_softcapping", "attention_dropout")
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
    # Features that are kept are found by their prompts: no pixels are brought to the device.
    kept = feature_cache(vlm) is not None
    if form == "repeat":
        repeated, column_N = rows.inputs(teacher=teacher, pad=pad, device=device, pixels=not kept)
        shown = {PICTURES: rows.prompts(teacher=teacher)} if kept else {}
        return {**repeated, **shown}, rows.row_N.to(device), column_N
    groups = rows.by_group(teacher=teacher)
    layout = lay_out([(len(p.ids), [len(ids) for ids in responses]) for p, responses in groups])
    seen = [(p.without_pixels(), responses) for p, responses in groups] if kept else groups
    inputs: Inputs = packed_inputs(vlm, seen, layout, pad=pad, device=device)
    if kept:
        inputs[PICTURES] = [groups[g][0] for g in layout.in_row_order()]
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


def write_verdicts(folder: Path, verdicts: Mapping[str, Verdict]) -> None:
    """Keeps what a first batch showed of each model, by its role, in a stage's folder."""
    shown = {name: asdict(verdict) for name, verdict in verdicts.items()}
    atomic_write_text(folder / FIRST_USE, json.dumps(shown, indent=1) + "\n")


def read_forms(folder: Path) -> dict[str, Form]:
    """The forms that ``write_verdicts`` kept, by role; empty where it kept none."""
    path = folder / FIRST_USE
    if not path.exists():
        return {}
    return {name: kept["form"] for name, kept in json.loads(path.read_text()).items()}


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
    if config._attn_implementation.startswith("flash"):
        return "repeat", "flash attention takes no 4-D mask"
    plain = (
        config._attn_implementation in ("sdpa", NAME)
        and not family_of(vlm).bidirectional_images
        and "sliding_attention" not in (getattr(config, "layer_types", None) or ())
        and not any(getattr(config, key, None) for key in _MORE)
    )
    if asked == "attention" and not (plain and vlm.device.type in DEVICES):
        return "mask", (
            f"the attention function computes on {' and '.join(DEVICES)}, not {vlm.device.type}"
            if plain
            else "the model needs more than causal sdpa"
        )
    # On CUDA a mask has sdpa make all T^2 pairs, at least twice what is seen: 6 % of the arithmetic
    # of a 2B model at 1,500 tokens, 28 % at 16,000. Whether FlexAttention gains that much is not
    # measured (benchmarks/gpu_suite.py would), so there it must be asked for.
    long = vlm.device.type == "cpu" and tokens > SHORT
    wanted = asked == "attention" or (asked == "auto" and plain and long)
    return ("attention" if wanted else "mask"), ""


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
    limit: int | None = None,
    root: nn.Module | None = None,
) -> Verdict | None:
    """Compares packed rows with repeated ones on real groups and says which form to use.

    Mean |difference| of the tokens' log-probs must stay within 4 times that of two repeated runs of
    different shape (rows one at a time, two at a time, and padded to the packed row's length), or
    within 1e-4 nat. Where the attention function fails a mask may do, which is tried next.

    Ranks that train together come here at the same time, each with groups of its own. All look at
    those of one of them, in equally many passes, and a form that one rank finds wanting is none.

    Args:
        vlm: its attention is made ready for the form; dropout rests meanwhile.
        groups: of a first batch; the two with the most distinct responses are looked at.
        asked: auto, or a form.
        teacher: read the teachers' prompts.
        limit: distinct responses in one pass, as in the step; None: all.
        root: the module through which ``vlm`` is used where that is wrapped or sharded; it is
            called as a `Student` is.

    Returns:
        None where no group has two distinct responses: there is nothing to share yet.
    """
    looked_at = sorted(groups, key=_distinct, reverse=True)[:2]
    counts = gathered([_distinct(group) for group in looked_at])
    if max(counts, default=[])[:1] <= [1]:
        return None
    looked_at = given_by(counts.index(max(counts)), looked_at)
    rows = make_rows(looked_at)
    rows = rows if limit is None else rows.part(0, min(limit, len(rows.spans)))
    longest = gathered(max((_packed_tokens(group, teacher) for group in groups), default=0))
    form, reason = choose_form(vlm, asked, tokens=max(longest))

    def scored(rows: Rows, form: Form, padding: int = 0) -> torch.Tensor:
        return _log_probs(vlm, rows, form, teacher, pad, precision, vocabulary, padding, root)

    def in_batches(size: int, padding: int = 0) -> torch.Tensor:
        starts = range(0, len(rows.spans), size)
        parts = [rows.part(u, min(u + size, len(rows.spans))) for u in starts]
        return torch.cat([scored(part, "repeat", padding) for part in parts])

    def packed(form: Form) -> torch.Tensor:
        if form == "attention" and not has_cpu_kernels(vlm.device):
            _check_kernel(vlm, precision)
        return scored(rows, form)

    if form == "repeat":
        return _said(vlm, Verdict(form=form, asked=asked, difference=0, noise=0, reason=reason))
    difference = math.nan
    with evaluating(vlm), doing("running the first batch"):
        repeated_N = in_batches(1)
        others = (in_batches(2), in_batches(1, padding=len(rows.targets_N)))
        noise = max((repeated_N - other_N).abs().mean().item() for other_N in others)
        while form != "repeat":
            make_ready(vlm, form)
            found = gathered(_apart(repeated_N, lambda form=form: packed(form), noise))
            difference, why = next((one for one in found if one[1]), max(found))
            if not why:
                break
            reason, form = why, "mask" if form == "attention" else "repeat"
    return _said(
        vlm,
        Verdict(form=form, asked=asked, difference=difference, noise=noise, reason=reason),
    )


def _check_kernel(vlm: Any, precision: torch.dtype) -> None:
    config = vlm.config.get_text_config()
    heads = config.num_attention_heads
    check_kernel(
        (heads, getattr(config, "num_key_value_heads", None) or heads),
        getattr(config, "head_dim", None) or config.hidden_size // heads,
        dtype=vlm.dtype if precision == torch.float32 else precision,
        device=vlm.device,
        backward=any(parameter.requires_grad for parameter in vlm.parameters()),
    )


def _said(vlm: Any, verdict: Verdict) -> Verdict:
    if verdict.reason:
        _LOG.warning(
            "%s: groups are seen as '%s', not '%s': %s",
            vlm.name_or_path, verdict.form, verdict.asked, verdict.reason,
        )  # fmt: skip
    return verdict


def _apart(
    repeated_N: torch.Tensor, packed: Callable[[], torch.Tensor], noise: float
) -> tuple[float, str]:
    """(mean difference, why the packed form is not to be used; empty where it is)."""
    try:
        difference = (repeated_N - packed()).abs().mean().item()
    except (ModelError, RuntimeError, ValueError, TypeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        return math.nan, f"its packed forward pass failed ({error})"
    if difference <= max(TIMES_NOISE * noise, FLOOR):
        return difference, ""
    return difference, (
        f"packed and repeated log-probs differ by {difference:.2g} nat a token, two repeated "
        f"batches by {noise:.2g}"
    )


def _distinct(group: Group) -> int:
    return len({response.token_ids for response in group.responses})


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
    padding: int,
    root: nn.Module | None,
) -> torch.Tensor:
    """Log-prob [N] of each response token; ``padding``: so many columns more behind each row."""
    device = vlm.device
    inputs, row_N, column_N = group_inputs(
        vlm, rows, form=form, teacher=teacher, pad=pad, device=device
    )
    if padding:
        shape = inputs["input_ids"].shape
        by_token = [n for n, value in inputs.items() if getattr(value, "shape", None) == shape]
        fill = {"input_ids": pad}
        for name in by_token:
            wider = torch.nn.functional.pad(inputs[name], (0, padding), value=fill.get(name, 0))
            inputs[name] = wider
    targets_N = rows.targets_N.to(device)
    settings = ScoreSettings(vocabulary=vocabulary, dtype=precision)
    if root is not None:
        return root(inputs, row_N, column_N, targets_N, None, None, settings)[1]
    with autocast(device, precision):
        hidden_ND = response_states(vlm, inputs, row_N, column_N)
    head_VD = whole_head(vlm, hidden_ND.device)
    return token_scores(hidden_ND, head_VD, None, None, targets_N, settings)[1]
