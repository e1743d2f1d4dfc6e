"""Every architecture: what a batch, the engine and training see is what the model alone gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from masters.data.questions import Question
from masters.errors import ModelError
from masters.generation.engine import Completion, Request, TransformersEngine
from masters.generation.sampling import SampleKey, Sampling
from masters.models.encode import EncodedPrompt, PromptText, encode_prompt, pad_rows
from masters.models.families import FAMILIES, family_of
from masters.models.load import check_head, load_model, load_processor, save_model, token_ids
from masters.parts import PARTS
from masters.stages.opening import label_ids
from masters.training.groups import Group, Response
from masters.training.student import response_states
from tests.families import FAMILY_NAMES, TOKENS, write_tiny
from tests.families.boxes import SIZES

from .conftest import Tiny
from .test_scoring import scores, worst

TEXTS = (
    "what colour is the box at the top left?",
    "is it a circle?",
    "how many?",
    "describe it",
    "which is larger?",
    "say yes",
)


def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(3)
    return [
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in SIZES
    ]


def load_family(folder: Path) -> Tiny:
    """The model with prompts of one picture each, of unequal sizes; of two; and of none (last)."""
    model, processor = load_model(str(folder)), load_processor(str(folder))
    shown = [*([image] for image in pictures()), pictures()[1:3], []]
    prompts = [
        encode_prompt(
            processor,
            Question(id=str(i), text=text, images=("x",) * len(images), label="red"),
            images,
            PromptText(suffix=None),
        )
        for i, (text, images) in enumerate(zip(TEXTS, shown, strict=True))
    ]
    return Tiny(model, processor, token_ids(model, processor), folder, prompts)


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def written(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(family) / "model"
    write_tiny(folder, family, size="student", seed=3, texts=TEXTS)
    return folder


@pytest.fixture
def tiny(written: Path) -> Tiny:
    return load_family(written)


def groups_of(tiny: Tiny, size: int = 2) -> list[Group]:
    """A group for each prompt, with responses of unequal lengths."""
    generator = torch.Generator().manual_seed(1)
    groups = []
    for q, prompt in enumerate(tiny.prompts):
        responses = []
        for j in range(size):
            ids = torch.randint(
                100, tiny.ids.vocabulary, (1 + 2 * ((q + j) % 3),), generator=generator
            )
            token_ids = (*ids.tolist(), tiny.ids.end[0])
            responses.append(Response(token_ids=token_ids, source="student"))
        groups.append(
            Group(
                question_id=str(q),
                student_prompt=prompt,
                teacher_prompt=None,
                responses=tuple(responses),
            )
        )
    return groups


def alone(tiny: Tiny, prompt: EncodedPrompt, response: tuple[int, ...]) -> list[float]:
    """Log-probs of a response by the model's own logits, one row, no padding."""
    inputs = pad_rows([(prompt, response)], pad=tiny.ids.pad)
    with torch.no_grad():
        logits = tiny.model(**inputs).logits[0, :, : tiny.ids.vocabulary].float()
    at = torch.arange(len(response)) + len(prompt.ids) - 1
    return logits[at].log_softmax(-1)[torch.arange(len(response)), list(response)].tolist()


def answers(tiny: Tiny, rows: int, *, samples: int = 2, tokens: int = 6) -> list[list[Completion]]:
    engine = TransformersEngine(tiny.model, tiny.processor, tiny.ids, batch_rows=rows)
    requests = [
        Request(
            prompt=prompt,
            keys=tuple(
                SampleKey(seed=1, question_id=f"q{q}", source="student", ratio=0, round=0, sample=s)
                for s in range(samples)
            ),
        )
        for q, prompt in enumerate(tiny.prompts)
    ]
    return engine.generate(requests, Sampling(max_new_tokens=tokens, temperature=4.0))


def test_pictures_of_unequal_sizes_share_a_batch(tiny: Tiny) -> None:
    """Unequal crop counts, rows of two pictures and of none, right padding: as each row alone."""
    groups = groups_of(tiny)
    together = scores(tiny, groups)
    own = [alone(tiny, g.student_prompt, r.token_ids) for g in groups for r in g.responses]
    assert worst(together, own) < 2e-5
    assert len({len(prompt.ids) for prompt in tiny.prompts}) > 1


def test_left_padding_agrees(tiny: Tiny) -> None:
    rows = [(g.student_prompt, g.responses[0].token_ids) for g in groups_of(tiny)]
    last = torch.tensor([len(p.ids) + len(r) - 1 for p, r in rows])
    pad = tiny.ids.pad
    with torch.no_grad():
        right = tiny.model(**pad_rows(rows, pad=pad)).logits[torch.arange(len(rows)), last]
        left = tiny.model(**pad_rows(rows, pad=pad, side="left")).logits[:, -1]
    torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)


def test_another_picture_moves_the_distribution(tiny: Tiny) -> None:
    """The same size, other pixels."""
    prompt = tiny.prompts[0]
    swapped = EncodedPrompt(
        text=prompt.text,
        ids=prompt.ids,
        token_types=prompt.token_types,
        images={k: -v if v.is_floating_point() else v for k, v in prompt.images.items()},
    )
    response = groups_of(tiny)[0].responses[0].token_ids
    assert worst([alone(tiny, prompt, response)], [alone(tiny, swapped, response)]) > 1e-2


def test_answers_do_not_depend_on_the_batch_and_are_scored_alike(tiny: Tiny) -> None:
    """With a cache, left-padded, many rows or few: the tokens and log-probs of the plain model."""
    few, many = answers(tiny, 2), answers(tiny, 64)
    assert [[c.token_ids for c in own] for own in few] == [
        [c.token_ids for c in own] for own in many
    ]
    assert len({tuple(c.token_ids) for own in many for c in own}) > 5
    for prompt, own in zip(tiny.prompts, many, strict=True):
        for completion in own:
            plain = alone(tiny, prompt, tuple(completion.token_ids))
            assert completion.logprobs == pytest.approx(plain, abs=1e-4)


def test_picture_tokens_are_never_answered(tiny: Tiny, family: str) -> None:
    pictures = {tiny.processor.tokenizer.convert_tokens_to_ids(t) for t in TOKENS[family].pictures}
    assert set(tiny.ids.banned) == pictures
    head = tiny.model.get_output_embeddings()

    def prefer(_module: object, _inputs: object, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_add(
            -1,
            torch.tensor(sorted(pictures)),
            torch.full((*logits.shape[:-1], len(pictures)), 99.0),
        )

    handle = head.register_forward_hook(prefer)
    try:
        for own in answers(tiny, 64):
            for completion in own:
                assert not set(completion.token_ids) & pictures
    finally:
        handle.remove()


def test_training_sees_the_models_own_logits(tiny: Tiny) -> None:
    """The head on the response states is the model's logits, in training mode as in evaluation."""
    rows = [(g.student_prompt, g.responses[0].token_ids) for g in groups_of(tiny)]
    inputs = pad_rows(rows, pad=tiny.ids.pad)
    row_N = torch.arange(len(rows))
    column_N = torch.tensor([len(p.ids) for p, _ in rows])
    head = tiny.model.get_output_embeddings().weight
    with torch.no_grad():
        expected = tiny.model.eval()(**inputs).logits[row_N, column_N]
        for mode in (tiny.model.eval(), tiny.model.train()):
            states = response_states(mode, inputs, row_N, column_N)
            torch.testing.assert_close(states @ head.T, expected, atol=2e-5, rtol=1e-5)
    check_head(tiny.model)


def test_prompts_begin_and_end_as_the_family_does(tiny: Tiny, family: str) -> None:
    tokens, tokenizer = TOKENS[family], tiny.processor.tokenizer
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokens.special}
    for prompt in tiny.prompts:
        if tokens.bos is not None:
            assert prompt.ids[0] == ids[tokens.bos]
            assert prompt.ids.count(ids[tokens.bos]) == 1
        assert (ids[tokens.image] in prompt.ids) == bool(prompt.images)
    assert tiny.ids.end == tuple(ids[token] for token in tokens.ends)
    *label, end = label_ids(tokenizer, tiny.ids, "red")
    text_only = tiny.prompts[-1]
    said = tokenizer(f"{text_only.text}{tokens.lead}red", add_special_tokens=False)["input_ids"]
    bos = [] if said[0] == text_only.ids[0] else text_only.ids[:1]
    assert [*bos, *said] == [*text_only.ids, *label] and end == tiny.ids.end[0]


def test_parts_are_where_the_table_says(tiny: Tiny, family: str) -> None:
    found = family_of(tiny.model)
    if family in FAMILIES:
        assert found == FAMILIES[family]
    parts = {found.part_of(name) for name, _ in tiny.model.named_parameters()}
    # GLM-4.1V's projector lies in the tower, where only a row of the table would tell it apart.
    assert parts >= ({"language", "vision"} if family == "glm4v" else set(PARTS))
    assert tiny.model.get_submodule(found.head) is tiny.model.get_output_embeddings()
    number = getattr(tiny.model.config, found.image_id)
    assert number == tiny.processor.tokenizer.convert_tokens_to_ids(TOKENS[family].image)


# What one family has and others have not.


@pytest.fixture
def gemma(tmp_path: Path) -> Iterator[Tiny]:
    write_tiny(tmp_path / "model", "gemma3", size="student", seed=3, texts=TEXTS)
    yield load_family(tmp_path / "model")


def test_gemma3_image_tokens_see_each_other(gemma: Tiny) -> None:
    """Without token types its image block would be causal: other numbers, no error."""
    groups = groups_of(gemma)[:4]

    def forget(inputs: dict[str, torch.Tensor]) -> None:
        del inputs["token_type_ids"]

    assert worst(scores(gemma, groups), scores(gemma, groups, alter=forget)) > 1e-3
    gemma.model.train()
    trained = scores(gemma, groups)
    gemma.model.eval()
    assert worst(trained, scores(gemma, groups)) < 1e-6


def test_llava_onevision_cuts_only_an_only_picture(tmp_path: Path) -> None:
    """Several in a prompt are one view each, as it was trained; crops beside them are padding."""
    write_tiny(tmp_path, "llava_onevision", size="student", seed=3)
    prompts = load_family(tmp_path).prompts
    assert [prompt.images["batch_num_images"].tolist() for prompt in prompts[3:5]] == [[1], [2]]
    assert len(prompts[3].images["pixel_values"][0]) > 1
    assert len(prompts[4].images["pixel_values"][0]) == 1


class PanAndScan:
    """Gemma3's processor, asked for crops of wide and tall pictures."""

    def __init__(self, processor: Any) -> None:
        self.tokenizer, self.apply_chat_template = (
            processor.tokenizer,
            processor.apply_chat_template,
        )
        self._processor = processor

    def __call__(self, **inputs: Any) -> Any:
        return self._processor(do_pan_and_scan=True, pan_and_scan_min_crop_size=16, **inputs)


def test_gemma3_pan_and_scan_crops_share_a_batch(gemma: Tiny) -> None:
    processor = PanAndScan(gemma.processor)
    question = Question(id="p", images=("x",), text=TEXTS[0], label="red")
    gemma.prompts = [
        encode_prompt(processor, question, [image], PromptText(suffix=None)) for image in pictures()
    ]
    crops = [len(prompt.images["pixel_values"]) for prompt in gemma.prompts]
    assert crops == [1, 3, 4, 1]
    groups = groups_of(gemma)
    own = [alone(gemma, g.student_prompt, r.token_ids) for g in groups for r in g.responses]
    assert worst(scores(gemma, groups), own) < 2e-5


def test_gemma3_with_capped_logits_is_refused(gemma: Tiny) -> None:
    gemma.model.config.text_config.final_logit_softcapping = 30.0
    with pytest.raises(ModelError, match="final_logit_softcapping=30.0"):
        check_head(gemma.model)


def test_the_checkpoints_own_processor_settings_hold(tmp_path: Path) -> None:
    """What processor_config.json and preprocessor_config.json say decides, torchvision or not."""

    def placeholders(family: str, file: str, **values: object) -> int:
        folder = tmp_path / family
        if not folder.exists():
            write_tiny(folder, family, size="student", seed=1)
        before = (folder / file).read_text()
        (folder / file).write_text(json.dumps(json.loads(before) | values))
        processor = load_processor(str(folder))
        (folder / file).write_text(before)
        question = Question(id="p", images=("x",), text="what?", label="red")
        prompt = encode_prompt(processor, question, [pictures()[3]], PromptText(suffix=None))
        image = processor.tokenizer.convert_tokens_to_ids(TOKENS[family].image)
        return prompt.ids.count(image)

    made, given = "preprocessor_config.json", "processor_config.json"
    assert placeholders("internvl", made) == 5 * 4  # 2 x 2 views of 4 tokens and a thumbnail
    assert placeholders("internvl", made, max_patches=1) == 4
    assert placeholders("internvl", given, image_seq_length=9) == 5 * 9
    assert placeholders("smolvlm", made) == 5 * 4
    assert placeholders("smolvlm", made, do_image_splitting=False) == 4
    assert placeholders("smolvlm", given, image_seq_len=9) == 5 * 9
    assert placeholders("idefics3", made, do_image_splitting=False) == 4
    whole = placeholders("llava_onevision", given)
    assert placeholders("llava_onevision", given, vision_feature_select_strategy="default") == (
        whole - 1
    )
    assert placeholders("llava_onevision", given, vision_aspect_ratio="anyres_max_1") < whole
    small = {"shortest_edge": 256, "longest_edge": 1024}
    assert placeholders("qwen2_5_vl", made, size=small) <= 4 < placeholders("qwen2_5_vl", made)


def test_a_template_kept_with_the_tokenizer_is_found(tmp_path: Path) -> None:
    for family in ("idefics3", "internvl"):
        folder = tmp_path / family
        write_tiny(folder, family, size="student", seed=1)
        template = (folder / "chat_template.jinja").read_text()
        (folder / "chat_template.jinja").unlink()
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(
            json.dumps(settings | {"chat_template": template})
        )
        assert load_processor(str(folder)).chat_template == template


def test_smolvlm_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processor wants a package that nothing else does."""
    write_tiny(tmp_path, "smolvlm", size="student", seed=1)
    from transformers.models.smolvlm import processing_smolvlm

    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    with pytest.raises(ModelError, match="pip install num2words"):
        load_processor(str(tmp_path))


def test_code_beside_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    code = "open(__file__ + '.ran', 'w')\n"
    (tmp_path / "configuration_internvl_chat.py").write_text(code)
    config = {
        "model_type": "internvl_chat",
        "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="Python code beside the checkpoint.*-hf"):
        load_model(str(tmp_path))
    assert not list(tmp_path.glob("*.ran"))


def test_a_head_of_its_own_is_saved_as_such(tmp_path: Path) -> None:
    write_tiny(tmp_path / "read", "internvl", size="student", seed=1)
    file = tmp_path / "read" / "config.json"
    config = json.loads(file.read_text())
    config.pop("tie_word_embeddings")  # as the published files: the class's default says tied
    file.write_text(json.dumps(config))
    model = load_model(str(tmp_path / "read"))
    head = model.get_output_embeddings().weight.clone()
    assert not torch.equal(head, model.get_input_embeddings().weight)
    save_model(model, tmp_path / "saved", source=tmp_path / "read")
    again: Any = load_model(str(tmp_path / "saved"))
    again.tie_weights()
    assert torch.equal(again.get_output_embeddings().weight, head)
