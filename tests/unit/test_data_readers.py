"""Readers of JSON Lines, LLaVA conversations and `datasets` folders, and what they refuse."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from masters.data.images import Images
from masters.data.questions import Questions, Turn
from masters.data.sources import open_questions, verify_images
from masters.errors import DataError

_GOOD = {"id": "1", "image": "a.png", "question": "what is it?", "answer": "a cat"}


def _png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(_png())
    Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "b.jpg", quality=95)
    (tmp_path / "cut.png").write_bytes(_png()[:50])
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:1500])
    (tmp_path / "text.png").write_text("not an image")
    return tmp_path


class _Fields(SimpleNamespace):
    kind: str


def _source(kind: str, **fields: Any) -> _Fields:
    return _Fields(kind=kind, **fields)


def _open(kind: str, path: Path, *, need_label: bool = True, **fields: Any) -> Questions:
    source = _source(kind, path=str(path), **fields)
    return open_questions(source, need_label=need_label)


def _jsonl(folder: Path, *rows: object) -> Path:
    path = folder / "data.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_jsonl_fields(folder: Path) -> None:
    full = {**_GOOD, "id": 2, "answer": 3, "choices": ["3", 4], "category": "count", "by": "me"}
    questions = _open("jsonl", _jsonl(folder, _GOOD, "", full, {**_GOOD, "id": "3", "kind": "k"}))
    assert questions.ids == ["1", "2", "3"]
    first, second, third = questions
    assert (first.text, first.label, first.kind) == ("what is it?", "a cat", "all")
    assert first.training_label is None
    assert first.images == (str(folder / "a.png"),)
    assert (second.label, second.choices, second.kind) == ("3", ("3", "4"), "count")
    assert second.meta == {"by": "me"}
    assert third.kind == "k"
    (image,) = questions.open_images(first)
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", (255, 0, 0))
    assert questions.skipped == {}


@pytest.mark.parametrize(
    ("row", "reason", "text"),
    [
        ({**_GOOD, "image": "z.png"}, "missing image", r"image 'z.png', but there is no file"),
        ({**_GOOD, "image": None}, "no image", "image None; expected the path of one image"),
        ({**_GOOD, "image": []}, "no image", r"image \[\]; expected the path of one image, or a"),
        ({**_GOOD, "image": ["a.png", 1]}, "no image", r"image \['a.png', 1\]"),
        ({**_GOOD, "images": ["a.png"]}, "image and images", "both a field `image` and a field"),
        ({**_GOOD, "question": "<image>?<image>"}, "markers and images differ", "2 times <image>"),
        ({**_GOOD, "question": " <image>"}, "empty question", "question ' <image>'"),
        ({**_GOOD, "answer": " "}, "empty answer", "answer ' '; expected text that is not blank"),
        ({**_GOOD, "answer": {"x": 1}}, "answer is no text", r"answer \{'x': 1\} \(dict\)"),
        ({**_GOOD, "answer": ["x", None]}, "answer is no text", r"answer \['x', None\] \(list\)"),
        ({**_GOOD, "answer": ["", " "]}, "empty answer", "answer ''; expected text that is not"),
        ({**_GOOD, "answer": None}, "no label", "no answer; expected the ground truth"),
        ({**_GOOD, "question": ""}, "empty question", "question ''"),
        ({**_GOOD, "id": "0"}, "duplicate id", r"an id already used at .*data.jsonl:1"),
        ({**_GOOD, "id": None}, "no id", "no id; expected a field that holds the id"),
        ({**_GOOD, "choices": "ab"}, "choices are no list", "choices 'ab'; expected a list"),
        ("[1, 2]", "not a JSON object", r"'\[1, 2\]'; expected one object per line"),
        ('{"id": ', "not a JSON object", "expected one object per line"),
    ],
)
def test_jsonl_bad_rows(
    folder: Path, row: object, reason: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = _jsonl(folder, {**_GOOD, "id": "0"}, row, {**_GOOD, "id": "9"})
    with pytest.raises(DataError, match=text) as caught:
        _open("jsonl", path)
    assert str(caught.value).startswith(f"{path}:2: question ")
    assert "`on_bad: skip`" in str(caught.value)
    questions = _open("jsonl", path, on_bad="skip")
    assert questions.ids == ["0", "9"]
    assert questions.skipped == {reason: 1}
    assert f"left out ({reason}): {path}:2: question " in caplog.text


def test_jsonl_several_images(folder: Path) -> None:
    row = {key: value for key, value in _GOOD.items() if key != "image"}
    names = ["b.jpg", "a.png"]
    path = _jsonl(
        folder,
        {**row, "images": names},
        {**row, "id": "2", "image": names, "question": "is <image> in <image>?"},
        {**row, "id": "3", "images": "a.png"},
    )
    questions = _open("jsonl", path)
    both = (str(folder / "b.jpg"), str(folder / "a.png"))
    assert [question.images for question in questions] == [both, both, both[1:]]
    assert questions[1].text == "is <image> in <image>?"
    assert questions[0].meta == {}
    sizes = [image.size for image in questions.open_images(questions[0])]
    assert sizes == [(64, 64), (8, 8)]
    before = _open("jsonl", path, limit=1).fingerprint()
    swapped = _jsonl(folder, {**row, "images": names[::-1]})
    assert _open("jsonl", swapped).fingerprint() != before


def test_a_label_may_be_missing_when_nobody_needs_it(folder: Path) -> None:
    path = _jsonl(folder, {key: value for key, value in _GOOD.items() if key != "answer"})
    assert _open("jsonl", path, need_label=False)[0].label is None
    empty = _jsonl(folder, {**_GOOD, "answer": ""})
    with pytest.raises(DataError, match="answer ''"):
        _open("jsonl", empty, need_label=False)


def test_limit_takes_the_first_and_reads_no_further(folder: Path) -> None:
    path = _jsonl(folder, "broken", *[{**_GOOD, "id": str(i)} for i in range(5)], "broken")
    assert _open("jsonl", path, limit=5, on_bad="skip").ids == list("01234")
    assert _open("jsonl", path, limit=3, on_bad="skip").skipped == {"not a JSON object": 1}
    with pytest.raises(DataError, match="limit is 0; expected 1 or more"):
        _open("jsonl", path, limit=0)


def test_nothing_usable(folder: Path) -> None:
    path = _jsonl(folder, {**_GOOD, "image": "z.png"}, "x")
    with pytest.raises(DataError, match=r"no usable question .left out: 1 missing image, 1 not a"):
        _open("jsonl", path, on_bad="skip")
    with pytest.raises(DataError, match=r"none.jsonl: cannot be read .*; expected a file of JSON"):
        _open("jsonl", folder / "none.jsonl")
    (folder / "latin.jsonl").write_bytes(b'{"id": "\xe9"}')
    with pytest.raises(DataError, match="expected a file of JSON Lines in UTF-8"):
        _open("jsonl", folder / "latin.jsonl")


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "text.png"])
def test_broken_images(folder: Path, name: str) -> None:
    path = _jsonl(folder, _GOOD, {**_GOOD, "id": "2", "image": name})
    questions = _open("jsonl", path)
    message = rf"question '2': image .*{name}, which cannot be decoded .*Replace the file"
    with pytest.raises(DataError, match=message):
        verify_images(questions)
    with pytest.raises(DataError, match=message):
        questions.open_images(questions[1])
    left = _open("jsonl", path, on_bad="skip")
    assert (left.ids, left.skipped) == (["1"], {"broken image": 1})
    verify_images(left)


def test_whole_images_pass_and_are_looked_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**_GOOD, "id": str(i), "image": ("a.png", "b.jpg")[i % 2]} for i in range(6)]
    questions = _open("jsonl", _jsonl(folder, *rows))
    opened: list[str] = []
    original = Images.read
    monkeypatch.setattr(
        Images, "read", lambda self, path: (opened.append(path), original(self, path))[1]
    )
    verify_images(questions)
    verify_images(questions)
    assert sorted(opened) == [str(folder / "a.png"), str(folder / "b.jpg")]


def test_image_removed_after_opening(folder: Path) -> None:
    questions = _open("jsonl", _jsonl(folder, _GOOD))
    (folder / "a.png").unlink()
    with pytest.raises(DataError, match=r"question '1': image .*No such file"):
        questions.open_images(questions[0])


def test_fingerprint_covers_rows_and_image_sizes_but_not_the_place(folder: Path) -> None:
    path = _jsonl(folder, _GOOD, {**_GOOD, "id": "2"})
    first = _open("jsonl", path).fingerprint()
    assert first == _open("jsonl", path).fingerprint()
    moved = folder / "moved"
    moved.mkdir()
    (moved / "a.png").write_bytes(_png())
    same = _open("jsonl", _jsonl(moved, _GOOD, {**_GOOD, "id": "2"}))
    assert same.fingerprint() == first
    seen = {first, _open("jsonl", path, limit=1).fingerprint()}
    for change in ({"answer": "dog"}, {"question": "?"}, {"kind": "k"}, {"choices": ["a cat"]}):
        path = _jsonl(folder, _GOOD, {**_GOOD, "id": "2", **change})
        seen.add(_open("jsonl", path).fingerprint())
    (moved / "a.png").write_bytes(_png() + b" ")
    seen.add(_open("jsonl", moved / "data.jsonl").fingerprint())
    assert len(seen) == 7


def test_many_rows_open_and_fingerprint_quickly(folder: Path) -> None:
    path = _jsonl(folder, *[{**_GOOD, "id": str(i)} for i in range(10_000)])
    start = time.process_time()
    _open("jsonl", path).fingerprint()
    assert time.process_time() - start < 1.0


def _turns(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": v} for i, v in enumerate(values)]


def _llava(folder: Path, *rows: object) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_llava_every_answer_is_a_question(folder: Path) -> None:
    path = _llava(
        folder,
        {"id": 7, "image": "a.png", "conversations": _turns("<image>\nhi?", "yes", "why?", "so")},
        {"id": "t", "conversations": _turns("no picture?", "none")},
        {"id": "e", "image": "", "conversations": []},
        {"id": "x", "image": ["b.jpg"], "conversations": _turns("what <image> is it?\n", "noise")},
    )
    questions = _open("llava", path)
    assert questions.ids == ["7#0", "7#1", "x#0"]
    first, second, third = questions
    assert (first.text, first.label, first.history) == ("hi?", "yes", ())
    assert (second.text, second.label) == ("why?", "so")
    assert second.history == (Turn(question="hi?", answer="yes"),)
    assert "<image>" not in third.text
    assert third.images == (str(folder / "b.jpg"),)
    assert questions.skipped == {"text-only": 2}
    assert _open("llava", path, limit=2).ids == ["7#0", "7#1"]


def test_llava_several_images(folder: Path) -> None:
    two = {"image": ["a.png", "b.jpg"]}
    later = _turns("hello?", "yes", "<image> this?", "so", "and <image>?", "no")
    path = _llava(
        folder,
        {"id": "first", **two, "conversations": _turns("both?", "yes")},
        {"id": "marked", **two, "conversations": _turns("<image> or <image>?", "or")},
        {"id": "later", **two, "conversations": later},
    )
    questions = _open("llava", path)
    assert questions.ids == ["first#0", "marked#0", "later#1", "later#2"]
    a, b = str(folder / "a.png"), str(folder / "b.jpg")
    assert [question.images for question in questions] == [(a, b), (a, b), (a,), (a, b)]
    assert questions[1].text == "<image> or <image>?"
    assert questions[3].history[0] == Turn(question="hello?", answer="yes")
    assert questions.skipped == {"text-only": 1}
    sizes = [image.size for image in questions.open_images(questions[3])]
    assert sizes == [(8, 8), (64, 64)]


def test_llava_history_is_fingerprinted(folder: Path) -> None:
    row = {"id": "1", "image": "a.png"}
    path = _llava(folder, {**row, "conversations": _turns("a", "b", "c", "d")})
    first = _open("llava", path).fingerprint()
    path = _llava(folder, {**row, "conversations": _turns("a", "x", "c", "d")})
    assert _open("llava", path).fingerprint() != first


@pytest.mark.parametrize(
    ("row", "reason", "text"),
    [
        ({"image": "z.png", "conversations": _turns("q", "a")}, "missing image", "'z.png'"),
        ({"image": "a.png", "conversations": _turns("q", "")}, "empty answer", "answer ''"),
        ({"image": "a.png", "conversations": _turns("<image>", "a")}, "empty question", "question"),
        ({"image": "a.png", "conversations": _turns("q")}, "no label", "no answer"),
        ({"image": "a.png"}, "turns out of order", "conversations 'None'"),
        (
            {"image": "a.png", "conversations": _turns("q", "a")[::-1]},
            "turns out of order",
            "turn 1 from 'gpt'; expected turns",
        ),
        (
            {"image": ["a.png", "b.jpg"], "conversations": _turns("<image> q", "a")},
            "markers and images differ",
            "1 times <image> and 2 images; expected one <image> for each image, or none",
        ),
        ({"id": "0", "image": "a.png", "conversations": _turns("q", "a")}, "duplicate id", "0#0"),
    ],
)
def test_llava_bad_rows(folder: Path, row: dict[str, Any], reason: str, text: str) -> None:
    good = {"id": "0", "image": "a.png", "conversations": _turns("q", "a")}
    path = _llava(folder, good, {"id": "1", **row})
    with pytest.raises(DataError, match=text) as caught:
        _open("llava", path)
    assert str(caught.value).startswith(f"{path}: entry 2: question ")
    questions = _open("llava", path, on_bad="skip")
    assert (questions.ids, questions.skipped) == (["0#0"], {reason: 1})


def test_llava_nothing_is_asked_after_an_empty_turn(folder: Path) -> None:
    talk = _turns("q", "a", "q", " ", "q", "a")
    path = _llava(folder, {"id": "0", "image": "a.png", "conversations": talk})
    questions = _open("llava", path, on_bad="skip")
    assert (questions.ids, questions.skipped) == (["0#0"], {"empty answer": 1})


def test_llava_wrong_files(folder: Path) -> None:
    (folder / "one.json").write_text("{}")
    with pytest.raises(DataError, match="holds one dict; expected a JSON list"):
        _open("llava", folder / "one.json")
    (folder / "half.json").write_text("[{")
    with pytest.raises(DataError, match=r"half.json: cannot be read .*; expected a file of one"):
        _open("llava", folder / "half.json")


def test_unknown_kinds_and_missing_fields() -> None:
    with pytest.raises(DataError, match="kind is 'csv'; expected one of jsonl, llava, datasets"):
        open_questions(_source("csv", path="x"))
    with pytest.raises(DataError, match=r"data \(jsonl\): no path"):
        open_questions(_source("jsonl"))
    with pytest.raises(DataError, match=r"data \(scenes\): no count"):
        open_questions(_source("scenes"))


def test_scenes_source() -> None:
    source = _source("scenes", count=9, seed=4, limit=3, kinds=None, image=None)
    questions = open_questions(source)
    assert questions.ids == ["scene-4-0", "scene-4-1", "scene-4-2"]
    verify_images(questions)


def _parquet(path: Path, **columns: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / ".cache"))
    datasets.disable_progress_bars()


@pytest.mark.usefixtures("_own_cache")
def test_saved_datasets_folder(tmp_path: Path) -> None:
    import datasets

    images = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    rows = {"pic": images, "ask": ["q0", "q1", "q2"], "gold": ["a", "", "c"]}
    features = datasets.Features(
        {"pic": datasets.Image(), "ask": datasets.Value("string"), "gold": datasets.Value("string")}
    )
    table = datasets.Dataset.from_dict(rows, features=features)
    table.save_to_disk(str(tmp_path / "one"))
    columns = {"image": "pic", "question": "ask", "answer": "gold"}
    with pytest.raises(DataError, match=r"one: row 1: question 'row-1': answer ''"):
        _open("datasets", tmp_path / "one", columns=columns)
    questions = _open("datasets", tmp_path / "one", columns=columns, on_bad="skip")
    assert questions.ids == ["row-0", "row-2"]
    assert questions.skipped == {"empty answer": 1}
    (picture,) = questions.open_images(questions[1])
    assert picture.getpixel((0, 0)) == (0, 255, 0)
    verify_images(questions)
    again = _open("datasets", tmp_path / "one", columns=columns, on_bad="skip")
    assert questions.fingerprint() == again.fingerprint()
    with pytest.raises(DataError, match=r"no column 'image' for the image; .*columns: {image:"):
        _open("datasets", tmp_path / "one")
    with pytest.raises(DataError, match="columns names picture; expected only image"):
        _open("datasets", tmp_path / "one", columns={"picture": "pic"})
    with pytest.raises(DataError, match="image 'q0', but there is no file"):
        _open("datasets", tmp_path / "one", columns={**columns, "image": "ask"})

    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(DataError, match="split is None; expected one of test, train"):
        _open("datasets", tmp_path / "two", columns=columns)
    chosen = _open("datasets", tmp_path / "two", columns=columns, split="test", limit=1)
    assert chosen.ids == ["row-0"]


@pytest.mark.usefixtures("_own_cache")
def test_parquet_folder(tmp_path: Path) -> None:
    cell = {"bytes": _png("blue"), "path": None}
    broken = {"bytes": _png()[:30], "path": None}
    _parquet(
        tmp_path / "hub" / "data" / "train-00000-of-00001.parquet",
        id=["x", "y"],
        image=[cell, broken],
        question=["q", "q"],
        answer=[1, 0],
        choices=[["no", "yes"], ["no", "yes"]],
    )
    questions = _open("datasets", tmp_path / "hub")
    assert questions.ids == ["x", "y"]
    assert [question.label for question in questions] == ["yes", "no"]
    assert questions[0].choices == ("no", "yes")
    with pytest.raises(DataError, match=r"question 'y': image row:1, which cannot be decoded"):
        verify_images(questions)
    left = _open("datasets", tmp_path / "hub", on_bad="skip")
    assert (left.ids, left.skipped) == (["x"], {"broken image": 1})
    _parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet", id=["z"])
    with pytest.raises(DataError, match="split is None; expected one of test, train"):
        _open("datasets", tmp_path / "hub")
    assert len(_open("datasets", tmp_path / "hub", split="train")) == 2


@pytest.mark.usefixtures("_own_cache")
def test_columns_of_lists_of_images(tmp_path: Path) -> None:
    cells = [{"bytes": _png(colour), "path": None} for colour in ("blue", "red")]
    columns = {"image": "images"}
    _parquet(
        tmp_path / "hub" / "rows.parquet",
        images=[cells, cells[:1], []],
        question=["q", "q", "q"],
        answer=["a", "b", "c"],
    )
    questions = _open("datasets", tmp_path / "hub", columns=columns, on_bad="skip")
    assert questions.skipped == {"no image": 1}
    assert [len(question.images) for question in questions] == [2, 1]
    verify_images(questions)
    colours = [image.getpixel((0, 0)) for image in questions.open_images(questions[0])]
    assert colours == [(0, 0, 255), (255, 0, 0)]

    import datasets

    features = datasets.Features(
        {
            "images": datasets.Sequence(datasets.Image()),
            "question": datasets.Value("string"),
            "answer": datasets.Value("string"),
        }
    )
    rows = {"images": [cells], "question": ["q"], "answer": ["a"]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    saved = _open("datasets", tmp_path / "saved", columns=columns)
    assert [image.size for image in saved.open_images(saved[0])] == [(8, 8), (8, 8)]


@pytest.mark.usefixtures("_own_cache")
def test_columns_may_be_switched_off_and_splits_unnamed(tmp_path: Path) -> None:
    cell = {"bytes": _png(), "path": None}
    rows = {"image": [cell], "question": ["q"], "answer": [1], "choices": [["a", "b"]], "id": ["x"]}
    _parquet(tmp_path / "plain" / "rows.parquet", **rows)
    off = {"image": "image", "id": None, "choices": None}
    question = _open("datasets", tmp_path / "plain", split="train", columns=off)[0]
    assert (question.id, question.label, question.choices) == ("row-0", "1", ())
    _parquet(tmp_path / "named" / "test.parquet", **rows)
    with pytest.raises(DataError, match="split is 'train'; expected one of test"):
        _open("datasets", tmp_path / "named", split="train")


def test_images_may_be_in_another_folder(folder: Path) -> None:
    (folder / "texts").mkdir()
    path = _jsonl(folder / "texts", _GOOD)
    talk = _llava(
        folder / "texts", {"id": "1", "image": "a.png", "conversations": _turns("q", "a")}
    )
    for kind, file in (("jsonl", path), ("llava", talk)):
        assert _open(kind, file, images=str(folder))[0].images == (str(folder / "a.png"),)
        with pytest.raises(DataError, match=r"no file .*texts/a.png"):
            _open(kind, file)


def test_folders_that_are_none(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match="no such folder; expected one written by `datasets`"):
        _open("datasets", tmp_path / "none")
    with pytest.raises(DataError, match="holds neither a saved data set nor Parquet files"):
        _open("datasets", tmp_path)


def test_offset_and_limit_split_one_file(tmp_path: Path) -> None:
    from types import SimpleNamespace

    file = tmp_path / "q.jsonl"
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    same = {"image": "a.png", "question": "what?", "answer": "red"}
    rows = [{"id": f"q{i}", **same} for i in range(5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def ids(**fields: int) -> list[str]:
        source = SimpleNamespace(kind="jsonl", path=str(file), **fields)
        return list(open_questions(source).ids)

    assert ids(limit=2) == ["q0", "q1"]
    assert ids(offset=2) == ["q2", "q3", "q4"]
    assert ids(offset=2, limit=2) == ["q2", "q3"]
    with pytest.raises(DataError, match="offset is 5, but there are 5 questions"):
        ids(offset=5)
