"""Kept features of pictures are the features, for every family, and only where the tower rests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from masters.generation.engine import Request, TransformersEngine
from masters.generation.sampling import SampleKey, Sampling
from masters.models.encode import EncodedPrompt, pad_rows
from masters.models.families import FAMILIES, family_of
from masters.models.feature_cache import (
    PICTURES,
    FeatureCache,
    FeatureStore,
    attach_features,
    cacheable,
    feature_cache,
)
from masters.models.load import TokenIds, load_model, load_processor
from masters.models.trainable import freeze_parts
from masters.parts import PARTS, Part
from masters.teachers.masked import MaskedTeacher
from masters.teachers.measuring import measure_thresholds
from masters.training.group_forward import Form, choose_form, group_inputs
from masters.training.groups import Group, make_rows
from masters.training.teacher_signal import teacher_states
from tests.families import write_tiny

from .conftest import Tiny, make_groups
from .test_packed import apart, opened, scores_and_gradient

VISION: tuple[Part, ...] = ("vision",)
BOTH: tuple[Part, ...] = ("vision", "projector")


class Runs:
    """Counts how often the first layer of a model's tower is run."""

    def __init__(self, model: Any) -> None:
        self.layers = 0
        family = family_of(model)
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and family.part_of(name) == "vision":
                module.register_forward_hook(self._ran)
                return

    def _ran(self, *_: Any) -> None:
        self.layers += 1


def frozen(folder: Path, family: str, parts: tuple[Part, ...]) -> tuple[Any, TokenIds, list[Group]]:
    """A tiny model with these parts frozen, and groups; two of them show the same picture."""
    model, ids, groups = opened(folder, family)
    for name in freeze_parts(model.train(), parts):
        model.get_submodule(name).training = False
    twin = replace(groups[1], question_id="twin", responses=groups[1].responses[:2])
    return model, ids, [*groups, twin]


def attached(model: Any, room: int = 1 << 30) -> tuple[FeatureCache, FeatureStore]:
    store = FeatureStore(room)
    cache = attach_features(model, store, "student")
    assert cache is not None
    return cache, store


@pytest.mark.parametrize("parts", [VISION, BOTH], ids=["vision", "both"])
@pytest.mark.parametrize("family", FAMILIES)
def test_kept_features_are_the_features(
    tmp_path: Path, family: str, parts: tuple[Part, ...]
) -> None:
    """In float64 log-probs and gradients are those without a cache; the second use is the first bit
    for bit; each picture is encoded once, however often it is seen."""
    model, ids, groups = frozen(tmp_path, family, parts)
    packed: Form = choose_form(model, "mask", tokens=1)[0]
    forms: tuple[Form, ...] = ("repeat", packed)
    plain = {form: scores_and_gradient(model, ids, groups, form) for form in forms}
    runs = Runs(model)
    cache, store = attached(model)
    # LLaVA-OneVision's line breaks lie behind its projector and are trained all the same.
    whole = parts == BOTH and family != "llava_onevision"
    assert cache.level == ("features" if whole else "projector_inputs")
    bound = 1e-10 if model.dtype == torch.float64 else 1e-5
    for form, (expected, gradient) in plain.items():
        first = scores_and_gradient(model, ids, groups, form)
        again = scores_and_gradient(model, ids, groups, form)
        assert torch.equal(first[0], again[0])
        assert all(torch.equal(first[1][name], again[1][name]) for name in first[1])
        assert (first[0] - expected).abs().max() < bound
        assert apart(gradient, first[1]) < bound
        assert not any(family_of(model).part_of(name) in parts for name in gradient)
    pictures = len({group.student_prompt.image_key for group in groups})
    assert cache.counts.misses == pictures == len(groups) - 1
    assert runs.layers == pictures
    assert store.held > 0 and cache.counts.seconds_saved > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_samples_of_a_prompt_share_its_picture(tmp_path: Path, family: str) -> None:
    """Generated ids are those without a cache, log-probs to rounding; prompts without kept
    features encode each picture once a call, kept ones once at all."""
    model, ids, groups = opened(tmp_path, family)
    model.eval().requires_grad_(False)
    requests = [
        Request(
            prompt=group.student_prompt,
            keys=tuple(
                SampleKey(seed=0, question_id=group.question_id, source="student", ratio=0,
                          round=0, sample=sample)
                for sample in range(3)
            ),
        )
        for group in groups
    ]  # fmt: skip
    sampling = Sampling(
        temperature=1.0, top_p=0.9, top_k=50, repetition_penalty=1.05, max_new_tokens=6
    )

    def answered(features: FeatureCache | None) -> tuple[list[list[int]], torch.Tensor]:
        engine = TransformersEngine(
            model, load_processor(str(tmp_path)), ids, batch_rows=6, features=features
        )
        found = [one for every in engine.generate(requests, sampling) for one in every]
        logps = torch.tensor([value for one in found for value in one.logprobs])
        return [one.token_ids for one in found], logps

    expected, expected_N = answered(None)
    for room, encoded in ((0, 2 * len(groups)), (1 << 30, len(groups))):
        cache, _ = attached(model, room)
        for _ in range(2):
            found, logp_N = answered(cache)
            assert found == expected
            assert (logp_N - expected_N).abs().max() < 1e-4
        assert cache.counts.misses == encoded


def test_encoded_alone_differs_by_rounding(student: Tiny, teacher: Tiny) -> None:
    """Float32: features of eight pictures, each encoded alone, against one batch of them."""
    model = student.model.requires_grad_(False)
    inputs = pad_rows([(prompt, ()) for prompt in student.prompts], pad=student.ids.pad)
    together = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    attached(model)
    seen = {}

    def noted(core: Any, args: Any, inputs: Any) -> None:
        seen.update(features=core.get_image_features(inputs["pixel_values"]))

    model.base_model.register_forward_pre_hook(noted, with_kwargs=True)
    rows = make_rows(make_groups(student, teacher))
    inputs, *_ = group_inputs(
        model, rows, form="mask", teacher=False, pad=student.ids.pad, device="cpu"
    )
    shown = [student.prompts.index(prompt) for prompt in inputs[PICTURES]]
    model.base_model(**inputs)
    alone = seen["features"].pooler_output
    batch = [together.pooler_output[i] for i in shown]
    for one, other in zip(alone, batch, strict=True):
        assert (one - other).abs().max() < 1e-6 * other.abs().max()


def test_a_tower_that_is_trained_is_never_kept(student: Tiny, teacher: Tiny) -> None:
    model = student.model
    groups = make_groups(student, teacher)
    assert cacheable(model) == (None, "its vision tower is trained")
    freeze_parts(model, ("projector",))
    assert attach_features(model, FeatureStore(1 << 30), "student") is None
    assert feature_cache(model) is None
    rows = make_rows(groups)
    inputs, *_ = group_inputs(
        model, rows, form="mask", teacher=False, pad=student.ids.pad, device="cpu"
    )
    assert PICTURES not in inputs and inputs["pixel_values"].numel()
    one = next(p for n, p in model.named_parameters() if family_of(model).part_of(n) == "vision")
    model.requires_grad_(False)
    assert cacheable(model)[0] == "features"
    one.requires_grad_(True)  # an adapter in the tower, say
    assert cacheable(model)[0] is None


def test_a_tower_that_drops_out_is_never_kept(student: Tiny) -> None:
    freeze_parts(student.model.train(), VISION)
    student.model.model.visual.config.attention_dropout = 0.1
    assert cacheable(student.model) == (None, "its vision tower drops out (attention_dropout)")
    student.model.eval()
    assert cacheable(student.model)[0] == "projector_inputs"


def test_a_model_whose_features_are_not_known_is_left_alone(tmp_path: Path) -> None:
    write_tiny(tmp_path, "glm4v", size="student", seed=1)
    model: Any = load_model(str(tmp_path)).requires_grad_(False)
    assert cacheable(model)[0] is None and attach_features(model, FeatureStore(1), "x") is None


def test_other_pictures_and_other_questions(student: Tiny, teacher: Tiny) -> None:
    """Another picture has another key; the same one in another question has the same."""
    prompts = student.prompts
    assert len({prompt.image_key for prompt in prompts}) == len(prompts)
    other = EncodedPrompt(text="", ids=[1], token_types={}, images=dict(prompts[0].images))
    assert other.image_key == prompts[0].image_key
    one_bit = {**prompts[0].images, "pixel_values": prompts[0].images["pixel_values"].clone()}
    one_bit["pixel_values"][-1, -1] += 1e-3
    assert replace(prompts[0], images=one_bit).image_key != prompts[0].image_key


def test_a_masked_tower_has_features_for_each_ratio(student: Tiny, teacher: Tiny) -> None:
    """They are the masked tower's own, going up, down and back; a language mask keeps one set."""
    groups = make_groups(student, teacher)[:2]
    for parts, ratios in ((PARTS, (5000, 2000, 0, 5000)), (("language",), (5000, 0))):
        found, plain = [], []
        for kept in (False, True):
            model: Any = load_model(str(teacher.folder))
            thresholds = measure_thresholds(teacher.folder, (5000, 2000), parts=parts)
            masked = MaskedTeacher(model, teacher.folder, thresholds)
            store = FeatureStore(1 << 30)
            cache = None
            if kept:
                cache = attach_features(model, store, "teacher", version=masked.picture_ratio)
            for ratio in ratios:
                masked.set_ratio(ratio)
                states = teacher_states(
                    masked, make_rows(groups), student.ids, torch.float32, torch.device("cpu")
                )
                (found if kept else plain).append(states)
            if cache is not None:
                assert cache.counts.misses == (6 if parts == PARTS else 2)
        for a, b in zip(found, plain, strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)
        assert torch.equal(found[0], found[-1]) == (parts == PARTS)


def test_the_store_is_bounded_and_old_versions_make_room() -> None:
    store = FeatureStore(100)
    tensor = torch.zeros(10)  # 40 bytes
    for key in (b"a", b"b", b"c"):
        store.put("teacher", 2000, key, [tensor], 1.0)
    assert store.held == 80 and store.refused == 1
    assert store.get("teacher", 2000, b"a") and not store.get("teacher", 2000, b"c")
    store.put("student", 0, b"a", [tensor], 1.0)
    assert store.get("student", 0, b"a") is None  # another model's are no older version
    store.put("teacher", 1000, b"c", {"x": tensor}, 1.0)
    assert store.held == 80 and store.get("teacher", 1000, b"c")
    assert store.get("teacher", 2000, b"a") is None and store.get("teacher", 2000, b"b")
    store.put("teacher", 1000, b"large", [torch.zeros(1000)], 1.0)
    assert store.held <= 100 and store.get("teacher", 1000, b"large") is None


def test_without_room_the_values_are_the_same(tmp_path: Path) -> None:
    """What is refused is encoded again, alone as before: a full cache moves no value."""
    model, ids, groups = frozen(tmp_path, "qwen3_vl", VISION)
    cache, _ = attached(model, room=0)
    none = scores_and_gradient(model, ids, groups, "mask")
    assert cache.counts.hits == 0
    other = load_model(str(tmp_path)).double().train()
    freeze_parts(other, VISION)
    kept, _ = attached(other)
    for _ in range(2):
        all_kept = scores_and_gradient(other, ids, groups, "mask")
    assert kept.counts.hits == 4
    assert torch.equal(none[0], all_kept[0])
    assert all(torch.equal(none[1][name], all_kept[1][name]) for name in none[1])
