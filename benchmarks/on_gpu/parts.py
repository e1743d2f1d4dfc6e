"""What a step rests on, each measured alone: the device, token scores, masks, generation."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import divergence
import torch
from stepping.clock import device_now, repeated
from stepping.shapes import question

from masters.generation.engine import Request, TransformersEngine
from masters.generation.sampling import SampleKey, Sampling
from masters.teachers.masked import MaskedTeacher
from masters.teachers.measuring import measure_thresholds
from on_gpu.running import Found, need, room
from on_gpu.setting import FROZEN, Setting

RATIOS = (500, 1000, 1500)
#: Layers of the masked model: the rest is more of the same, and its file would take minutes.
MASKED_LAYERS = 4


def device_facts(setting: Setting) -> Found:
    """Its name and memory, what it multiplies at most in bf16, and what it copies."""
    device, size = setting.device, 256 if setting.small else 8192
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        yield ("name",), properties.name
        yield ("memory_gib",), properties.total_memory / 2**30
        yield ("free_gib",), room(device) / 2**30
    else:
        yield ("name",), str(device)
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    seconds = repeated(device, lambda: [a @ b for _ in range(10)], setting.repeats)
    yield ("matmul_tflops",), 20 * size**3 / median(seconds) / 1e12
    source = torch.zeros(size * size * 16, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    seconds = repeated(device, lambda: target.copy_(source), setting.repeats)
    yield ("copy_gb_per_second",), 2 * source.nbytes / median(seconds) / 1e9


def scores(setting: Setting) -> Found:
    """`token_scores` beside the bare matrix products: at most twice their time is the target."""
    tokens, student, teacher = (16, 32, 48) if setting.small else (2048, 2048, 4096)
    for task in ("jsd", "both"):
        for trained in (True, False):
            case = divergence.Case(
                tokens=tokens, vocabulary=setting.vocabulary, student=student, teacher=teacher,
                trained=trained, task=task, dtype="bf16", device=str(setting.device),
            )  # fmt: skip
            plain = 0.0
            if setting.device.type == "cuda":
                need(setting.device, 8e9, "the scores")
                plain = room(setting.device) / 2 / 1e9  # it keeps more than is counted
            seconds = divergence.measure_time(case, setting.repeats, plain)
            memory: dict[str, int] = {}
            if setting.device.type == "cuda":
                measured = [name for name in seconds if name != "products"]
                memory = {n: divergence.measure_memory(case, n, plain) for n in measured}
            row = divergence.summary(case, seconds, memory)
            times = [
                own / bare for own, bare in zip(seconds["ours"], seconds["products"], strict=True)
            ]
            head = "trained" if trained else "frozen"
            yield (task, f"head {head}"), {**row, "times_products": divergence.spread(times)}


def masks(setting: Setting) -> Found:
    """Seconds and bytes of each change of a masked 8B's ratio, up and down.

    The model has four layers on disk and in memory; ``whole_seconds`` is for as many as it has.
    """
    need(setting.device, 8e9, "an 8B of four layers")
    whole = setting.model_layers("8B")
    layers = min(MASKED_LAYERS, whole)
    model = setting.model("8B", setting.precision, layers)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model.save_pretrained(folder)
        begin = time.perf_counter()
        thresholds = measure_thresholds(folder, RATIOS, parts=("language",))
        weights = sum(layer.size for layer in thresholds.layers.values())
        spent = time.perf_counter() - begin
        yield ("thresholds",), {"seconds": spent, "weights": weights, "layers": layers}
        teacher = MaskedTeacher(model, folder, thresholds)
        for before, ratio in zip((0, *RATIOS, 1000, 500), (*RATIOS, 1000, 500, 0), strict=True):
            read, begin = teacher.bytes_read, device_now(setting.device)
            teacher.set_ratio(ratio)
            seconds = device_now(setting.device) - begin
            yield (
                (f"{before} to {ratio}",),
                {
                    "seconds": seconds,
                    "bytes_read": teacher.bytes_read - read,
                    "whole_seconds": seconds * whole / layers,
                    "whole_bytes": (teacher.bytes_read - read) * whole // layers,
                },
            )


def generation(setting: Setting) -> Found:
    """New tokens a second of the transformers engine, eight samples of eight questions at once."""
    for name in ("2B", "8B"):
        need(setting.device, FROZEN * setting.weights(name) + 8e9, f"{name}, generating")
        yield (name,), _generated(setting, name)


def _generated(setting: Setting, name: str) -> dict[str, Any]:
    case = replace(setting.cases["4:1"], group=1)
    questions, samples, tokens = (2, 2, 3) if setting.small else (8, 8, 64)
    # Nobody reads the words of random weights, and there are no processor's files.
    silent: Any = SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda ids, **kw: ""))
    engine = TransformersEngine(
        setting.model(name, setting.precision), silent, setting.ids,
        batch_rows=questions * samples, precision=setting.precision,
    )  # fmt: skip
    requests = [
        Request(
            prompt=question(case, seed=i).student_prompt,
            keys=tuple(
                SampleKey(seed=0, question_id=str(i), source="student", ratio=0, round=0, sample=j)
                for j in range(samples)
            ),
        )
        for i in range(questions)
    ]

    def generated(new: int) -> int:
        found = engine.generate(requests, Sampling(max_new_tokens=new))
        return sum(len(completion.token_ids) for own in found for completion in own)

    generated(2)  # warms up
    begin = device_now(setting.device)
    count = generated(tokens)
    seconds = device_now(setting.device) - begin
    return {
        "rows": questions * samples, "prompt_tokens": case.prefix, "new_tokens": count,
        "seconds": seconds, "tokens_per_second": count / seconds,
    }  # fmt: skip
