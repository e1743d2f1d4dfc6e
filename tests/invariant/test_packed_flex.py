"""FlexAttention over packed rows gives what repeated prompts give; it is refused where it cannot.

What a GPU compiles runs here as the operator's own mathematics, on the same block mask: torch has
no compiled backward pass for a CPU, and refuses gradients there for that reason alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
from torch._dynamo.testing import CompileCounter

from masters.errors import ModelError
from masters.models import packed_attention, packed_flex
from masters.models.packed_flex import BLOCK, block_mask, check_kernel, flex_packed
from masters.models.packing import Layout, lay_out, packed_mask
from masters.training import group_forward
from masters.training.group_forward import choose_form

from .conftest import Tiny, make_groups
from .test_packed import apart, first_verdict, opened, scores_and_gradient

CPU = torch.device("cpu")
LAYOUTS = {
    "short rows": lay_out([(4, [6, 10]), (3, [2]), (2, [3, 1]), (5, [1])]),
    "one block": lay_out([(100, [20, 8])]),
    "one long row": lay_out([(400, [60, 1, 130, 33])]),
    "two pairs in a block": lay_out([(250, [6]), (100, [27]), (2, [1])]),
    "several groups in a row": lay_out([(300, [90, 70]), (90, [40, 2]), (150, [10]), (7, [])]),
}


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> list[Layout]:
    """Lets FlexAttention compute on the CPU, with gradients; the layouts that it was called for."""
    called: list[Layout] = []

    def noted(*args: Any) -> torch.Tensor:
        called.append(args[3])
        return flex_packed(*args)

    monkeypatch.setattr(torch_flex, "_validate_device", lambda *args: None)
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(packed_attention, "has_cpu_kernels", lambda device: False)
    monkeypatch.setattr(packed_attention, "flex_packed", noted)
    return called


@pytest.mark.parametrize(
    "family, checkpointing",
    [("qwen3_vl", False), ("qwen3_vl", True), ("internvl_qwen3", False), ("idefics3", False)],
)
def test_flex_is_repeated(
    tmp_path: Path, eager: list[Layout], family: str, checkpointing: bool
) -> None:
    model, ids, groups = opened(tmp_path, family)
    config = model.config.get_text_config()
    assert config.num_attention_heads == 2 * config.num_key_value_heads
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    expected, gradient = scores_and_gradient(model, ids, groups, "repeat")
    assert not eager
    found, packed = scores_and_gradient(model, ids, groups, "attention")
    assert len(eager) == config.num_hidden_layers * (2 if checkpointing else 1)
    assert model.dtype == torch.float64
    assert (found - expected).abs().max() < 1e-10
    assert apart(gradient, packed) < 1e-10


def dense(mask: Any) -> torch.Tensor:
    """What a block mask says of every pair of tokens, block by block, bool [L, L]."""
    length = mask.shape[-1]
    place = torch.arange(length)
    zero = torch.zeros((), dtype=torch.long)
    by_token = mask.mask_mod(zero, zero, place[:, None], place[None, :])
    seen = torch.zeros(length, length, dtype=torch.bool)
    for counts, which, whole in (
        (mask.kv_num_blocks, mask.kv_indices, False),
        (mask.full_kv_num_blocks, mask.full_kv_indices, True),
    ):
        for i in range(length // BLOCK):
            for j in which[0, 0, i, : counts[0, 0, i]].tolist():
                rows, columns = (slice(n * BLOCK, (n + 1) * BLOCK) for n in (i, j))
                block = by_token[rows, columns]
                assert block.any() and (bool(block.all()) == whole)
                seen[rows, columns] = block
    assert torch.equal(seen, by_token)  # no block that somebody sees is left out
    return seen


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_block_mask_is_the_mask(name: str) -> None:
    layout = LAYOUTS[name]
    rows, width = layout.shape
    found = dense(block_mask(layout, CPU))
    expected = torch.eye(len(found), dtype=torch.bool)
    for row, seen in enumerate(packed_mask(layout)[:, 0]):
        own = slice(row * width, (row + 1) * width)
        expected[own, own] = seen
    assert torch.equal(found, expected)


def test_it_leaves_out_what_nobody_sees() -> None:
    layout = lay_out([(1024, [128] * 8)])
    mask = block_mask(layout, CPU)
    # 8 blocks of prompt: a triangle. Each response: all of the prompt and itself.
    assert int(mask.full_kv_num_blocks.sum()) == 28 + 8 * 8
    assert int(mask.kv_num_blocks.sum()) == 8 + 8
    assert mask.sparsity() == pytest.approx(100 * (1 - 108 / 256))


def inputs(layout: Layout) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries of four heads, keys and values of two."""
    rows, width = layout.shape
    draw = torch.Generator().manual_seed(0)

    def heads(count: int) -> torch.Tensor:
        x = torch.randn(rows, count, width, 16, dtype=torch.float64, generator=draw)
        return x.requires_grad_()

    return heads(4), heads(2), heads(2)


@pytest.mark.parametrize("name", LAYOUTS)
def test_values_and_gradients_by_torchs_own_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *args: None)
    layout = LAYOUTS[name]
    leaves = query, key, value = inputs(layout)
    out = flex_packed(query, key, value, layout, 0.3)
    slope = torch.randn_like(out)
    assert out.is_contiguous()
    found = [out, *torch.autograd.grad(out, leaves, slope)]
    plain = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, packed_mask(layout), scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    for one, other in zip(found, [plain, *torch.autograd.grad(plain, leaves, slope)], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_one_compilation_serves_rows_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *args: None)
    counter = CompileCounter()
    kernel = torch.compile(packed_flex._flex, backend=counter, dynamic=True, fullgraph=True)
    monkeypatch.setattr(packed_flex, "_kernel", lambda device: kernel)
    for prompt, responses in [(300, [60, 33]), (500, [50] * 8), (333, [5]), (1000, [60, 70, 80])]:
        layout = lay_out([(prompt, responses), (prompt // 2, responses)])
        query, key, value = inputs(layout)
        flex_packed(query, key, value, layout, 0.3)
    assert counter.frame_count == 1


def kernel_is_checked(backward: bool = True) -> None:
    check_kernel((4, 2), 16, dtype=torch.float32, device=CPU, backward=backward)


def test_the_kernel_is_checked_with_its_gradient(
    eager: list[Layout], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel_is_checked()

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # pyright: ignore
            return 1.02 * grad

    def wrong_gradient(query: Any, key: Any, value: Any, *rest: Any) -> torch.Tensor:
        return packed_flex._flex(query, Wrong.apply(key), value, *rest)

    monkeypatch.setattr(packed_flex, "_kernel", lambda device: wrong_gradient)
    kernel_is_checked(backward=False)
    with pytest.raises(ModelError, match="FlexAttention's dk differs"):
        kernel_is_checked()

    def causal(layout: Layout) -> torch.Tensor:
        ranges = torch.zeros(3, -(-layout.shape[0] * layout.shape[1] // BLOCK) * BLOCK)
        return ranges.int()

    monkeypatch.undo()
    monkeypatch.setattr(packed_flex, "seen_ranges", causal)
    block_mask.cache_clear()
    with pytest.raises(ModelError, match="FlexAttention's output differs"):
        kernel_is_checked(backward=False)
    block_mask.cache_clear()


def raising(error: Exception) -> Callable[..., Any]:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fails


def test_a_compiler_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = raising(AssertionError("no such kernel\nand pages of it"))
    monkeypatch.setattr(packed_flex, "_kernel", lambda device: failing)
    with pytest.raises(ModelError, match=r"not run here \(AssertionError: no such kernel\)$"):
        kernel_is_checked()
    failing = raising(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        kernel_is_checked()


def on_device(monkeypatch: pytest.MonkeyPatch, model: Any, name: str) -> None:
    monkeypatch.setattr(type(model), "device", torch.device(name))


def test_who_is_given_the_attention_function(
    student: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = student.model
    assert choose_form(model, "auto", tokens=9999)[0] == "attention"
    on_device(monkeypatch, model, "cuda")
    assert choose_form(model, "attention", tokens=1) == ("attention", "")
    assert choose_form(model, "auto", tokens=9999) == ("mask", "")
    for key in ("attn_logit_softcapping", "attention_dropout"):
        with monkeypatch.context() as patch:
            patch.setattr(model.config.get_text_config(), key, 0.5, raising=False)
            assert choose_form(model, "auto", tokens=9999)[0] == "mask"
            form, reason = choose_form(model, "attention", tokens=1)
            assert form == "mask" and "more than causal sdpa" in reason
    on_device(monkeypatch, model, "mps")
    form, reason = choose_form(model, "attention", tokens=1)
    assert form == "mask" and "computes on cpu and cuda, not mps" in reason


def test_a_kernel_that_fails_leaves_the_mask(
    student: Tiny, teacher: Tiny, eager: list[Layout], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = make_groups(student, teacher)[:3]
    monkeypatch.setattr(group_forward, "has_cpu_kernels", lambda device: False)
    verdict = first_verdict(student, groups, "attention")
    assert verdict.form == "attention" and eager and not verdict.reason
    wrong = raising(ModelError("FlexAttention's dk differs"))
    monkeypatch.setattr(group_forward, "check_kernel", wrong)
    verdict = first_verdict(student, groups, "attention")
    assert verdict.form == "mask" and "FlexAttention's dk differs" in verdict.reason
    assert verdict.difference < 1e-5


@pytest.mark.parametrize(
    "name, wanted",
    [("softcap", 50.0), ("s_aux", torch.zeros(4)), ("dropout", 0.1)],
)
def test_more_than_a_softmax_is_refused(name: str, wanted: Any) -> None:
    layout = LAYOUTS["one block"]
    given = {packed_attention.LAYOUT: layout, name: wanted}
    query, key, value = inputs(layout)
    with pytest.raises(ModelError, match=f"a layer wants {name}"):
        packed_attention.packed_attention(torch.nn.Module(), query, key, value, None, **given)


def test_sinks_are_given_the_mask(
    student: Tiny, teacher: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that hand down sinks: what no configuration says, the first use does."""
    attend = packed_attention.packed_attention

    def with_sinks(*args: Any, **kwargs: Any) -> Any:
        return attend(*args, **kwargs, s_aux=torch.zeros(4))

    monkeypatch.setattr(packed_attention, "packed_attention", with_sinks)
    verdict = first_verdict(student, make_groups(student, teacher)[:3], "attention")
    assert verdict.form == "mask" and "a layer wants s_aux" in verdict.reason
