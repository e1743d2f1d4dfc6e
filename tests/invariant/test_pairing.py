"""What a student and its teacher have in common, and what of the stored responses both can read."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tokenizers import decoders

from masters.data.tables import RESPONSES, shard_name, write_shard
from masters.errors import ModelError
from masters.models.load import load_processor, token_ids
from masters.stages.opening import OpenedModel
from masters.stages.pairing import check_stored, pair
from masters.stages.responses_index import rows_outside

from .conftest import Tiny


def opened(tiny: Tiny) -> OpenedModel:
    return OpenedModel(model=tiny.model, processor=tiny.processor, ids=tiny.ids, folder=tiny.folder)


def with_token(tiny: Tiny, token: str, *, pad: bool = False) -> OpenedModel:
    """The model with an added token at the end of its tokenizer, and a row for it."""
    processor = load_processor(str(tiny.folder))
    processor.tokenizer.add_tokens([token])
    if pad:
        processor.tokenizer.pad_token = token
    tiny.model.resize_token_embeddings(len(processor.tokenizer) + 7)
    ids = token_ids(tiny.model, processor)
    return OpenedModel(model=tiny.model, processor=processor, ids=ids, folder=tiny.folder)


def test_a_student_alone(student: Tiny) -> None:
    alone = pair(opened(student), None)
    assert (alone.ids, alone.common) == (student.ids, student.ids.vocabulary)


def test_a_family(student: Tiny, teacher: Tiny) -> None:
    both = pair(opened(student), opened(teacher))
    assert both.common == student.ids.vocabulary == teacher.ids.vocabulary
    assert both.ids == student.ids
    assert both.banned == {*student.ids.banned}


@pytest.mark.parametrize("longer", ["student", "teacher"])
def test_an_added_token_of_one(
    longer: str, student: Tiny, teacher: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = student.ids.vocabulary
    models = {"student": opened(student), "teacher": opened(teacher)}
    models[longer] = with_token({"student": student, "teacher": teacher}[longer], "<x>", pad=True)
    assert models[longer].ids.pad == tokens
    with caplog.at_level(logging.WARNING):
        both = pair(models["student"], models["teacher"])
    assert both.common == tokens
    assert f"1 tokens are the {longer}'s alone (<x> ...)" in caplog.text
    assert both.ids.pad < tokens, "the teacher has no row for the student's padding id"


def test_an_end_token_of_one(
    student: Tiny, teacher: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    more = replace(opened(teacher), ids=replace(teacher.ids, end=(*teacher.ids.end, 0)))
    with caplog.at_level(logging.WARNING):
        pair(opened(student), more)
    assert "<|endoftext|> end a response of only one of" in caplog.text


def store(folder: Path, responses: list[list[int]]) -> Path:
    rows = [
        {
            "question_id": f"q{i}", "source": "teacher", "ratio": 0, "round": 0, "sample": 0,
            "model": "t", "text": "", "token_ids": ids, "logprobs": None, "finish": "stop",
            "seed": 0,
        }
        for i, ids in enumerate(responses)
    ]  # fmt: skip
    write_shard(folder / "responses" / shard_name(0), rows, RESPONSES)
    return folder


def test_stored_responses_read_by_both(student: Tiny, teacher: Tiny, tmp_path: Path) -> None:
    ids = student.processor.tokenizer("what colour is it?")["input_ids"]
    folder = store(tmp_path, [ids[:1], ids, [student.ids.vocabulary + 3], []])
    common = student.ids.vocabulary
    check_stored(folder, opened(teacher), opened(student), common)
    odd: Any = load_processor(str(teacher.folder))
    odd.tokenizer.backend_tokenizer.decoder = decoders.Metaspace()
    assert odd.tokenizer.get_vocab() == student.processor.tokenizer.get_vocab()
    with pytest.raises(ModelError) as error:
        check_stored(folder, replace(opened(teacher), processor=odd), opened(student), common)
    message = str(error.value)
    assert "question q1: a stored response reads" in message
    assert str(teacher.folder) in message
    assert "same decoder" in message


def test_rows_with_ids_of_one_model_only() -> None:
    ids = pa.array([[1, 2], [], [9], [3, 7, 1], [], [10, 0], [7]], pa.list_(pa.int32()))
    assert rows_outside(ids, 10, ()) == {5}
    assert rows_outside(ids, 9, ()) == {2, 5}
    assert rows_outside(ids, 10, (7,)) == {3, 5, 6}
    assert rows_outside(ids.slice(3, 2), 10, (7,)) == {0}
    assert rows_outside(pa.array([[], []], pa.list_(pa.int32())), 10, (7,)) == set()
