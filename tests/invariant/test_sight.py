"""The check that a picture reaches a model: each way it may fail has a sentence of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from masters.data.questions import Question
from masters.data.scenes import SceneQuestions, scene_vocabulary
from masters.errors import ModelError
from masters.models.encode import EncodedPrompt
from masters.models.sight import image_features, next_log_probs, placeholders
from masters.models.tiny import write_tiny_model
from masters.recipe import Prompt
from masters.stages.opening import OpenedModel, Prompts
from masters.stages.sight import check_sees_image, other_picture, sampled

from .conftest import Tiny, load_tiny

QUESTIONS = SceneQuestions(count=12, seed=0)


def opened(tiny: Tiny) -> tuple[OpenedModel, Prompts]:
    model = OpenedModel(
        model=tiny.model, processor=tiny.processor, ids=tiny.ids, folder=tiny.folder
    )
    return model, Prompts(QUESTIONS, tiny.processor, Prompt(suffix=None))


def check(tiny: Tiny, *, precision: torch.dtype = torch.float32) -> None:
    check_sees_image(*opened(tiny), role="teacher", precision=precision)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_model_that_sees(student: Tiny, precision: torch.dtype) -> None:
    check(student, precision=precision)
    check_sees_image(*opened(student), role="student", precision=precision)


SHOWN = "<|vision_start|><|image_pad|><|vision_end|>"


def test_the_check_leaves_a_model_as_it_was(student: Tiny) -> None:
    """In training, with a part that rests and dropout that would draw from the run's numbers."""
    student.model.train()
    student.model.model.visual.eval()
    layer = student.model.model.language_model.layers[0]
    layer.mlp.register_module("dropout", torch.nn.Dropout(0.5))
    layer.mlp.register_forward_hook(lambda module, inputs, output: module.dropout(output))
    before = {name: module.training for name, module in student.model.named_modules()}
    state = torch.get_rng_state()
    check(student)
    assert {name: module.training for name, module in student.model.named_modules()} == before
    assert torch.equal(torch.get_rng_state(), state)


def no_image_in_template(tiny: Tiny) -> None:
    """This processor counts and refuses; not every one does."""
    template = tiny.processor.chat_template
    assert SHOWN in template
    tiny.processor.chat_template = template.replace(SHOWN, "")


class Careless:
    """A processor that does not count: text and images go through, whatever is in either."""

    def __init__(self, whole: Any, *, keep_text: bool, keep_images: bool) -> None:
        self.tokenizer, self._whole = whole.tokenizer, whole
        self._keep_text, self._keep_images = keep_text, keep_images

    def apply_chat_template(self, *arguments: Any, **settings: Any) -> str:
        text = self._whole.apply_chat_template(*arguments, **settings)
        return text if self._keep_text else text.replace(SHOWN, "")

    def __call__(self, text: Any, images: Any, return_tensors: str) -> Any:
        inputs = self.tokenizer(text, return_tensors=return_tensors)
        pixels = self._whole.image_processor(images, return_tensors=return_tensors)
        return {**inputs, **(pixels if self._keep_images else {})}


def careless_template(tiny: Tiny) -> None:
    tiny.processor = Careless(tiny.processor, keep_text=False, keep_images=True)


def finer_processor(tiny: Tiny) -> None:
    tiny.processor.image_processor.merge_size = 1


def coarser_patches(tiny: Tiny) -> None:
    tiny.processor.image_processor.patch_size = 12


def dark_processor(tiny: Tiny) -> None:
    tiny.processor.image_processor.rescale_factor = 0.0


def forgetful_processor(tiny: Tiny) -> None:
    tiny.processor = Careless(tiny.processor, keep_text=True, keep_images=False)


def blind(tiny: Tiny) -> None:
    def nothing(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return 0 * output

    for name, module in tiny.model.named_modules():
        if name.endswith("linear_fc2") and "merger" in name:
            module.register_forward_hook(nothing)


def nearly_blind(tiny: Tiny) -> None:
    for name, module in tiny.model.named_modules():
        if name.endswith("linear_fc2") and "merger" in name:
            module.weight.data.mul_(1e-10)


def trembling(tiny: Tiny) -> None:
    """As kernels that add up in another order each time: the same input, another output."""

    def tremble(module: Any, inputs: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state + 1e-3 * torch.randn_like(
            output.last_hidden_state
        )
        return output

    tiny.model.model.language_model.register_forward_hook(tremble)


def blind_and_trembling(tiny: Tiny) -> None:
    blind(tiny)
    trembling(tiny)


def not_a_number(tiny: Tiny) -> None:
    tiny.model.model.language_model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_image_in_template, ("total 0 <|image_pad|> tokens", "chat_template.jinja")),
        (careless_template, ("no image placeholder", "chat template drops the image")),
        (finer_processor, ("gets 36 image placeholders", "makes 9 image features", "merge_size")),
        (coarser_patches, ("cannot make features", "pixel_values", "different checkpoints")),
        (dark_processor, ("same numbers of another picture", "rescale_factor")),
        (forgetful_processor, ("makes no image tensors", "preprocessor_config.json")),
        (blind, ("does not see the image: another picture moves", "0.0e+00", "vision tower")),
        (nearly_blind, ("does not see the image: another picture moves", "more than 1.0e-03")),
        (blind_and_trembling, ("does not see the image: another picture moves", "the same")),
        (not_a_number, ("NaN or infinite", "precision fp32")),
    ],
)
def test_refused(spoil: Callable[[Tiny], None], said: tuple[str, ...], student: Tiny) -> None:
    spoil(student)
    with pytest.raises(ModelError) as error:
        check(student)
    message = str(error.value)
    assert message.startswith(f"{student.folder}: the teacher ")
    assert f"(question {QUESTIONS[0].id})" in message
    assert all(part in message for part in said), message


def test_bit_equality_would_let_a_blind_model_pass(student: Tiny) -> None:
    """Why the change is measured against asking twice."""
    blind_and_trembling(student)
    model, prompts = opened(student)
    one, two = (
        next_log_probs(model.model, encoded, pad=model.ids.pad, vocabulary=model.ids.vocabulary)
        for encoded in (prompts(0), prompts.encode(0, change=other_picture))
    )
    assert not torch.equal(one, two)


def test_a_model_that_trembles_and_sees(student: Tiny) -> None:
    trembling(student)
    check(student)


def test_every_sampled_question_is_looked_at(student: Tiny) -> None:
    """A template that drops the image of one question out of four."""
    indices = sampled(opened(student)[1].questions)
    victim = QUESTIONS[indices[-1]]
    template = student.processor.chat_template
    condition = f"part.type == 'image' and {victim.text!r} not in message.content[1].text"
    student.processor.chat_template = template.replace("part.type == 'image'", condition)
    with pytest.raises(ModelError, match=f"the teacher cannot be given.*question {victim.id}"):
        check(student)


class Made:
    """Questions of which only some have a picture."""

    def __init__(self, count: int, pictures: set[int]) -> None:
        self._rows = [
            Question(id=str(i), text="?", images=("x",) if i in pictures else ())
            for i in range(count)
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Question:
        return self._rows[index]


@pytest.mark.parametrize(
    ("count", "pictures", "first"),
    [(5000, range(5000), (0, 1)), (5000, range(40, 5000), (40, 41)), (3, range(3), (0, 1, 2))],
)
def test_which_questions(count: int, pictures: range, first: tuple[int, ...]) -> None:
    found = sampled(Made(count, set(pictures)))  # type: ignore[arg-type]
    assert tuple(found[: len(first)]) == first
    assert len(found) == len(set(found)) == min(count, 4)
    assert set(found) <= set(pictures)
    assert sampled(Made(300, set())) == []  # type: ignore[arg-type]


def test_another_picture_differs_from_any() -> None:
    grey = Image.new("RGB", (64, 48), (127, 127, 127))
    other = other_picture(grey)
    assert other.size == grey.size
    assert other.tobytes() == other_picture(grey).tobytes() != grey.tobytes()


def test_teacher_and_student_see_at_their_own_resolution(tmp_path: Path) -> None:
    """Four placeholders for the student, sixteen or more for the teacher: both pass."""
    texts = scene_vocabulary()
    write_tiny_model(tmp_path / "s", "qwen3_vl_100k", seed=1, texts=texts, longest_edge=32)
    write_tiny_model(tmp_path / "t", "qwen3_vl_250k", seed=2, texts=texts, longest_edge=128)
    counts = []
    for name in ("s", "t"):
        tiny = load_tiny(tmp_path / name)
        check(tiny)
        model, prompts = opened(tiny)
        counts.append(placeholders(model.model, prompts(0)))
        assert image_features(model.model, prompts(0)) == counts[-1]
    assert counts[0] < counts[1]


# ------------------------------------------------------------------------ features, by architecture

TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip


def internvl() -> tuple[Any, dict[str, torch.Tensor], int]:
    """Two tiles of 4 x 4 patches, four patches a feature."""
    from transformers import InternVLConfig

    vision = {**VISION, "image_size": [32, 32], "patch_size": [8, 8]}
    config = InternVLConfig(
        text_config={"model_type": "qwen2", **TEXT}, vision_config=vision, image_token_id=5
    )
    return config, {"pixel_values": torch.randn(2, 3, 32, 32)}, 8


def idefics3() -> tuple[Any, dict[str, torch.Tensor], int]:
    """One picture cut into three, four features each."""
    from transformers import Idefics3Config

    config = Idefics3Config(
        text_config={"model_type": "llama", **TEXT, "pad_token_id": 0},
        vision_config=VISION, image_token_id=5, scale_factor=2,
    )  # fmt: skip
    mask = torch.ones(1, 3, 32, 32, dtype=torch.long)
    pixels = torch.randn(1, 3, 3, 32, 32)
    return config, {"pixel_values": pixels, "pixel_attention_mask": mask}, 12


def llava_onevision() -> tuple[Any, dict[str, torch.Tensor], int]:
    """A base tile of 16 and two tiles of 16 with a line end a row."""
    from transformers import LlavaOnevisionConfig

    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **TEXT},
        vision_config={"model_type": "siglip_vision_model", **VISION, "vision_use_head": False},
        image_token_index=5, video_token_index=6, image_grid_pinpoints=[[32, 32], [32, 64]],
    )  # fmt: skip
    sizes = torch.tensor([[32, 64]])
    return config, {"pixel_values": torch.randn(1, 3, 3, 32, 32), "image_sizes": sizes}, 52


@pytest.mark.parametrize("build", [internvl, idefics3, llava_onevision])
def test_features_of_an_architecture(build: Callable[[], Any]) -> None:
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    config, images, features = build()
    model = AutoModelForImageTextToText.from_config(config).eval()
    encoded = EncodedPrompt(
        text="", ids=[1, *[5] * features, 20, 21], token_types={}, images=images
    )
    assert image_features(model, encoded) == placeholders(model, encoded) == features
    other = copy.copy(images)
    other["pixel_values"] = torch.randn_like(images["pixel_values"])
    one, same, two = (
        next_log_probs(
            model,
            EncodedPrompt(text="", ids=encoded.ids, token_types={}, images=pictures),
            pad=0,
            vocabulary=64,
        )
        for pictures in (images, images, other)
    )
    assert torch.equal(one, same)
    assert (one - two).abs().max() > 1e-2
