"""What one device does differently must not show: streamed teachers, recomputed activations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from masters.errors import ModelError, StageError
from masters.generation.engine import Request, TransformersEngine
from masters.generation.sampling import SampleKey, Sampling
from masters.models.devices import check_attention, find_device
from masters.models.load import load_model
from masters.models.offload import stream_blocks
from masters.teachers.masked import MaskedTeacher
from masters.teachers.measuring import measure_thresholds
from masters.training.groups import Group, Response, make_rows
from masters.training.optimiser import OptimiserSettings, make_optimiser
from masters.training.student import Student
from masters.training.teacher_signal import teacher_head, teacher_states
from masters.training.token_scores import ScoreSettings

from .conftest import Tiny, make_groups
from .test_step import as_float64, distance, gradient

CPU = torch.device("cpu")


def states(teacher: MaskedTeacher, student: Tiny, groups: list[Group]) -> torch.Tensor:
    return teacher_states(teacher, make_rows(groups), student.ids, torch.float32, CPU)


def test_a_streamed_teacher_is_the_teacher(student: Tiny, teacher: Tiny) -> None:
    """Bit for bit at every ratio, up and down again, with every weight back at home."""
    groups = make_groups(student, teacher)
    thresholds = measure_thresholds(teacher.folder, (4000, 2000))
    streamed = load_model(str(teacher.folder))
    blocks = stream_blocks(streamed, "cpu")
    homes = {name: p.data_ptr() for name, p in streamed.named_parameters()}
    seen: list[bool] = []
    for name in blocks:

        def visited(module: Any, args: Any, of: str = name) -> None:
            seen.append(
                all(p.data_ptr() != homes[f"{of}.{n}"] for n, p in module.named_parameters())
            )

        streamed.get_submodule(name).register_forward_pre_hook(visited)
    plain = MaskedTeacher(teacher.model, teacher.folder, thresholds)
    moved = MaskedTeacher(streamed, teacher.folder, thresholds)
    for ratio in (4000, 2000, 0, 4000):
        plain.set_ratio(ratio)
        moved.set_ratio(ratio)
        assert torch.equal(states(moved, student, groups), states(plain, student, groups))
        assert {name: p.data_ptr() for name, p in streamed.named_parameters()} == homes
    # Two decoder layers, one vision layer and its deepstack merger, in each of four passes.
    assert len(blocks) == 4 and len(seen) == 16 and all(seen)


def test_a_streamed_model_generates_the_same(teacher: Tiny) -> None:
    def answers(model: Any) -> list[list[int]]:
        engine = TransformersEngine(model, teacher.processor, teacher.ids)
        key = SampleKey(seed=0, question_id="q", source="teacher", ratio=0, round=0, sample=0)
        requests = [Request(prompt=prompt, keys=(key,)) for prompt in teacher.prompts]
        sampling = Sampling.greedy(6)
        return [own[0].token_ids for own in engine.generate(requests, sampling)]

    streamed = load_model(str(teacher.folder))
    stream_blocks(streamed, "cpu")
    assert answers(streamed) == answers(teacher.model)


def test_what_moves_for_good_and_what_visits(
    teacher: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    went: list[int] = []
    move = torch.Tensor.to

    def to(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        went.append(tensor.data_ptr())
        return move(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", to)
    blocks = stream_blocks(teacher.model, "cpu")
    assert next(teacher.model.parameters()).data_ptr() in went, "it tells where the model computes"
    for name, parameter in teacher.model.named_parameters():
        visits = any(name.startswith(f"{block}.") for block in blocks)
        assert (parameter.data_ptr() in went) != visits, name
    assert all(buffer.data_ptr() in went for buffer in teacher.model.buffers())
    assert teacher.model.get_output_embeddings().weight.data_ptr() in went


def test_a_block_that_fails_goes_home(teacher: Tiny) -> None:
    stream_blocks(teacher.model, "cpu")
    layer = teacher.model.model.language_model.layers[0]
    home = layer.mlp.up_proj.weight.data_ptr()
    layer.mlp.register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        layer.mlp.up_proj, teacher.model(input_ids=torch.ones(1, 3, dtype=torch.long))
    assert layer.mlp.up_proj.weight.data_ptr() == home


def test_a_far_head_is_brought_once(teacher: Tiny) -> None:
    masked = MaskedTeacher(teacher.model, teacher.folder, None)
    assert teacher_head(masked, CPU) is teacher.model.get_output_embeddings().weight
    far = teacher_head(masked, torch.device("meta"))
    assert far.device.type == "meta" and far.shape == teacher_head(masked, CPU).shape
    assert teacher_head(masked, torch.device("meta")) is far


def test_checkpointing_changes_no_gradient(student: Tiny, teacher: Tiny) -> None:
    as_float64(student, teacher)
    groups = make_groups(student, teacher)
    calls: list[int] = []
    attention = student.model.model.language_model.layers[0].self_attn
    attention.register_forward_hook(lambda *_: calls.append(1))
    student.model.train()
    whole, sums = gradient(student, teacher, [groups], micro_batch=8, questions=8)
    whole = {name: g.clone() for name, g in whole.items()}
    once = len(calls)
    student.model.gradient_checkpointing_enable({"use_reentrant": False})
    less, again = gradient(student, teacher, [groups], micro_batch=8, questions=8)
    assert len(calls) == 3 * once, "the layer ran again in the backward pass"
    assert distance(whole, less) < 1e-12
    assert sums.loss == again.loss


def reference(student: Tiny, groups: list[Group], *, micro_batch: int, model: Any) -> list[Group]:
    """The groups with log-probs under ``model`` in bf16, as the stage score writes them."""
    module = Student(model, precision=torch.bfloat16).eval()
    scored = []
    for start in range(0, len(groups), micro_batch):
        part = groups[start : start + micro_batch]
        rows = make_rows(part)
        rows = rows.to(model.device)
        inputs, column_N = rows.inputs(teacher=False, pad=student.ids.pad, device=model.device)
        settings = ScoreSettings(vocabulary=student.ids.vocabulary, dtype=torch.bfloat16)
        with torch.no_grad():
            _, logp_N = module(inputs, rows.row_N, column_N, rows.targets_N, None, None, settings)
        for g, group in enumerate(part):
            responses = []
            for j, response in enumerate(group.responses):
                first, last = rows.spans[rows.row_of[g][j]]
                values = tuple(logp_N[first:last].tolist())
                own = {**vars(response), "reference": values}
                responses.append(Response(**own))
            scored.append(Group(**{**vars(group), "responses": tuple(responses)}))
    return scored


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_kl_of_the_first_step_is_rounding_in_bf16(
    student: Tiny, teacher: Tiny, micro_batch: int
) -> None:
    """Below 1e-4 nats a token however both were batched; with other weights it would not be."""
    plain = make_groups(student, teacher)
    groups = reference(student, plain, micro_batch=micro_batch, model=student.model)
    module = student.model.train()
    _, sums = gradient(
        student, teacher, [groups], micro_batch=8, questions=8, precision=torch.bfloat16
    )
    assert sums.loss["kl"] < 1e-4
    # The broken policy: a reference in stored bf16, its residual stream rounded layer by layer.
    stored = load_model(str(student.folder), dtype=torch.bfloat16)
    student.model = module
    other = reference(student, plain, micro_batch=micro_batch, model=stored)
    _, wrong = gradient(
        student, teacher, [other], micro_batch=8, questions=8, precision=torch.bfloat16
    )
    assert wrong.loss["kl"] > 10 * max(sums.loss["kl"], 1e-7)


def trajectory(make: Callable[[Any], Any], *, device: str = "cpu") -> tuple[torch.Tensor, Any]:
    """How far a small regression's weights move in 60 steps, and the optimiser."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(256, 512), torch.nn.GELU(), torch.nn.Linear(512, 64)
    ).to(device)
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    draw = torch.Generator().manual_seed(1)
    truth = torch.randn(256, 64, generator=draw).to(device) / 16
    optimiser = make(model)
    for _ in range(60):
        x = torch.randn(64, 256, generator=draw).to(device)
        (model(x) - x @ truth).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    end = torch.cat([p.detach().flatten() for p in model.parameters()])
    return end - start, optimiser


def settings_of(moments: str) -> OptimiserSettings:
    return OptimiserSettings(
        lr=1e-3, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8, schedule="constant", warmup=0,
        moments=moments,
    )  # fmt: skip


def test_eight_bit_moments_go_the_same_way(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the package of 8-bit moments is not installed")
    exact, _ = trajectory(lambda model: make_optimiser(model, settings_of("fp32")))
    short, optimiser = trajectory(lambda model: make_optimiser(model, settings_of("8bit")))
    assert (short - exact).norm() < 0.05 * exact.norm()
    assert not torch.equal(short, exact), "they are another optimiser's"
    state = optimiser.state_dict()
    torch.save(state, tmp_path / "state.pt")
    again = make_optimiser(
        torch.nn.ParameterList([p.clone() for g in optimiser.param_groups for p in g["params"]]),
        settings_of("8bit"),
    )
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    ones = [p for g in optimiser.param_groups for p in g["params"]]
    others = [p for g in again.param_groups for p in g["params"]]
    for one, other in zip(ones, others, strict=True):
        one.grad = torch.full_like(one, 0.01)
        other.grad = torch.full_like(other, 0.01)
    optimiser.step(), again.step()
    assert all(torch.equal(a, b) for a, b in zip(ones, others, strict=True))


def test_eight_bit_moments_without_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(StageError, match=r"pip install 'masters\[8bit\]', or set method.optimiser"):
        make_optimiser(torch.nn.Linear(2, 2), settings_of("8bit"))


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto", key="runtime.device") == CPU
    with pytest.raises(ModelError, match="runtime.device is cuda, but torch .* sees no CUDA"):
        find_device("cuda", key="runtime.device")
    with pytest.raises(ModelError, match="'gpu'; expected auto, cpu, cuda or cuda:<number>"):
        find_device("gpu", key="runtime.device")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert find_device("auto", key="runtime.device").type == "cuda"
    with pytest.raises(ModelError, match=r"sees 1 CUDA devices; expected one of cpu, cuda:0"):
        find_device("cuda:1", key="runtime.teacher_device")


def test_flash_attention_that_cannot_run() -> None:
    flash, cuda = "flash_attention_2", torch.device("cuda")
    check_attention("sdpa", CPU, torch.float32)
    with pytest.raises(ModelError, match="the device is cpu; .*set runtime.attention=sdpa"):
        check_attention(flash, CPU, torch.bfloat16)
    with pytest.raises(ModelError, match="precision is fp32; .*precision=bf16"):
        check_attention(flash, cuda, torch.float32)
    with pytest.raises(ModelError, match="it is not installed; .*pip install flash-attn"):
        check_attention(flash, cuda, torch.bfloat16)
