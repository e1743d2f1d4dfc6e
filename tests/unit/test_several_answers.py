"""Several gold answers: read from rows, kept whole, and data without them as it always was."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from masters.data.answers import accepted_answers, answer_texts, gold_answers, most_given
from masters.data.questions import Question
from masters.data.sources import Source, open_questions
from masters.errors import DataError
from masters.rewards.verifiers import verify

_ROW = {"id": "1", "image": "a.png", "question": "?"}
_TEN = ["red"] * 3 + ["dark red"] * 2 + ["blue"] * 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    return tmp_path


def _open(folder: Path, row: dict[str, object], *, need_label: bool = True):
    path = folder / "data.jsonl"
    path.write_text(json.dumps(_ROW | row) + "\n")
    source = SimpleNamespace(kind="jsonl", path=str(path), images=None, limit=None, offset=0)
    return open_questions(cast("Source", source), need_label=need_label)


@pytest.mark.parametrize(
    ("row", "label", "golds"),
    [
        ({"answer": "red"}, "red", ("red",)),
        ({"answer": "red", "answers": ["red", "dark red"]}, "red", ("red", "dark red")),
        ({"answer": _TEN}, "blue", tuple(_TEN)),
        ({"answers": _TEN}, "blue", tuple(_TEN)),
        ({"answer": ["Paris", "paris"]}, "Paris", ("Paris", "paris")),
        ({"answer": [2010, " 2011 "]}, "2010", ("2010", "2011")),
        (
            {"answer": [{"answer": gold, "answer_id": n} for n, gold in enumerate(_TEN)]},
            "blue",
            tuple(_TEN),
        ),
        ({"answer": "x", "answers": "not a list"}, "x", ("x",)),
        ({"answer": "x", "answers": []}, "x", ("x",)),
        ({"answer": "x", "answers": [None]}, "x", ("x",)),
    ],
)
def test_label_and_gold_answers_of_a_row(
    folder: Path, row: dict[str, object], label: str, golds: tuple[str, ...]
) -> None:
    question = _open(folder, row)[0]
    assert question.label == label
    assert gold_answers(question) == golds


def test_where_no_label_is_needed_answers_make_none(folder: Path) -> None:
    question = _open(folder, {"answers": _TEN}, need_label=False)[0]
    assert question.label is None
    assert gold_answers(question) == tuple(_TEN)


def test_blank_answers_are_no_label(folder: Path) -> None:
    with pytest.raises(DataError, match="no answer; expected the ground truth"):
        _open(folder, {"answers": ["", " "]})
    assert most_given(["", "a", "b", "b"]) == "b"
    assert most_given([]) == ""
    assert answer_texts("text") is answer_texts([]) is answer_texts([True]) is None


def test_data_without_several_answers_keeps_its_fingerprint(folder: Path) -> None:
    # As it was before there were several: rows with `answers` beside `answer` included.
    assert _open(folder, {"answer": "red"}).fingerprint() == FINGERPRINT
    assert _open(folder, {"answer": "red", "answers": ["red", "x"]}).fingerprint() == WITH_ANSWERS


def test_parquet_answers_by_their_column(folder: Path) -> None:
    rows = {"image": ["a.png"], "question": ["?"], "answers": [_TEN]}
    pq.write_table(pa.table(rows), folder / "data.parquet")
    source = SimpleNamespace(
        kind="datasets", path=str(folder / "data.parquet"), columns={"answer": "answers"}
    )
    question = open_questions(cast("Source", source))[0]
    assert (question.label, gold_answers(question)) == ("blue", tuple(_TEN))
    assert verify("vqa", "Dark red.", question).reward == pytest.approx(0.6)


def test_a_question_made_by_hand() -> None:
    assert gold_answers(Question(id="1", text="?")) == ()
    assert gold_answers(Question(id="1", text="?", label="a")) == ("a",)


FINGERPRINT = "30daa7c339eddedb39761c1684810b3e711c9b97962a7fdbb3e1665a0ef67933"
WITH_ANSWERS = "bf6d90bc23f9d1220ba617bc8dfcfdf49b6d4446489091706a7655496fe1cd2c"


@pytest.mark.parametrize(
    ("label", "answers", "accepted"),
    [
        ("a", None, ("a",)),
        ("a", ["b", "a", "b", ""], ("a", "b")),
        ("blue", ["blue"] * 6 + ["navy"] * 3 + ["red"], ("blue", "navy")),
        (None, ["a"], ()),
    ],
)
def test_what_a_judge_may_accept(
    label: str | None, answers: list[str] | None, accepted: tuple[str, ...]
) -> None:
    meta: dict[str, object] = {} if answers is None else {"answers": answers}
    assert accepted_answers(Question(id="1", text="?", label=label, meta=meta)) == accepted
