"""Large data: one pass, an index on disk that is never trusted blindly, rows made on demand."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from masters.data import collector, parquet
from masters.data.images import Images
from masters.data.json_stream import json_items
from masters.data.questions import Question, Questions, Turn
from masters.data.sources import open_questions, verify_images
from masters.errors import DataError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own; sets of 20 questions count as large."""
    monkeypatch.setenv("MASTERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(collector, "CACHED_ROWS", 20)
    return tmp_path / "cache" / "data"


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of every pass over a data file."""
    found: list[int] = []
    original = collector.Collector.finish

    def finish(self: Any, stamps: Any) -> Any:
        index = original(self, stamps)
        found.append(len(index))
        return index

    monkeypatch.setattr(collector.Collector, "finish", finish)
    return found


def _row(i: int, **fields: object) -> dict[str, object]:
    same = {"id": f"q{i}", "image": f"{i % 7}.png", "question": f"what is {i}?", "answer": f"ä{i}"}
    return {**same, **fields}


def _write(folder: Path, n: int, *more: dict[str, object]) -> Path:
    for i in range(7):
        Image.new("RGB", (8 + i, 8)).save(folder / f"{i}.png")
    path = folder / "data.jsonl"
    rows = [*(_row(i, choices=["a", "b"], note=i) for i in range(n)), *more]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _open(path: Path, kind: str = "jsonl", **fields: Any) -> Questions:
    return open_questions(SimpleNamespace(kind=kind, path=str(path), **fields))


# --------------------------------------------------------------------------------- what is kept


def test_a_row_comes_back_as_it_was(tmp_path: Path, cache: Path) -> None:
    questions = _open(_write(tmp_path, 25))
    assert list(cache.iterdir())
    for i in (0, 24, -1):
        assert questions[i] == Question(
            id=f"q{i % 25}",
            text=f"what is {i % 25}?",
            images=(str(tmp_path / f"{i % 25 % 7}.png"),),
            label=f"ä{i % 25}",
            choices=("a", "b"),
            meta={"note": i % 25},
        )
    with pytest.raises(IndexError):
        questions[25]
    assert [question.id for question in questions] == [f"q{i}" for i in range(25)]


def test_ids_are_a_sequence_and_are_found(tmp_path: Path, cache: Path) -> None:
    questions = _open(_write(tmp_path, 30), offset=4)
    ids = questions.ids
    assert (len(ids), ids[0], ids[-1], ids[2:4]) == (26, "q4", "q29", ["q6", "q7"])
    assert [questions.find(i) for i in ids] == list(range(26))
    assert "q4" in ids
    for unknown in ("q3", "q30", "", "\ud800"):
        assert unknown not in ids
        with pytest.raises(KeyError):
            questions.find(unknown)
    assert ids == [f"q{i}" for i in range(4, 30)]
    assert ids != [f"q{i}" for i in range(4, 29)]


def test_ids_that_share_a_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    from masters.data import index

    monkeypatch.setattr(index, "id_hash", lambda identity: 7)
    writer = index.IndexWriter()
    for i, hashed in enumerate((7, 3, 7, 9, 7)):
        writer.add(f"q{i}", hashed, b"[]")
    writer.finish({})
    found = index.Index(pa.py_buffer(writer.content()))
    assert [found.find(f"q{i}") for i in range(6)] == [0, None, 2, None, 4, None]


def test_small_and_large_give_the_same_fingerprint(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path, 45)
    large = _open(path).fingerprint()
    again = _open(path).fingerprint()
    part = _open(path, offset=3, limit=30)
    monkeypatch.setattr(collector, "CACHED_ROWS", 1000)
    (tmp_path / "cache").rename(tmp_path / "gone")
    assert _open(path).fingerprint() == large == again
    assert _open(path, offset=3, limit=30).fingerprint() == part.fingerprint() != large
    assert not (tmp_path / "cache").exists()


# -------------------------------------------------------------------------- the cache, and trust


def test_a_large_file_is_read_once(tmp_path: Path, cache: Path, passes: list[int]) -> None:
    path = _write(tmp_path, 40)
    first = _open(path)
    assert _open(path).fingerprint() == first.fingerprint()
    assert passes == [40]
    assert len(list(cache.iterdir())) == 1, "and nothing else is left there"
    _open(path, limit=30)
    _open(path, limit=30)
    _open(path, limit=10)
    _open(path, limit=10)
    assert passes == [40, 30, 10, 10], "small ones are read each time"


def _touch(folder: Path) -> None:
    path = folder / "data.jsonl"
    text = path.read_text()
    path.write_text(text.replace('"q5"', '"q_"'))
    os.utime(path, ns=(1, 1))


def _grow(folder: Path) -> None:
    with open(folder / "3.png", "ab") as file:
        file.write(b"\0")


def _replace(folder: Path) -> None:
    Image.new("RGB", (90, 90)).save(folder / "3.png")


@pytest.mark.parametrize("change", [_touch, _grow, _replace])
def test_what_changed_on_disk_is_seen(
    change: Callable[[Path], None], tmp_path: Path, cache: Path, passes: list[int]
) -> None:
    path = _write(tmp_path, 40)
    before = _open(path).fingerprint()
    change(tmp_path)
    assert _open(path).fingerprint() != before
    assert passes == [40, 40]
    assert len(list(cache.iterdir())) == 1


def test_an_image_that_went_or_came(tmp_path: Path, cache: Path, passes: list[int]) -> None:
    path = _write(tmp_path, 40)
    _open(path)
    (tmp_path / "3.png").rename(tmp_path / "away.png")
    with pytest.raises(DataError, match=r"data.jsonl:4: question 'q3': image '3.png', but there"):
        _open(path)
    left = _open(path, on_bad="skip")
    assert (len(left), left.skipped) == (34, {"missing image": 6})
    assert len(_open(path, on_bad="skip")) == 34
    (tmp_path / "away.png").rename(tmp_path / "3.png")
    assert len(_open(path, on_bad="skip")) == 40
    assert passes == [40, 34, 40]


def test_notes_are_said_again(
    tmp_path: Path, cache: Path, passes: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    path = _write(tmp_path, 40, _row(3))
    for _ in range(2):
        caplog.clear()
        questions = _open(path, on_bad="skip")
        assert questions.skipped == {"duplicate id": 1}
        assert f"left out (duplicate id): {path}:41: question 'q3': an id already" in caplog.text
        assert f"used at {path}:4;" in caplog.text
    assert passes == [40]


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip(data: bytes) -> bytes:
    at = data.index(b"what is 33")
    return data[: at + 8] + b"7" + data[at + 9 :]


def _other_version(data: bytes) -> bytes:
    return data.replace(b'"version": 1', b'"version": 0')


@pytest.mark.parametrize(
    "spoil", [_cut, _flip, _other_version, lambda data: b"", lambda data: b"x"]
)
def test_a_damaged_index_is_made_anew(
    spoil: Callable[[bytes], bytes], tmp_path: Path, cache: Path, passes: list[int]
) -> None:
    path = _write(tmp_path, 40)
    whole = _open(path).fingerprint()
    (entry,) = cache.iterdir()
    content = entry.read_bytes()
    assert spoil(content) != content
    entry.write_bytes(spoil(content))
    questions = _open(path)
    assert questions.fingerprint() == whole
    assert questions[33].text == "what is 33?"
    assert passes == [40, 40]
    assert entry.read_bytes() == content


def test_without_a_place_to_write(
    tmp_path: Path, cache: Path, passes: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.write_text("a file, no folder")
    path = _write(tmp_path, 40)
    assert len(_open(path)) == 40
    assert _open(path)[39].id == "q39"
    assert passes == [40, 40]
    assert "set MASTERS_CACHE to a folder that can" in caplog.text


def test_a_bad_row_leaves_nothing_behind(tmp_path: Path, cache: Path) -> None:
    path = _write(tmp_path, 40, _row(40, answer=" "))
    with pytest.raises(DataError, match="data.jsonl:41"):
        _open(path)
    assert list(cache.iterdir()) == []


def test_a_full_disk_is_said(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from masters.data.index import IndexWriter

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(IndexWriter, "finish", full)
    with pytest.raises(DataError, match="No space left on device.*MASTERS_CACHE"):
        _open(_write(tmp_path, 40))
    assert list(cache.iterdir()) == []


def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path, 40)
    original = collector.Collector.add

    def add(self: Any, number: int, *rest: Any) -> None:
        if number == 30:
            os.utime(path, ns=(5, 5))
        original(self, number, *rest)

    monkeypatch.setattr(collector.Collector, "add", add)
    with pytest.raises(DataError, match="changed while it was read"):
        _open(path)
    assert list(cache.iterdir()) == []


def _open_in_process(path: str, results: Any) -> None:
    collector.CACHED_ROWS = 20
    results.put(_open(Path(path)).fingerprint())


def test_several_processes_at_once(tmp_path: Path, cache: Path) -> None:
    path = _write(tmp_path, 3000)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    jobs = [context.Process(target=_open_in_process, args=(str(path), results)) for _ in range(4)]
    for job in jobs:
        job.start()
    found = {results.get(timeout=60) for _ in jobs}
    for job in jobs:
        job.join()
    assert found == {_open(path).fingerprint()}
    assert len(list(cache.iterdir())) == 1


# ------------------------------------------------------------------------------------- pictures


def test_a_sample_of_many_images_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path, 40)
    seen: list[str] = []
    original = Images.verify
    monkeypatch.setattr(
        Images, "verify", lambda self, image: (seen.append(image), original(self, image))[1]
    )
    verify_images(_open(path), 7)
    assert len(set(seen)) == 7, "no more than 7 images: all of them"
    seen.clear()
    for _ in range(2):
        verify_images(_open(path), 6)
    assert len(seen) == 12
    assert seen[:6] == seen[6:], "the same ones each time"


def test_a_broken_image_among_many_is_named_when_its_turn_comes(tmp_path: Path) -> None:
    path = _write(tmp_path, 40)
    whole = (tmp_path / "4.png").read_bytes()
    (tmp_path / "4.png").write_bytes(whole[:40])
    questions = _open(path)
    verify_images(questions, 1)
    with pytest.raises(DataError, match=r"question 'q11': image .*4.png, which cannot be decoded"):
        questions.open_images(questions[11])


# ------------------------------------------------------------------------------- other sources


def test_long_lists_are_read_item_by_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from masters.data import json_stream

    path = tmp_path / "x.json"
    items = [{"a": "ü" * 50, "b": [1, {"c": None}]}, -12345.5, "x]", [], {}, 17, True]
    for block in (1, 2, 3, 7, 64, 10_000):
        monkeypatch.setattr(json_stream, "_BLOCK", block)
        for indent in (None, 2):
            path.write_text(json.dumps(items, indent=indent, ensure_ascii=False) + "\n")
            assert list(json_items(path)) == items
        for text, said in (("[1, 2", "expected ','"), ("[1 2]", "found '2'"), ("[1,]", "Expecting"),
                           ("[1] x", "behind the list"), ('["a', "Unterminated")):  # fmt: skip
            path.write_text(text)
            with pytest.raises(ValueError, match=said):
                list(json_items(path))
        path.write_text(" [ ] ")
        assert list(json_items(path)) == []
        path.write_text('"text"')
        with pytest.raises((TypeError, ValueError)):
            list(json_items(path))


def test_llava_from_the_cache(tmp_path: Path, cache: Path, passes: list[int]) -> None:
    _write(tmp_path, 0)
    turns = [("human", "<image>\na?"), ("gpt", "b"), ("human", "c?"), ("gpt", "d")]
    talk = [{"from": speaker, "value": said} for speaker, said in turns]
    rows = [{"id": i, "image": "1.png", "conversations": talk} for i in range(15)]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows))
    for _ in range(2):
        questions = _open(path, "llava")
        assert questions.ids[27:] == ["13#1", "14#0", "14#1"]
        assert questions[29].history == (Turn(question="a?", answer="b"),)
    assert passes == [30]


@pytest.fixture
def _few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_KEPT_BYTES", 2000)


@pytest.mark.usefixtures("_few_bytes")
def test_parquet_by_row_group(tmp_path: Path, cache: Path, passes: list[int]) -> None:
    _write(tmp_path, 0)
    cells = [{"bytes": (tmp_path / f"{i % 7}.png").read_bytes(), "path": None} for i in range(60)]
    folder = tmp_path / "set"
    folder.mkdir()
    for shard in range(3):
        part = slice(20 * shard, 20 * shard + 20)
        numbers = list(range(60))[part]
        columns = {"image": cells[part], "question": [f"q{i}" for i in numbers], "answer": numbers}
        pq.write_table(pa.table(columns), folder / f"train-{shard:05d}.parquet", row_group_size=6)
    for _ in range(2):
        questions = _open(folder, "datasets")
        assert len(questions) == 60
        order = np.random.default_rng(0).permutation(60)
        widths = [questions.open_images(questions[int(i)])[0].width for i in order]
        assert widths == [8 + i % 7 for i in order]
    assert passes == [60]
    verify_images(questions)


def test_images_in_a_table_are_not_read_to_open_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [{"bytes": os.urandom(100_000), "path": None} for _ in range(100)]
    table = pa.table({"image": cells, "question": ["q"] * 100, "answer": ["a"] * 100})
    pq.write_table(table, tmp_path / "rows.parquet", compression="none")
    read: list[list[str]] = []
    original = pq.ParquetFile.iter_batches

    def iter_batches(self: Any, *given: Any, columns: list[str], **named: Any) -> Iterator[Any]:
        read.append(columns)
        return original(self, *given, columns=columns, **named)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    questions = _open(tmp_path / "rows.parquet", "datasets")
    assert questions[7].images == ("row:7",)
    assert read == [["question", "answer"]]


def test_a_table_with_gaps(tmp_path: Path) -> None:
    _write(tmp_path, 0)
    png = (tmp_path / "3.png").read_bytes()
    cells = [{"bytes": png, "path": "x"}, {"bytes": None, "path": "4.png"}, None,
             {"bytes": None, "path": None}, {"bytes": b"", "path": "../4.png"}]  # fmt: skip
    table = pa.table({"image": cells, "question": ["q"] * 5, "answer": ["a"] * 5})
    pq.write_table(table, tmp_path / "rows.parquet")
    questions = _open(tmp_path / "rows.parquet", "datasets", on_bad="skip")
    assert questions.ids == ["row-0", "row-1"]
    assert questions.skipped == {"no image": 2, "image outside of its folder": 1}
    assert [questions.open_images(q)[0].width for q in questions] == [11, 12]


# --------------------------------------------------------------------------------------- memory


def test_rows_are_no_python_objects(tmp_path: Path, cache: Path) -> None:
    path = _write(tmp_path, 5000)
    _open(path)
    gc.collect()
    before = len(gc.get_objects())
    questions = _open(path)
    questions.fingerprint()
    gc.collect()
    assert len(gc.get_objects()) - before < 500
    assert len(questions) == 5000


@pytest.mark.slow
def test_a_million_and_a_half(tmp_path: Path) -> None:
    """The index and the plan in under a minute (of one core) and 2 GB; then from the cache."""
    words = [sys.executable, str(ROOT / "benchmarks" / "data.py"), "--kinds", "jsonl", "parquet"]
    path = tmp_path / "found.json"
    subprocess.run([*words, "--folder", str(tmp_path), "--json", str(path)], check=True)
    found = json.loads(path.read_text())
    assert len(found) == 8
    for row in found:
        assert row["rows"] == 1_500_000
        assert row["cpu_seconds"] < 60
        assert row["peak_rss_gb"] < 2
        if row["what"] in ("open, from the cache", "pairs"):
            assert row["cpu_seconds"] < 10
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < 2e9
