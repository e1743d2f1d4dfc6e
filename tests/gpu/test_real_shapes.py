"""One training step of Qwen3-VL-2B under an 8B teacher, real shapes and random weights.

Prints one JSON line for each way to run it: seconds of a warm step and peak memory. Shapes are read
from ``tests/configs/<model>/config.json``, or from the folder that MASTERS_GPU_TEST_CONFIGS names.
"""

from __future__ import annotations

import gc
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from masters.models import lora
from masters.models.encode import EncodedPrompt
from masters.models.load import TokenIds, load_config
from masters.models.offload import stream_blocks
from masters.models.trainable import LoraSettings, freeze_parts, lora_layers
from masters.teachers.masked import MaskedTeacher
from masters.training.groups import Group, Response
from masters.training.objective import GrpoTerm, JsdTerm, RewardSettings, StepSums
from masters.training.optimiser import make_optimiser
from masters.training.step import StepSettings, accumulate, apply_gradient
from masters.training.student import Student
from tests.invariant.test_one_device import settings_of

pytestmark = pytest.mark.gpu
CONFIGS = Path(os.environ.get("MASTERS_GPU_TEST_CONFIGS", Path(__file__).parents[1] / "configs"))
STUDENT, TEACHER = "Qwen3-VL-2B-Instruct", "Qwen3-VL-8B-Instruct"
PATCHES = (56, 60)  # 840 image tokens after merging 2 x 2
TEXT, RESPONSES, TOKENS = 160, 8, 60


def config(name: str) -> Any:
    folder = CONFIGS / name
    if not (folder / "config.json").is_file():
        pytest.skip(f"{folder}: no config.json; expected the published configuration")
    return load_config(str(folder))


def random_model(name: str, dtype: torch.dtype, device: torch.device) -> Any:
    """The architecture with random weights, drawn on the device."""
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    with torch.device(device):
        model: Any = AutoModelForImageTextToText.from_config(config(name), dtype=dtype)
    return model.to(device).eval()


def prompt(shape: Any) -> EncodedPrompt:
    """A picture of 840 tokens and 160 of text, as a processor would encode them."""
    vision = shape.vision_config
    rows, columns = PATCHES
    image = rows * columns // vision.spatial_merge_size**2
    draw = torch.Generator().manual_seed(0)
    text = torch.randint(100, shape.text_config.vocab_size - 1000, (TEXT,), generator=draw).tolist()
    ids = [shape.vision_start_token_id, *[shape.image_token_id] * image, shape.vision_end_token_id]
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return EncodedPrompt(
        text="",
        ids=[*ids, *text],
        token_types={"mm_token_type_ids": [0, *[1] * image, 0, *[0] * TEXT]},
        images={
            "pixel_values": torch.randn(rows * columns, patch, generator=draw),
            "image_grid_thw": torch.tensor([[1, rows, columns]]),
        },
    )


def group() -> Group:
    """One question with eight different responses of 60 tokens."""
    student, teacher = config(STUDENT), config(TEACHER)
    top = min(student.text_config.vocab_size, teacher.text_config.vocab_size) - 1000
    draw = torch.Generator().manual_seed(1)
    responses = tuple(
        Response(
            token_ids=tuple(torch.randint(100, top, (TOKENS,), generator=draw).tolist()),
            source="teacher" if j < RESPONSES // 2 else "student",
            accuracy=float(j % 2),
            reference=(-12.0,) * TOKENS,
        )
        for j in range(RESPONSES)
    )
    return Group(
        question_id="q",
        student_prompt=prompt(student),
        teacher_prompt=prompt(teacher),
        responses=responses,
    )


@pytest.mark.parametrize(
    "teacher_device, moments, adapted",
    [
        ("same", "fp32", False),
        ("offload", "fp32", False),
        ("same", "8bit", False),
        ("same", "fp32", True),
    ],
    ids=["plain", "teacher-offload", "8bit-moments", "lora"],
)
def test_a_training_step(
    teacher_device: str,
    moments: str,
    adapted: bool,
    device: torch.device,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if moments == "8bit":
        pytest.importorskip("bitsandbytes", reason="the package of 8-bit moments is missing")
    if adapted:
        pytest.importorskip("peft", reason="the package of adapters is missing")
    question = group()
    gc.collect()  # the models of the way before
    torch.cuda.empty_cache()
    model = random_model(TEACHER, torch.bfloat16, device)
    if teacher_device == "offload":
        stream_blocks(model.to("cpu"), device)
    teacher = MaskedTeacher(model, Path(), None)
    student = random_model(STUDENT, torch.float32, device)
    student.gradient_checkpointing_enable({"use_reentrant": False})
    resting: tuple[str, ...] = ()
    if adapted:
        resting = freeze_parts(student, ("vision",))
        settings = LoraSettings(
            rank=16, alpha=32.0, dropout=0.0, parts=("language",), targets=(), seed=0
        )
        lora.attach(student, lora_layers(student, ("language",), ()), settings)
    module = Student(student, precision=torch.bfloat16, resting=resting, adapted=adapted).train()
    optimiser = make_optimiser(module, replace(settings_of(moments), lr=1e-5))
    trained = [p for p in module.parameters() if p.requires_grad]
    before = trained[-1].detach().clone()
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    seconds, norms = [], []
    for _ in range(3):
        begin = time.perf_counter()
        norms.append(one_step(module, teacher, optimiser, question))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(round(time.perf_counter() - begin, 3))
    assert all(0 < norm < float("inf") for norm in norms)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert not torch.equal(trained[-1], before)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    found = {
        "teacher_device": teacher_device,
        "moments": moments,
        "lora": adapted,
        "student_parameters": sum(p.numel() for p in student.parameters()),
        "trained_parameters": sum(p.numel() for p in trained),
        "teacher_parameters": sum(p.numel() for p in model.parameters()),
        "tokens": RESPONSES * (len(question.student_prompt.ids) + TOKENS),
        "seconds": seconds,
        "peak_gib": round(peak / 2**30, 2),
        "device": torch.cuda.get_device_name(device) if peak else "cpu",
        "torch": torch.__version__,
    }
    with capsys.disabled():
        print("\n" + json.dumps(found))


def one_step(module: Student, teacher: MaskedTeacher, optimiser: Any, question: Group) -> float:
    """One question's optimiser step; the gradient norm."""
    heads = (m.get_output_embeddings().weight.shape[0] for m in (module.vlm, teacher.model))
    ids = TokenIds(end=(2,), pad=0, banned=(), vocabulary=min(heads))
    settings = StepSettings(
        terms=(GrpoTerm(), JsdTerm()), rewards=RewardSettings(), beta=0.5, temperature=1.0,
        clip_norm=1.0, micro_batch=1, vocabulary=ids.vocabulary,
    )  # fmt: skip
    sums = StepSums()
    accumulate(module, teacher, [question], ids=ids, settings=settings, questions=1, sums=sums)
    return apply_gradient(module, optimiser, settings.clip_norm)
