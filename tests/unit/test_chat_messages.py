"""Where the images of a question stand in the conversation it is asked in."""

from __future__ import annotations

from typing import Any

from masters.data.questions import Question, Turn
from masters.models.encode import PromptText, chat_messages

IMAGE = "[image]"


def _said(question: Question, prompt: PromptText | None = None) -> list[tuple[str, list[str]]]:
    """(role, parts) of every message, an image as ``IMAGE``."""
    messages: list[dict[str, Any]] = chat_messages(question, prompt or PromptText())
    return [
        (message["role"], [part.get("text", IMAGE) for part in message["content"]])
        for message in messages
    ]


def test_images_stand_first_without_markers() -> None:
    history = (Turn(question="a?", answer="b"),)
    question = Question(id="1", text="c?", images=("x", "y"), history=history)
    assert _said(question, PromptText(system="s", suffix="short")) == [
        ("system", ["s"]),
        ("user", [IMAGE, IMAGE, "a?"]),
        ("assistant", ["b"]),
        ("user", ["c?\nshort"]),
    ]


def test_images_stand_where_the_markers_are() -> None:
    history = (Turn(question="<image>\nis it?", answer="no <image>"),)
    question = Question(id="1", text="and <image>?", images=("x", "y"), history=history)
    assert _said(question, PromptText(suffix="short")) == [
        ("user", [IMAGE, "\nis it?"]),
        ("assistant", ["no <image>"]),
        ("user", ["and ", IMAGE, "?\nshort"]),
    ]


def test_a_text_only_question_keeps_its_text() -> None:
    assert _said(Question(id="1", text="what is <image>?")) == [("user", ["what is <image>?"])]


def test_both_images_reach_the_processor(tmp_path: Any) -> None:
    from PIL import Image

    from masters.models.encode import encode_prompt
    from masters.models.load import load_processor
    from masters.models.tiny import write_tiny_model

    write_tiny_model(tmp_path, "qwen3_vl_100k", seed=0, texts=["is it like this?"])
    processor: Any = load_processor(str(tmp_path))
    pictures = [Image.new("RGB", (48, 48), "red"), Image.new("RGB", (96, 48), "blue")]
    question = Question(id="1", text="is <image> like <image>?", images=("x", "y"))
    encoded = encode_prompt(processor, question, pictures, PromptText())
    grids = encoded.images["image_grid_thw"]
    assert len(grids) == 2
    merge = processor.image_processor.merge_size**2
    placeholders = encoded.ids.count(processor.image_token_id)
    assert placeholders == sum(int(grid.prod()) // merge for grid in grids)
    swapped = encode_prompt(processor, question, pictures[::-1], PromptText())
    assert swapped.ids != encoded.ids
