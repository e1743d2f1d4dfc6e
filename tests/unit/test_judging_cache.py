"""The file that verdicts are kept in: what is served, what is refused, and several processes."""

from __future__ import annotations

import multiprocessing
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from masters.data.questions import Question
from masters.errors import StageError
from masters.rewards.judging.cache import KeptVerdict, VerdictCache, verdict_key
from masters.rewards.judging.items import JudgeItem, JudgeVerdict

QUESTION = Question(id="1", text="Which?", label="cat", choices=("cat", "dog"))
ITEM = JudgeItem(question=QUESTION, response="a cat")
KEPT = KeptVerdict(
    judge="teacher:large",
    prompt="v1-00",
    question_id="1",
    question="Which?",
    choices=("cat", "dog"),
    label="cat",
    response="a cat",
    verdict=JudgeVerdict(reward=1.0, reason="right", explanation="It says cat."),
    first_reply="It says cat. <answer-mmkk>1</answer-mmkk>",
    second_reply="1",
    attempts=2,
)


def test_what_is_kept_is_found_whole(tmp_path: Path) -> None:
    with VerdictCache(tmp_path / "new" / "v.sqlite") as cache:
        assert cache.find("k") is None
        cache.keep("k", KEPT)
    with VerdictCache(tmp_path / "new" / "v.sqlite") as cache:
        found = cache.find("k")
        assert found is not None
        assert found.time.endswith("Z")
        assert replace(found, time="") == KEPT


def test_the_key_covers_everything_a_verdict_depends_on() -> None:
    keys = {
        verdict_key(ITEM, "teacher:large", "v1-00"),
        verdict_key(ITEM, "teacher:small", "v1-00"),
        verdict_key(ITEM, "teacher:large", "v2-00"),
        verdict_key(replace(ITEM, response="a  cat"), "teacher:large", "v1-00"),
        verdict_key(replace(ITEM, response="a \ud800cat"), "teacher:large", "v1-00"),
        *(
            verdict_key(
                replace(ITEM, question=replace(QUESTION, **change)), "teacher:large", "v1-00"
            )
            for change in (
                {"id": "2"},
                {"text": "What?"},
                {"label": "dog"},
                {"meta": {"answers": ["cat", "tom"]}},
                {"choices": ("cat", "dog", "cow")},
            )
        ),
    }
    assert len(keys) == 10
    same = replace(QUESTION, images=("b.png",), kind="animals", meta={"x": 1})
    assert verdict_key(replace(ITEM, question=same), "teacher:large", "v1-00") in keys


def test_missing_is_kept_for_reading_and_never_served(tmp_path: Path) -> None:
    missing = replace(KEPT, verdict=JudgeVerdict(reward=None, reason="no answer tag"))
    other = replace(KEPT, verdict=JudgeVerdict(reward=0.0, reason="wrong"))
    with VerdictCache(tmp_path / "v.sqlite") as cache:
        cache.keep("k", missing)
        assert cache.find("k") is None
        assert [kept.verdict for kept in cache.read()] == [missing.verdict]
        cache.keep("k", KEPT)
        # Neither a failure nor another verdict takes the place of one that is there.
        cache.keep("k", missing)
        cache.keep("k", other)
        assert [kept.verdict for kept in cache.read()] == [KEPT.verdict]


def test_reading_by_judge_and_prompt(tmp_path: Path) -> None:
    with VerdictCache(tmp_path / "v.sqlite") as cache:
        for number, (judge, prompt) in enumerate([("a", "v1"), ("a", "v2"), ("b", "v1")]):
            cache.keep(str(number), replace(KEPT, judge=judge, prompt=prompt))
        assert len(list(cache.read())) == 3
        assert {kept.prompt for kept in cache.read(judge="a")} == {"v1", "v2"}
        assert [kept.judge for kept in cache.read(judge="b", prompt="v1")] == ["b"]
        assert list(cache.read(judge="b", prompt="v2")) == []


def test_text_that_has_no_utf_8_is_kept(tmp_path: Path) -> None:
    with VerdictCache(tmp_path / "v.sqlite") as cache:
        cache.keep("k", replace(KEPT, response="x\ud83dy\0z", first_reply="\udc00"))
        found = cache.find("k")
    assert found is not None
    assert (found.response, found.first_reply) == ("x\\ud83dy\0z", "\\udc00")


def _foreign(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE notes (text TEXT)")
    database.commit()
    database.close()


def _of_later_version(path: Path) -> None:
    VerdictCache(path).close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 7")
    database.commit()
    database.close()


def _damaged(path: Path) -> None:
    with VerdictCache(path) as cache:
        for number in range(200):
            cache.keep(str(number), KEPT)
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_text("reward,reason\n" * 100), "is no cache of verdicts"),
        (_foreign, "another program's database"),
        (_of_later_version, "is of version 7; expected .* version 1"),
        (_damaged, "or a damaged one"),
        (lambda path: path.mkdir(), "cannot be read or kept"),
    ],
    ids=["text", "foreign", "later", "damaged", "folder"],
)
def test_what_is_no_cache_is_refused_and_left_alone(spoil, message: str, tmp_path: Path) -> None:
    path = tmp_path / "v.sqlite"
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StageError, match=f"v.sqlite: .*{message}"):
        cache = VerdictCache(path)
        try:
            list(cache.read())
        finally:
            cache.close()
    assert (path.read_bytes() if path.is_file() else None) == before


def _keeps(path: Path, process: int, start) -> None:
    start.wait()
    with VerdictCache(path) as cache:
        for number in range(50):
            reward = float(process % 2)
            verdict = JudgeVerdict(reward=reward, reason=f"by {process}")
            cache.keep(f"shared {number}", replace(KEPT, verdict=verdict))
            cache.keep(f"own {process} {number}", replace(KEPT, verdict=verdict))
            assert cache.find(f"own {process} {number}") is not None


def test_several_processes_make_and_fill_one_file(tmp_path: Path) -> None:
    """All open it at the same moment; nobody's verdict is lost, and none is there twice."""
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Barrier(4)
    path = tmp_path / "v.sqlite"
    processes = [spawn.Process(target=_keeps, args=(path, n, start)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    with VerdictCache(path) as cache:
        assert len(list(cache.read())) == 4 * 50 + 50
        for number in range(50):
            assert cache.find(f"shared {number}") is not None


def test_a_file_that_another_process_is_opening_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a dozen processes that open a new file at once one was told that it is locked, in one of
    some hundred tries: SQLite does not wait with a change of the journal."""
    pragma, left = VerdictCache._pragma, [2]

    def locked(cache: VerdictCache, text: str) -> object:
        if text.startswith("journal_mode") and left[0]:
            left[0] -= 1
            raise sqlite3.OperationalError("database is locked")
        return pragma(cache, text)

    monkeypatch.setattr(VerdictCache, "_pragma", locked)
    with VerdictCache(tmp_path / "v.sqlite") as cache:
        cache.keep("k", KEPT)
        assert cache.find("k") is not None and left == [0]
