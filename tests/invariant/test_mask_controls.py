"""The mask's controls in memory and on disk: random weights, and softness without any mask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax

from masters.errors import ModelError
from masters.generation.engine import Request, TransformersEngine
from masters.generation.sampling import SampleKey, Sampling
from masters.models.load import load_model
from masters.models.output_head import whole_head
from masters.teachers.drawn import drawn_below
from masters.teachers.masked import MaskedTeacher
from masters.teachers.materialise import write_masked
from masters.teachers.measuring import measure_thresholds
from masters.teachers.thresholds import load_thresholds, save_thresholds
from tests.families.writing import write_tiny

from .conftest import Tiny
from .test_masked_families import same, state, transposed_experts

RATIOS = (2000, 5000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_vl_moe", "transposed", "internvl"])
def test_random_masks_up_down_and_on_disk(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    folder = tmp_path / "teacher"
    name = "qwen3_vl_moe" if family == "transposed" else family
    write_tiny(folder, name, size="teacher", seed=3)
    model: Any = load_model(str(folder)).to(dtype)
    model.save_pretrained(folder)
    if family == "transposed":
        transposed_experts(folder)
    model = load_model(str(folder), dtype=dtype)
    thresholds = measure_thresholds(folder, RATIOS, kind="random")
    plain = measure_thresholds(folder, RATIOS)
    assert thresholds.layers.keys() == plain.layers.keys()
    for name, layer in thresholds.layers.items():
        assert layer.zeros == tuple(ratio * layer.size // 10_000 for ratio in RATIOS)
        assert layer.values != plain.layers[name].values
    save_thresholds(thresholds, tmp_path / "thresholds.json")
    thresholds = load_thresholds(tmp_path / "thresholds.json")
    original, seen = state(model), {}
    teacher = MaskedTeacher(model, folder, thresholds)
    for ratio in (2000, 5000, 2000, 5000):  # in place going up, from the checkpoint going down
        teacher.set_ratio(ratio)
        assert same(seen.setdefault(ratio, state(model)), state(model))
    for layer in teacher._layers.values():
        found, measured = seen[5000][layer.parameter], thresholds.layers[layer.name]
        before = original[layer.parameter]
        if layer.matrix is not None:
            found, before = found[layer.matrix], before[layer.matrix]
        below = torch.from_numpy(drawn_below(measured, 1, 0, measured.size))
        gone = below.view(found.mT.shape).mT if measured.transposed else below.view(found.shape)
        assert torch.equal(found, before.masked_fill(gone, 0)), layer.name
    write_masked(folder, tmp_path / "masked", thresholds, 5000)
    assert same(state(load_model(str(tmp_path / "masked"), dtype=dtype)), seen[5000])
    teacher.set_ratio(0)
    assert same(state(model), original)


def test_a_part_of_the_rows_is_masked_as_in_the_whole(
    teacher: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a rank does that holds rows 3 to 10 of every matrix: zeroed in place, and read back."""
    thresholds = measure_thresholds(teacher.folder, RATIOS, kind="random")
    whole = MaskedTeacher(teacher.model, teacher.folder, thresholds)
    whole.set_ratio(2000)
    masked = {n: p.detach().clone() for n, p in teacher.model.named_parameters()}
    whole.set_ratio(0)
    part = MaskedTeacher(load_model(str(teacher.folder)), teacher.folder, thresholds)
    rows = range(3, 10)
    original = part._weight
    monkeypatch.setattr(part, "_weight", lambda name: (original(name)[0][3:10], rows))
    monkeypatch.setattr(part, "_check_zeros", lambda counted, column: None)
    for ratios in ((2000,), (5000, 2000)):
        for ratio in ratios:
            part.set_ratio(ratio)
        for name in thresholds.layers:
            now = part.model.get_parameter(f"{name}.weight")
            assert torch.equal(now[3:10], masked[f"{name}.weight"][3:10]), name
        part.set_ratio(0)


def soft(folder: Path) -> Any:
    return measure_thresholds(folder, (2000, 1000), kind="softness", temperatures=(2.0, 1.25))


@pytest.mark.parametrize("tied", [False, True])
def test_softness_divides_logits_and_restores_every_bit(teacher: Tiny, tied: bool) -> None:
    model = teacher.model
    if tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    request = [Request(prompt=teacher.prompts[0], keys=(SampleKey(
        seed=0, question_id="q", source="teacher", ratio=0, round=0, sample=0
    ),))]  # fmt: skip
    engine = TransformersEngine(
        model, teacher.processor, teacher.ids, batch_rows=1, precision=torch.float32
    )
    first = lambda: engine.generate(request, Sampling.greedy(1))[0][0]  # noqa: E731
    head = model.get_output_embeddings().weight.detach().clone()
    embeddings = model.get_input_embeddings().weight.detach().clone()
    whole = first()
    thresholds = soft(teacher.folder)
    assert thresholds.temperatures == (1.25, 2.0) and thresholds.share_of_zeros(2000) == 0
    masked = MaskedTeacher(model, teacher.folder, thresholds)
    for ratio, temperature in ((2000, 2.0), (1000, 1.25), (2000, 2.0)):
        masked.set_ratio(ratio)
        torch.testing.assert_close(
            whole_head(model, torch.device("cpu")), head / temperature, rtol=0, atol=0
        )
        assert torch.equal(model.get_input_embeddings().weight, embeddings)
        softer = first()
        assert softer.token_ids == whole.token_ids
        assert softer.logprobs and whole.logprobs
        assert softer.logprobs[0] < whole.logprobs[0]
    masked.set_ratio(0)
    assert torch.equal(model.get_output_embeddings().weight, head)
    assert first() == whole
    assert masked.picture_ratio() == masked.bytes_read == 0


def test_softness_reaches_a_head_brought_elsewhere(teacher: Tiny) -> None:
    """What `whole_head` keeps of a head on another device is dropped when the head changes."""
    from masters.models import output_head

    masked = MaskedTeacher(teacher.model, teacher.folder, soft(teacher.folder))
    head = teacher.model.get_output_embeddings()
    output_head._HEADS[head] = head.weight.clone()
    masked.set_ratio(2000)
    assert head not in output_head._HEADS


def test_softness_in_numpy(teacher: Tiny) -> None:
    """log softmax(z / T) from the divided head is that of the divided logits."""
    states_ND = torch.randn(5, teacher.model.get_output_embeddings().weight.shape[1]).double()
    head = teacher.model.get_output_embeddings().weight.detach().double().clone()
    MaskedTeacher(teacher.model, teacher.folder, soft(teacher.folder)).set_ratio(1000)
    divided = teacher.model.get_output_embeddings().weight.double()
    got, expected = (log_softmax(z, -1) for z in (states_ND @ divided.T, states_ND @ head.T / 1.25))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_softness_has_no_checkpoint_and_no_capped_head(teacher: Tiny, tmp_path: Path) -> None:
    thresholds = soft(teacher.folder)
    with pytest.raises(ModelError, match="zeroes no weight"):
        write_masked(teacher.folder, tmp_path / "masked", thresholds, 2000)
    teacher.model.config.get_text_config().final_logit_softcapping = 30.0
    with pytest.raises(ModelError, match="caps its logits at 30"):
        MaskedTeacher(teacher.model, teacher.folder, thresholds)


def test_files_without_a_kind_are_by_magnitude(teacher: Tiny, tmp_path: Path) -> None:
    thresholds = measure_thresholds(teacher.folder, RATIOS)
    text = save_thresholds(thresholds, tmp_path / "now.json")
    lines = [ln for ln in text.splitlines() if '"kind"' not in ln and '"temperatures"' not in ln]
    (tmp_path / "before.json").write_text("\n".join(lines))
    assert load_thresholds(tmp_path / "before.json") == thresholds
    assert replace(thresholds, kind="random") != thresholds
