"""The step on a CUDA device: what it computes is what the CPU computes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from masters.errors import StageError
from masters.generation.engine import Request, TransformersEngine
from masters.generation.sampling import SampleKey, Sampling
from masters.models import lora
from masters.models.load import load_model
from masters.models.memory import doing, is_out_of_memory
from masters.models.offload import stream_blocks
from masters.models.trainable import LoraSettings, freeze_parts, lora_layers
from masters.stages.out_of_memory import explained
from masters.teachers.masked import MaskedTeacher
from masters.teachers.measuring import measure_thresholds
from masters.training.checkpoints import Position, load_checkpoint, save_checkpoint
from masters.training.groups import Group, make_rows
from masters.training.optimiser import make_optimiser
from masters.training.step import apply_gradient
from masters.training.student import Student
from masters.training.teacher_signal import teacher_head, teacher_states
from tests.invariant.conftest import Tiny, load_tiny, make_groups
from tests.invariant.test_one_device import reference, settings_of, trajectory
from tests.invariant.test_step import distance, gradient

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")


def on_cpu(gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: g.detach().float().cpu().clone() for name, g in gradients.items()}


def cosine(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    left, right = (torch.cat([g[n].flatten() for n in sorted(a)]) for g in (a, b))
    return torch.nn.functional.cosine_similarity(left, right, dim=0).item()


def test_an_fp32_step_is_the_cpus(student: Tiny, teacher: Tiny, folders: tuple[Path, Path]) -> None:
    ours, theirs = load_tiny(folders[0]), load_tiny(folders[1])
    groups = make_groups(ours, theirs)
    expected, told = gradient(ours, theirs, [groups], micro_batch=3, questions=8)
    got, sums = gradient(student, teacher, [groups], micro_batch=3, questions=8)
    assert distance(on_cpu(expected), on_cpu(got)) < 1e-4
    assert sums.loss["total"] == pytest.approx(told.loss["total"], rel=1e-4)
    assert sums.squared_norm == pytest.approx(told.squared_norm, rel=1e-3)


def test_a_bf16_step_moves_fp32_weights(student: Tiny, teacher: Tiny) -> None:
    groups = make_groups(student, teacher)
    exact, told = gradient(student, teacher, [groups], micro_batch=8, questions=8)
    exact = on_cpu(exact)
    module = Student(student.model, precision=torch.bfloat16)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimiser = make_optimiser(module, settings_of("fp32"))
    got, sums = gradient(
        student, teacher, [groups], micro_batch=8, questions=8, precision=torch.bfloat16
    )
    assert {g.dtype for g in got.values()} == {torch.float32}
    assert cosine(exact, on_cpu(got)) > 0.9
    assert sums.loss["total"] == pytest.approx(told.loss["total"], rel=0.2, abs=0.02)
    norm = apply_gradient(module, optimiser, 1.0)
    assert 0 < norm < float("inf")
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    moments = [t for s in optimiser.state.values() for k, t in s.items() if k != "step"]
    assert {t.dtype for t in moments} == {torch.float32}
    now = dict(module.named_parameters())
    assert all(now[name].isfinite().all() for name in now)
    assert sum(not torch.equal(now[name], before[name]) for name in now) > 0.9 * len(now)


def test_checkpointing_changes_no_gradient(student: Tiny, teacher: Tiny) -> None:
    groups = make_groups(student, teacher)
    student.model.train()
    whole, _ = gradient(student, teacher, [groups], micro_batch=8, questions=8)
    whole = on_cpu(whole)
    student.model.gradient_checkpointing_enable({"use_reentrant": False})
    less, _ = gradient(student, teacher, [groups], micro_batch=8, questions=8)
    assert distance(whole, on_cpu(less)) < 1e-5


@pytest.mark.parametrize("where", ["offload", "cpu", "cuda:1"])
def test_wherever_the_teacher_is(
    where: str, student: Tiny, teacher: Tiny, device: torch.device
) -> None:
    """Streamed from the host: every bit the same. On another device: rounding."""
    if where == "cuda:1" and torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device; this needs two")
    groups = make_groups(student, teacher)
    thresholds = measure_thresholds(teacher.folder, (4000, 2000))
    model = load_model(str(teacher.folder), device="cpu" if where == "offload" else where)
    if where == "offload":
        blocks = stream_blocks(model, device)
        assert model.device == device
        inside = [p for block in blocks for p in model.get_submodule(block).parameters()]
        assert {p.device.type for p in inside} == {"cpu"}
    here, there = (MaskedTeacher(m, teacher.folder, thresholds) for m in (teacher.model, model))
    rows = make_rows(groups).to(device)
    for ratio in (4000, 0, 2000):
        states = []
        for masked in (here, there):
            masked.set_ratio(ratio)
            states.append(teacher_states(masked, rows, student.ids, torch.float32, device))
        if where == "offload":
            assert torch.equal(states[1], states[0])
        torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-4)
    assert teacher_head(there, device).device == device
    got, _ = gradient(student, Tiny(**{**vars(teacher), "model": model}), [groups],
                      micro_batch=4, questions=8)  # fmt: skip
    assert all(g.isfinite().all() for g in got.values())


@pytest.mark.parametrize("micro_batch", [1, 8])
def test_kl_of_the_first_step_is_rounding_in_bf16(
    student: Tiny, teacher: Tiny, micro_batch: int
) -> None:
    groups = make_groups(student, teacher)
    scored = reference(student, groups, micro_batch=micro_batch, model=student.model)
    student.model.train()
    _, sums = gradient(
        student, teacher, [scored], micro_batch=8, questions=8, precision=torch.bfloat16
    )
    assert sums.loss["kl"] < 1e-4


def test_eight_bit_moments_go_the_same_way(device: torch.device) -> None:
    pytest.importorskip("bitsandbytes", reason="the package of 8-bit moments is not installed")
    exact, _ = trajectory(lambda m: make_optimiser(m, settings_of("fp32")), device=str(device))
    short, _ = trajectory(lambda m: make_optimiser(m, settings_of("8bit")), device=str(device))
    assert (short - exact).norm() < 0.05 * exact.norm()


def test_greedy_answers_are_the_cpus(student: Tiny, folders: tuple[Path, Path]) -> None:
    def answers(tiny: Tiny) -> list[list[int]]:
        engine = TransformersEngine(tiny.model, tiny.processor, tiny.ids)
        key = SampleKey(seed=0, question_id="q", source="student", ratio=0, round=0, sample=0)
        requests = [Request(prompt=prompt, keys=(key,)) for prompt in tiny.prompts]
        return [own[0].token_ids for own in engine.generate(requests, Sampling.greedy(8))]

    assert answers(student) == answers(load_tiny(folders[0]))


def test_adapters_and_a_frozen_tower(student: Tiny, teacher: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the package of adapters is not installed")
    groups = make_groups(student, teacher)
    settings = LoraSettings(rank=4, alpha=8.0, dropout=0.0, parts=("language",), targets=(), seed=1)
    resting = freeze_parts(student.model, ("vision",))
    lora.attach(student.model, lora_layers(student.model, ("language",), ()), settings)
    student.model.gradient_checkpointing_enable({"use_reentrant": False})
    module = Student(student.model, resting=resting, adapted=True).train()
    optimiser = make_optimiser(module, settings_of("fp32"))
    frozen = {n: p.clone() for n, p in module.named_parameters() if not p.requires_grad}
    for _ in range(2):
        got, _ = gradient(student, teacher, [groups], micro_batch=8, questions=8)
        apply_gradient(module, optimiser, 1.0)
    assert got and all(".lora_" in name for name in got)
    now = dict(module.named_parameters())
    assert all(torch.equal(now[name], p) for name, p in frozen.items())
    live = teacher_states(
        MaskedTeacher(student.model, student.folder, None),
        make_rows(_own(groups)), student.ids, torch.float32, CPU,
    )  # fmt: skip
    plain = load_tiny(student.folder)
    plain.model.load_state_dict({n: t.cpu() for n, t in lora.merged_state(student.model).items()})
    merged = teacher_states(
        MaskedTeacher(plain.model, student.folder, None),
        make_rows(_own(groups)), student.ids, torch.float32, CPU,
    )  # fmt: skip
    torch.testing.assert_close(live, merged, rtol=1e-3, atol=1e-3)


def _own(groups: list[Group]) -> list[Group]:
    """Groups whose teacher reads the student's prompt: the student's states by teacher_states."""
    return [Group(**{**vars(g), "teacher_prompt": g.student_prompt}) for g in groups]


def test_a_checkpoint_keeps_the_devices_draws(
    student: Tiny, device: torch.device, tmp_path: Path
) -> None:
    module = Student(student.model)
    optimiser = make_optimiser(module, settings_of("fp32"))
    torch.manual_seed(3)
    torch.rand(5, device=device)
    save_checkpoint(tmp_path, module, optimiser, Position(step=1, ratio=0, best=None))
    drawn = torch.rand(5, device=device), torch.rand(5)
    load_checkpoint(tmp_path, module, optimiser)
    again = torch.rand(5, device=device), torch.rand(5)
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))


def test_flash_attention_agrees(teacher: Tiny, student: Tiny, cuda: torch.device) -> None:
    pytest.importorskip("flash_attn", reason="the package of flash attention is not installed")
    rows = make_rows(make_groups(student, teacher)).to(cuda)
    states = []
    for attention in ("sdpa", "flash_attention_2"):
        model = load_model(
            str(teacher.folder), dtype=torch.bfloat16, device=cuda, attention=attention
        )
        masked = MaskedTeacher(model, teacher.folder, None)
        states.append(teacher_states(masked, rows, student.ids, torch.bfloat16, cuda).float())
    torch.testing.assert_close(states[0], states[1], rtol=0.1, atol=0.1)


def test_a_full_device_names_the_settings(student: Tiny, teacher: Tiny, cuda: torch.device) -> None:
    groups = make_groups(student, teacher)
    spec: Any = SimpleNamespace(
        kind="train", prompt=SimpleNamespace(max_pixels=None), max_new_tokens=16, lora=None,
        objective=(SimpleNamespace(on="responses"),), teacher="teacher",
        optimiser=SimpleNamespace(moments="fp32"),
    )  # fmt: skip
    runtime: Any = SimpleNamespace(
        micro_batch_questions=8, gradient_checkpointing=False, jobs=1, device="cuda",
        teacher_device="same", generation_batch=64,
    )  # fmt: skip
    torch.cuda.empty_cache()
    # No more than is held already: the next block of the allocator is one too many.
    share = torch.cuda.memory_reserved(cuda) / torch.cuda.get_device_properties(cuda).total_memory
    torch.cuda.set_per_process_memory_fraction(share, cuda)
    try:
        with pytest.raises(StageError) as caught, explained(spec, runtime):  # noqa: SIM117
            with doing("training on step 1"):
                many = [groups[i % 8] for i in range(512)]
                gradient(student, teacher, [many], micro_batch=512, questions=512)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, cuda)
    assert is_out_of_memory(caught.value.__cause__)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "out of memory while" in message and "CUDA out of memory" in message
    assert "1. runtime.micro_batch_questions (8)" in message
    assert "runtime.teacher_device (same) to another GPU or offload" in message


def test_a_frozen_model_takes_its_compute_dtype(teacher: Tiny, cuda: torch.device) -> None:
    before = torch.cuda.memory_allocated(cuda)
    model = load_model(str(teacher.folder), dtype=torch.bfloat16, device=cuda)
    size = sum(p.numel() for p in model.parameters())
    taken = torch.cuda.memory_allocated(cuda) - before
    # 2 bytes a weight; every tensor is rounded up to 512 bytes.
    assert 2 * size <= taken <= 2 * size + 512 * len(list(model.state_dict())) + 2**16
    assert torch.cuda.max_memory_allocated(cuda) - before < 2 * taken
