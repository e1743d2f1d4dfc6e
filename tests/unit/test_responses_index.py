"""Stored responses found by question and ratio, and those that leave their group."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from masters.data.tables import RESPONSES, REWARDS, SCORES, shard_name, write_shard
from masters.errors import StageError
from masters.stages.responses_index import ResponseIndex

RATIOS = (0, 500, 2000, 10_000)
#: A vocabulary that leaves no token out.
WORDS: dict[str, Any] = {"vocabulary": 1 << 20, "banned": ()}
IDS = ("b", "a", "ä", "aa", "z-10", "z-9", "")


def _rows() -> list[dict[str, Any]]:
    """Three samples for each question and ratio, groups in no order; lengths 0 to 5."""
    keys = [(name, ratio) for name in IDS for ratio in RATIOS]
    random.Random(1).shuffle(keys)
    rows: list[dict[str, Any]] = []
    for name, ratio in keys:
        for sample in range(3):
            key = {"question_id": name, "source": "teacher", "ratio": ratio, "round": 0}
            rows.append({**key, "sample": sample, "token_ids": [len(rows)] * (len(rows) % 6)})
    return rows


def _store(folder: Path, rows: list[dict[str, Any]]) -> tuple[Path, Path, Path]:
    names = ("question_id", "source", "ratio", "round", "sample")
    keys = [{name: row[name] for name in names} for row in rows]
    for shard, start in enumerate(range(0, len(rows), 20)):
        part = range(start, min(start + 20, len(rows)))
        response = {"model": "m", "text": "t", "logprobs": None, "finish": "stop", "seed": 0}
        name = shard_name(shard)
        write_shard(
            folder / "g" / "responses" / name,
            [{**keys[i], **response, "token_ids": rows[i]["token_ids"]} for i in part],
            RESPONSES,
        )
        verdict = {"reason": "", "judge": "rule"}
        rewards = [None if i % 11 == 5 else float(i % 2) for i in range(len(rows))]
        write_shard(
            folder / "j" / "rewards" / name,
            [{**keys[i], **verdict, "reward": rewards[i]} for i in part],
            REWARDS,
        )
        logs = [[-float(i)] * len(row["token_ids"]) for i, row in enumerate(rows)]
        write_shard(
            folder / "s" / "scores" / name,
            [{**keys[i], "reference_logprobs": logs[i]} for i in part],
            SCORES,
        )
    return folder / "g", folder / "j", folder / "s"


def test_every_group_is_what_was_stored(tmp_path: Path) -> None:
    rows = _rows()
    index = ResponseIndex(*_store(tmp_path, rows), limit=4, **WORDS)
    for name in IDS:
        for ratio in RATIOS:
            places = [
                i
                for i, row in enumerate(rows)
                if (row["question_id"], row["ratio"]) == (name, ratio)
            ]
            usable = [i for i in places if i % 11 != 5 and 0 < i % 6 <= 4]
            found = index.get(name, ratio)
            assert [response.token_ids for response in found] == [(i,) * (i % 6) for i in usable]
            assert [response.accuracy for response in found] == [float(i % 2) for i in usable]
            assert [response.reference for response in found] == [(-i,) * (i % 6) for i in usable]
            assert all(response.source == "teacher" for response in found)
    n = range(len(rows))
    assert index.missing == sum(i % 11 == 5 for i in n)
    assert index.too_long == sum(i % 11 != 5 and i % 6 == 5 for i in n)
    assert index.empty == sum(i % 11 != 5 and i % 6 == 0 for i in n)


def test_without_verdicts_and_scores(tmp_path: Path) -> None:
    folder, _, _ = _store(tmp_path, _rows())
    index = ResponseIndex(folder, None, None, limit=100, **WORDS)
    assert (index.missing, index.too_long) == (0, 0)
    found = [response for name in IDS for ratio in RATIOS for response in index.get(name, ratio)]
    assert len(found) == len(IDS) * len(RATIOS) * 3 - index.empty
    assert {(response.accuracy, response.reference) for response in found} == {(None, None)}


@pytest.mark.parametrize(("name", "ratio"), [("zz", 0), ("A", 0), ("a", 501), ("a", 9_999)])
def test_what_was_not_stored(name: str, ratio: int, tmp_path: Path) -> None:
    index = ResponseIndex(*_store(tmp_path, _rows()), limit=4, **WORDS)
    with pytest.raises(
        StageError, match=f"no response to question {name} at masking ratio {ratio}/"
    ):
        index.get(name, ratio)


def test_scores_of_other_responses(tmp_path: Path) -> None:
    rows = _rows()
    folder, rewards, scores = _store(tmp_path, rows)
    other, _, _ = _store(tmp_path / "other", rows[::-1])
    with pytest.raises(StageError, match="its rows are not those of the responses"):
        ResponseIndex(other, rewards, None, limit=4, **WORDS)
    with pytest.raises(StageError, match="its rows are not those of the responses"):
        ResponseIndex(other, None, scores, limit=4, **WORDS)
