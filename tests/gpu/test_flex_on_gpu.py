"""FlexAttention over packed rows on a CUDA device: compiled, it is still plain attention."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from masters.models.packed_flex import check_kernel, flex_packed
from masters.models.packing import lay_out
from masters.training.group_forward import first_use
from tests.invariant.conftest import Tiny, make_groups
from tests.invariant.test_packed import apart, step_gradient

pytestmark = pytest.mark.gpu
#: Heads of queries and of keys, channels: Qwen3-VL's 2B and 32B, a small head, no sharing.
HEADS = [((16, 8), 128), ((64, 8), 128), ((4, 2), 16), ((6, 6), 64)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads, channels", HEADS)
def test_the_kernel_and_its_gradient(
    heads: tuple[int, int], channels: int, dtype: torch.dtype, cuda: torch.device
) -> None:
    check_kernel(heads, channels, dtype=dtype, device=cuda, backward=True)


def test_one_compilation_serves_all_lengths(cuda: torch.device) -> None:
    def once(prompt: int, responses: list[int]) -> None:
        layout = lay_out([(prompt, responses), (prompt // 2, responses)])
        rows, width = layout.shape
        leaves = [
            torch.randn(rows, n, width, 64, device=cuda, dtype=torch.bfloat16).requires_grad_()
            for n in (8, 4, 4)
        ]
        flex_packed(leaves[0], leaves[1], leaves[2], layout, 0.125).sum().backward()

    once(300, [60, 33])
    before = counters["stats"]["unique_graphs"]
    for prompt, responses in [(500, [50] * 8), (333, [5]), (2000, [60, 70, 80])]:
        once(prompt, responses)
    assert counters["stats"]["unique_graphs"] == before


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_first_use_takes_it(
    student: Tiny, teacher: Tiny, device: torch.device, precision: torch.dtype
) -> None:
    verdict = first_use(
        student.model, make_groups(student, teacher)[:3], "attention", teacher=False,
        pad=student.ids.pad, precision=precision, vocabulary=student.ids.vocabulary,
    )  # fmt: skip
    assert verdict is not None
    # In bf16 the check may prefer the mask, which rounds as repeated rows do.
    taken = ("attention",) if precision == torch.float32 else ("attention", "mask")
    assert verdict.form in taken, verdict


def test_a_step_is_that_of_repeated_prompts(
    student: Tiny, teacher: Tiny, device: torch.device
) -> None:
    groups = make_groups(student, teacher)
    whole, _ = step_gradient(student, teacher, groups)
    found, _ = step_gradient(
        student, teacher, groups, student_form="attention", teacher_form="attention"
    )
    assert apart(whole, found) < 1e-4
