"""Frozen parts keep every bit; adapters have the gradients of low-rank weights, and merge."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from masters.errors import ModelError
from masters.models import lora
from masters.models.load import load_model, save_model
from masters.models.trainable import LoraSettings, freeze_parts, lora_layers
from masters.teachers.masked import MaskedTeacher
from masters.training.checkpoints import Position, load_checkpoint, save_checkpoint
from masters.training.objective import GrpoTerm, JsdTerm, RewardSettings, StepSums
from masters.training.optimiser import OptimiserSettings, make_optimiser
from masters.training.step import StepSettings, accumulate, apply_gradient
from masters.training.student import Student

from .conftest import Tiny, make_groups
from .test_scoring import scores, worst

SETTINGS = LoraSettings(rank=3, alpha=6.0, dropout=0.0, parts=("language",), targets=(), seed=7)
ADAMW = OptimiserSettings(
    lr=1e-3, weight_decay=0.1, betas=(0.9, 0.999), eps=1e-8, schedule="constant", warmup=0
)


def adapted(tiny: Tiny, *, moved: bool = True, settings: LoraSettings = SETTINGS) -> list[str]:
    """Gives the model adapters; with ``moved`` B is no longer 0. Names of the layers."""
    layers = lora_layers(tiny.model, settings.parts, settings.targets)
    lora.attach(tiny.model, layers, settings)
    if moved:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, weight in tiny.model.named_parameters():
                if ".lora_B." in name:
                    weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return layers


def backward(module: Student, student: Tiny, teacher: Tiny) -> None:
    settings = StepSettings(
        terms=(GrpoTerm(), JsdTerm()), rewards=RewardSettings(), beta=0.5, temperature=1.0,
        clip_norm=1.0, micro_batch=4, vocabulary=student.ids.vocabulary,
    )  # fmt: skip
    accumulate(
        module, MaskedTeacher(teacher.model, teacher.folder, None), make_groups(student, teacher),
        ids=student.ids, settings=settings, questions=8, sums=StepSums(),
    )  # fmt: skip


def bits(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("part, root", [("vision", "model.visual"), ("language", "lm_head")])
def test_a_frozen_part_keeps_every_bit(student: Tiny, teacher: Tiny, part: Any, root: str) -> None:
    before = bits(student.model)
    module = Student(student.model, resting=freeze_parts(student.model, (part,))).train()
    optimiser = make_optimiser(module, ADAMW)
    for _ in range(2):
        backward(module, student, teacher)
        own = [p.grad.norm() for p in module.parameters() if p.grad is not None]
        assert apply_gradient(module, optimiser, 1.0) == pytest.approx(
            torch.stack(own).norm().item()
        )
    moved = {n for n, t in student.model.state_dict().items() if not torch.equal(t, before[n])}
    trained = {n for n, p in student.model.named_parameters() if p.requires_grad}
    assert moved and moved <= trained
    assert not any(n.startswith(root) and "merger" not in n for n in moved)
    assert any("merger" in n for n in moved), "the projector in the tower is trained all the same"
    assert len(optimiser.state) == len(trained) < len(before)


def test_frozen_parts_stay_in_eval_mode(student: Tiny) -> None:
    module = Student(student.model, resting=freeze_parts(student.model, ("vision",))).train()
    modes = {name: m.training for name, m in student.model.named_modules()}
    assert not modes["model.visual"] and not modes["model.visual.blocks.0.attn"]
    assert modes["model.visual.merger"] and modes["model.language_model.layers.0"]
    module.eval()
    assert not any(m.training for m in module.modules())
    module.train()
    assert {name: m.training for name, m in student.model.named_modules()} == modes


def test_new_adapters_change_nothing(student: Tiny, teacher: Tiny) -> None:
    groups = make_groups(student, teacher)
    before = scores(student, groups)
    adapted(student, moved=False)
    assert scores(student, groups) == before


def test_an_adapters_seed_alone_draws_it(folders: tuple[Path, Path]) -> None:
    drawn = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        model = load_model(str(folders[0]))
        lora.attach(model, lora_layers(model, ("language",), ()), SETTINGS)
        drawn.append({n: p for n, p in model.named_parameters() if ".lora_A." in n})
        assert torch.initial_seed() == noise
    assert all(torch.equal(p, drawn[1][n]) for n, p in drawn[0].items())


def test_merged_is_unmerged(student: Tiny, teacher: Tiny, tmp_path: Path) -> None:
    groups = make_groups(student, teacher)
    plain = scores(student, groups)
    adapted(student)
    live, before = scores(student, groups), bits(student.model)
    assert worst(live, plain) > 1e-3
    save_model(
        student.model, tmp_path, source=student.folder, state=lora.merged_state(student.model)
    )
    after = bits(student.model)
    assert all(torch.equal(after[name], t) for name, t in before.items()), "saving changes nothing"
    student.model = load_model(str(tmp_path))
    assert worst(scores(student, groups), live) < 1e-5


def test_the_gradient_is_that_of_a_low_rank_weight(student: Tiny, teacher: Tiny) -> None:
    """dB = s dW A' and dA = s B' dW, with dW the gradient of the merged model's own weight."""
    layers = adapted(student)
    student.model.double(), teacher.model.double()
    for tiny in (student, teacher):
        for prompt in tiny.prompts:
            prompt.images["pixel_values"] = prompt.images["pixel_values"].double()
    backward(Student(student.model), student, teacher)
    got = {n: p.grad for n, p in student.model.named_parameters() if p.grad is not None}
    assert len(got) == 2 * len(layers)
    low = {name: student.model.get_submodule(name) for name in layers}
    dense = load_model(str(student.folder)).double()
    dense.load_state_dict(lora.merged_state(student.model))
    student.model = dense.requires_grad_(True)
    backward(Student(dense), student, teacher)
    scale = SETTINGS.alpha / SETTINGS.rank
    for name in layers:
        dW = dense.get_submodule(name).weight.grad
        a, b = low[name].lora_A["default"].weight, low[name].lora_B["default"].weight
        expected = {"lora_A": scale * b.T @ dW, "lora_B": scale * dW @ a.T}
        for side, gradient in expected.items():
            # transformers casts norms and rotary tables to float32 inside, hence not 1e-12.
            torch.testing.assert_close(
                got[f"{name}.{side}.default.weight"], gradient, rtol=1e-4, atol=1e-7
            )


def test_adapters_are_taken_up_again(student: Tiny, teacher: Tiny, tmp_path: Path) -> None:
    """Out of the merged weights, into adapters: A and B bit for bit, the base by rounding."""
    groups = make_groups(student, teacher)
    adapted(student)
    live, before = scores(student, groups), bits(student.model)
    state = lora.merged_state(student.model)
    save_model(student.model, tmp_path / "model", source=student.folder, state=state)
    lora.save_adapter(student.model, tmp_path / "adapter")
    student.model = load_model(str(tmp_path / "model"))
    adapted(student, moved=False)
    lora.go_on_with(student.model, tmp_path / "adapter")
    for name, tensor in student.model.state_dict().items():
        if ".lora_" in name:
            assert torch.equal(tensor, before[name])
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-6)
    assert worst(scores(student, groups), live) < 1e-5


def test_a_checkpoint_holds_what_is_trained(
    student: Tiny, teacher: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    adapted(student)
    module = Student(student.model, adapted=True).train()
    optimiser = make_optimiser(module, ADAMW)
    backward(module, student, teacher)
    apply_gradient(module, optimiser, 1.0)
    position = Position(step=1, ratio=0, best=None)
    drawn: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    states = [torch.ones(16, dtype=torch.uint8), torch.zeros(16, dtype=torch.uint8)]
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda s, device: drawn.append((s, device)))
    save_checkpoint(tmp_path, module, optimiser, position)
    held = load_file(tmp_path / "step-00000001" / "model.safetensors")
    assert set(held) == {n for n, p in module.named_parameters() if p.requires_grad}
    expected, host = bits(module), torch.rand(3)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    assert load_checkpoint(tmp_path, module, optimiser) == position
    assert all(torch.equal(t, expected[n]) for n, t in module.state_dict().items())
    assert torch.equal(torch.rand(3), host)
    # A second device that was there when it was saved and is gone now is passed over.
    assert [(s.tolist(), device) for s, device in drawn] == [([1] * 16, 0)]


def test_settings_that_leave_nothing_are_refused(
    student: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"pattern '\*q_prj' matches none of the 14 Linear"):
        lora_layers(student.model, ("language",), ("*q_prj",))
    with pytest.raises(ModelError, match="nothing is left to train"):
        freeze_parts(student.model, ("language", "vision", "projector"))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"needs the package peft.*pip install 'masters\[lora\]'"):
        adapted(student)


def test_targets_choose_layers_and_never_the_head(student: Tiny) -> None:
    every = lora_layers(student.model, ("language", "vision", "projector"), ())
    assert "lm_head" not in every and any("visual" in name for name in every)
    chosen = lora_layers(student.model, ("language",), ("*q_proj", "*v_proj"))
    assert [name.rpartition(".")[2] for name in chosen] == ["q_proj", "v_proj"] * 2


@pytest.mark.parametrize("tied", [True, False])
def test_names_that_transformers_changes_on_load(tied: bool, tmp_path: Path) -> None:
    """Qwen2.5-VL is stored under other names than its modules': merged, it still loads whole."""
    from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig

    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": tied,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3],
            },
        },
        vision_config={
            "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2,
            "out_hidden_size": 32,
        },
        image_token_id=60, video_token_id=61, vision_start_token_id=62, vision_end_token_id=63,
        tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    lora.attach(model, lora_layers(model, ("language", "vision"), ()), SETTINGS)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight, std=0.1)
    save_model(model, tmp_path, source=None, state=lora.merged_state(model))
    loaded = load_model(str(tmp_path))  # refuses weights that are missing
    ids = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5, rtol=1e-5
        )
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as stored:
        names = set(stored.keys())
    assert not any("lora" in name or "base_layer" in name for name in names)
    assert any(name.startswith("visual.") for name in names), "as the published ones are stored"
