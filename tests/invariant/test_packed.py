"""One row for a question and its responses gives what repeating the prompt gives, and says so where
it does not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from masters.data.questions import Question
from masters.models import packing
from masters.models.encode import EncodedPrompt, PromptText, encode_prompt
from masters.models.load import TokenIds, load_model, load_processor, token_ids
from masters.models.packing import lay_out, packed_mask
from masters.teachers.masked import MaskedTeacher
from masters.training import group_forward
from masters.training.group_forward import Form, first_use, group_inputs, make_ready
from masters.training.groups import Group, Response, make_rows
from masters.training.objective import GrpoTerm, JsdTerm, RewardSettings, StepSums
from masters.training.step import StepSettings, accumulate
from masters.training.student import Student, response_states
from tests.families import FAMILY_NAMES, write_tiny

from .conftest import Tiny, make_groups
from .lifted import lifted

LENGTHS = ((4,), (3, 7, 1, 5), (2, 2), (9, 1, 6))


def as_float64(prompt: EncodedPrompt) -> EncodedPrompt:
    images = {k: v.double() if v.is_floating_point() else v for k, v in prompt.images.items()}
    return EncodedPrompt(
        text=prompt.text, ids=prompt.ids, token_types=prompt.token_types, images=images
    )


def opened(folder: Path, family: str) -> tuple[Any, TokenIds, list[Group]]:
    """A tiny model and groups with pictures of several sizes and ragged responses."""
    write_tiny(folder, family, size="student", seed=3)
    model, processor = load_model(str(folder)), load_processor(str(folder))
    ids = token_ids(model, processor)
    wide = "moe" not in family  # grouped matrix products know no float64
    model = model.double() if wide else model
    draw = np.random.default_rng(0)
    words = [token for token in range(300, 360) if token not in ids.banned]
    groups = []
    for i, lengths in enumerate(LENGTHS):
        image = Image.fromarray(draw.integers(0, 255, (40 + 20 * i, 60, 3), dtype=np.uint8))
        question = Question(id=str(i), text="what colour is it " * (i + 1), images=("x",))
        prompt = encode_prompt(processor, question, [image], PromptText())
        responses = [
            Response(token_ids=tuple(map(int, draw.choice(words, size=n))), source="student")
            for n in lengths
        ]
        groups.append(
            Group(
                question_id=str(i),
                student_prompt=as_float64(prompt) if wide else prompt,
                teacher_prompt=None,
                responses=tuple(responses),
            )
        )
    return model, ids, groups


def scores_and_gradient(
    model: Any, ids: TokenIds, groups: list[Group], form: Form
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-prob of every response token and the gradient of a random weighting of them."""
    rows = make_rows(groups)
    make_ready(model, form)
    model.zero_grad(set_to_none=True)
    inputs, row_N, column_N = group_inputs(
        model, rows, form=form, teacher=False, pad=ids.pad, device="cpu"
    )
    lift = lifted() if model.dtype == torch.float64 else nullcontext()
    with lift:
        hidden_ND = response_states(model, inputs, row_N, column_N)
        logits_NV = hidden_ND @ model.get_output_embeddings().weight.T
        logp_N = logits_NV.log_softmax(-1).gather(1, rows.targets_N[:, None])[:, 0]
        weight_N = torch.randn(len(logp_N), generator=torch.Generator().manual_seed(1))
        (logp_N * weight_N.to(logp_N.dtype)).sum().backward()
    return logp_N.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of any gradient, relative to the largest entry of all."""
    assert one.keys() == other.keys()
    scale = max(gradient.abs().max() for gradient in one.values())
    return max(((one[n] - other[n]).abs().max() / scale).item() for n in one)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("form", ["mask", "attention"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_packed_is_repeated(tmp_path: Path, family: str, form: Form, checkpointing: bool) -> None:
    model, ids, groups = opened(tmp_path, family)
    suited, reason = group_forward.choose_form(model, form, tokens=1)
    assert suited == form or (family == "gemma3" and suited == "mask" and reason)
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    expected, gradient = scores_and_gradient(model, ids, groups, "repeat")
    found, packed = scores_and_gradient(model, ids, groups, suited)
    bound = 1e-10 if model.dtype == torch.float64 else 1e-5
    assert (found - expected).abs().max() < bound
    assert apart(gradient, packed) < bound


def test_short_groups_share_a_row() -> None:
    layout = lay_out([(4, [6, 10]), (3, [2]), (2, [3, 1]), (5, [1])])
    assert layout.shape == (2, 20)
    rows, columns = layout.rows_and_columns()
    assert len(rows) == 6 + 10 + 2 + 3 + 1 + 1
    assert columns[:7] == [3, 4, 5, 6, 7, 8, 3]
    for group in layout.groups:
        assert group.stop <= layout.shape[1]
    seen = packed_mask(layout)[:, 0]
    for g, group in enumerate(layout.groups):
        for h, other in enumerate(layout.groups):
            block = seen[group.row, slice(group.prompt[0], group.stop)]
            block = block[:, slice(other.prompt[0], other.stop)]
            if group.row == other.row:
                assert bool(block.any()) == (g == h)


def test_the_mask_by_hand() -> None:
    expected = [
        "1......",  # prompt
        "11.....",
        "111....",  # first response, two tokens
        "1111...",
        "11..1..",  # second response
        ".....1.",  # padding sees itself
        "......1",
    ]
    layout = lay_out([(2, [2, 1]), (4, [3])])
    assert layout.shape == (2, 7)
    row = layout.groups[0].row
    found = packed_mask(layout)[row, 0]
    assert found.tolist() == [[c == "1" for c in line] for line in expected]
    with pytest.raises(ValueError, match="a response without tokens"):
        lay_out([(2, [2, 0])])


BROKEN: dict[str, Callable[[Any], None]] = {}


def broken(change: Callable[[Any], None]) -> Callable[[Any], None]:
    BROKEN[change.__name__] = change
    return change


@broken
def no_positions(patch: Any) -> None:
    make = packing.packed_inputs

    def without(*args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs = make(*args, **kwargs)
        count = torch.arange(inputs["input_ids"].shape[1])
        return {**inputs, "position_ids": count.expand_as(inputs["input_ids"])}

    patch.setattr(group_forward, "packed_inputs", without)


@broken
def responses_see_each_other(patch: Any) -> None:
    def causal(vlm: Any, inputs: dict[str, Any], layout: Any) -> torch.Tensor:
        width = layout.shape[1]
        return torch.ones(width, width, dtype=torch.bool).tril().expand(layout.shape[0], 1, -1, -1)

    patch.setattr(group_forward, "attention_masks", causal)


@broken
def pictures_in_another_order(patch: Any) -> None:
    make = packing.packed_inputs

    def turned(*args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs = make(*args, **kwargs)
        return {**inputs, "pixel_values": inputs["pixel_values"].flip(0)}

    patch.setattr(group_forward, "packed_inputs", turned)


def groups_for(student: Tiny, teacher: Tiny) -> list[Group]:
    return make_groups(student, teacher)[:3]


@pytest.mark.parametrize("name", BROKEN)
def test_the_first_use_sees_a_broken_packing(
    student: Tiny, teacher: Tiny, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    groups = groups_for(student, teacher)
    settings: dict[str, Any] = {
        "teacher": False, "pad": student.ids.pad, "precision": torch.float32,
        "vocabulary": student.ids.vocabulary,
    }  # fmt: skip
    sound = first_use(student.model, groups, "mask", **settings)
    assert sound.form == "mask" and sound.difference < 1e-5 and not sound.reason
    BROKEN[name](monkeypatch)
    verdict = first_use(student.model, groups, "mask", **settings)
    assert verdict.form == "repeat" and verdict.difference > 1e-3
    assert "packed and repeated log-probs differ" in verdict.reason


def test_linear_attention_is_given_rows_of_its_own(student: Tiny, teacher: Tiny) -> None:
    student.model.config.text_config.layer_types = ["linear_attention", "full_attention"]
    verdict = first_use(
        student.model, groups_for(student, teacher), "auto", teacher=False,
        pad=student.ids.pad, precision=torch.float32, vocabulary=student.ids.vocabulary,
    )  # fmt: skip
    assert verdict.form == "repeat" and "linear_attention layers" in verdict.reason


def step_gradient(
    student: Tiny,
    teacher: Tiny,
    groups: list[Group],
    *,
    precision: torch.dtype = torch.float32,
    **settings: Any,
) -> tuple[dict[str, torch.Tensor], StepSums]:
    module = Student(student.model, precision=precision)
    module.zero_grad(set_to_none=True)
    for form, model in (("student_form", student.model), ("teacher_form", teacher.model)):
        make_ready(model, settings.get(form, "repeat"))
    sums = StepSums()
    accumulate(
        module,
        MaskedTeacher(teacher.model, teacher.folder, None),
        groups,
        ids=student.ids,
        settings=StepSettings(
            terms=(GrpoTerm(kl=0.1), JsdTerm()), rewards=RewardSettings(), beta=0.5,
            temperature=1.0, clip_norm=1.0, vocabulary=student.ids.vocabulary,
            **{"micro_batch": 4, **settings},
        ),
        questions=len(groups),
        sums=sums,
    )  # fmt: skip
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}, sums


@pytest.mark.parametrize("form", ["mask", "attention"])
@pytest.mark.parametrize("limit", [None, 1, 3])
def test_a_step_is_the_same_packed_and_split(
    student: Tiny, teacher: Tiny, form: Form, limit: int | None
) -> None:
    groups = make_groups(student, teacher)
    for tiny in (student, teacher):
        tiny.model.double()
    groups = [
        Group(
            question_id=g.question_id,
            student_prompt=as_float64(g.student_prompt),
            teacher_prompt=as_float64(g.teacher_prompt) if g.teacher_prompt else None,
            responses=g.responses,
        )
        for g in groups
    ]
    with lifted():
        whole, sums = step_gradient(student, teacher, groups)
        packed, again = step_gradient(
            student, teacher, groups,
            student_form=form, teacher_form=form, micro_batch_responses=limit,
        )  # fmt: skip
    assert apart(whole, packed) < 1e-10
    assert again.loss == pytest.approx(sums.loss, rel=1e-9, abs=1e-12)
    assert again.squared_norm == pytest.approx(sums.squared_norm, rel=1e-9)
    assert again.rewards == {k: pytest.approx(v, rel=1e-9) for k, v in sums.rewards.items()}
    assert again.tokens == sums.tokens and again.groups == sums.groups


@pytest.mark.parametrize("form", ["mask", "attention"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_identical_responses_have_no_advantage(
    student: Tiny, teacher: Tiny, form: Form, precision: torch.dtype
) -> None:
    one, other = make_groups(student, teacher)[:2]
    same = tuple([one.responses[0]] * 8)
    alike = Group(
        question_id="q", student_prompt=one.student_prompt,
        teacher_prompt=one.teacher_prompt, responses=same,
    )  # fmt: skip
    _, sums = step_gradient(
        student, teacher, [alike, other], student_form=form, teacher_form=form,
        precision=precision,
    )  # fmt: skip
    assert sums.silent_groups == 1 and sums.groups == 2


def first_verdict(
    tiny: Tiny, groups: list[Group], asked: str, precision: torch.dtype = torch.float32
) -> Any:
    return first_use(
        tiny.model, groups, asked, teacher=False, pad=tiny.ids.pad, precision=precision,
        vocabulary=tiny.ids.vocabulary,
    )  # fmt: skip


@pytest.mark.parametrize("form", ["mask", "attention"])
def test_under_bf16_autocast(student: Tiny, teacher: Tiny, form: Form) -> None:
    groups = make_groups(student, teacher)[:3]
    # The attention function rounds otherwise than sdpa, so the check may prefer the mask; both are
    # as near to float32 as repeated rows are.
    verdict = first_verdict(student, groups, form, torch.bfloat16)
    assert verdict.form == "mask" or (verdict.form == form and not verdict.reason)
    whole, _ = step_gradient(student, teacher, groups, precision=torch.bfloat16)
    packed, _ = step_gradient(
        student, teacher, groups, student_form=form, teacher_form=form, precision=torch.bfloat16
    )
    exact, _ = step_gradient(student, teacher, groups)
    assert apart(exact, packed) < 1.5 * apart(exact, whole)


def test_eager_attention_takes_the_mask(student: Tiny, teacher: Tiny) -> None:
    student.model.set_attn_implementation("eager")
    verdict = first_verdict(student, make_groups(student, teacher)[:3], "auto")
    assert verdict.form == "mask" and verdict.difference < 1e-5


def test_nothing_to_share_decides_nothing(student: Tiny, teacher: Tiny) -> None:
    groups = make_groups(student, teacher)[:2]
    alike = [
        Group(
            question_id=g.question_id, student_prompt=g.student_prompt,
            teacher_prompt=g.teacher_prompt, responses=tuple([g.responses[0]] * 8),
        )
        for g in groups
    ]  # fmt: skip
    assert first_verdict(student, alike, "auto") is None
    assert first_verdict(student, [*alike, *groups], "auto").form == "mask"


def test_dropout_hides_no_broken_packing(
    student: Tiny, teacher: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trembling(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.dropout(x, 0.3, self.training)

    block = student.model.model.language_model.layers[0].mlp
    block.register_forward_hook(lambda module, args, out: Trembling().train(module.training)(out))
    student.model.train()
    responses_see_each_other(monkeypatch)
    verdict = first_verdict(student, make_groups(student, teacher)[:3], "mask")
    assert verdict.form == "repeat" and student.model.training


def test_a_split_step_draws_the_same_dropout_twice(student: Tiny, teacher: Tiny) -> None:
    seen: list[torch.Tensor] = []

    def trembling(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        out = torch.nn.functional.dropout(out, 0.3)
        seen.append(out.detach().clone())
        return out

    student.model.model.language_model.layers[0].mlp.register_forward_hook(trembling)
    step_gradient(student, teacher, make_groups(student, teacher)[:1], micro_batch_responses=2)
    first, again = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert len(first) > 1 and all(map(torch.equal, first, again))


def test_only_what_must_be_split_runs_twice(student: Tiny, teacher: Tiny) -> None:
    """Groups that each fit share a pass; of one that doesn't, the teacher reads each piece once."""
    groups = make_groups(student, teacher)[:4]
    passes = {"student": 0, "teacher": 0}

    def count(name: str, tiny: Tiny) -> Any:
        def counted(module: Any, args: Any) -> None:
            passes[name] += 1

        return tiny.model.model.language_model.register_forward_pre_hook(counted)

    hooks = [count("student", student), count("teacher", teacher)]
    distinct = {len({r.token_ids for r in group.responses}) for group in groups}
    assert distinct == {4}
    step_gradient(student, teacher, groups, micro_batch_responses=4)
    assert passes == {"student": 1, "teacher": 1}
    step_gradient(student, teacher, groups[:1], micro_batch_responses=2)
    assert passes == {"student": 1 + 2 * 2, "teacher": 1 + 2}
    for hook in hooks:
        hook.remove()
