"""Tables: what is written is read back; half a shard is refused with what to do."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from masters.data import tables
from masters.data.tables import (
    ANSWERS,
    KEY_COLUMNS,
    RESPONSES,
    REWARDS,
    SCORES,
    list_shards,
    read_shard,
    read_shards,
    shard_name,
    write_shard,
)
from masters.errors import DataError


def _response(question: str, sample: int = 0) -> dict[str, object]:
    return {
        "question_id": question,
        "source": "teacher",
        "ratio": 2000,
        "round": 0,
        "sample": sample,
        "model": "t",
        "text": "red",
        "token_ids": [5, 1],
        "logprobs": [-0.5, -0.25],
        "finish": "stop",
        "seed": 2**62,
    }


def _reward(question: str, reward: float | None = 1.0) -> dict[str, object]:
    key = {name: _response(question)[name] for name in KEY_COLUMNS}
    return {**key, "reward": reward, "reason": "match", "judge": "rule:exact"}


def test_schemas_are_the_contract() -> None:
    key = "question_id: string not null\nsource: string not null\nratio: int16 not null\n"
    key += "round: int8 not null\nsample: int16 not null"
    for schema in (RESPONSES, REWARDS, SCORES):
        assert tuple(schema.names[:5]) == KEY_COLUMNS
        assert str(pa.schema([schema.field(i) for i in range(5)])) == key
    assert RESPONSES.field("token_ids").type == pa.list_(pa.int32())
    assert RESPONSES.field("logprobs").type == pa.list_(pa.float32())
    assert RESPONSES.field("logprobs").nullable
    assert RESPONSES.field("seed").type == pa.int64()
    assert REWARDS.field("reward").type == pa.float32()
    assert REWARDS.field("reward").nullable
    assert SCORES.names[5:] == ["reference_logprobs"]
    assert ANSWERS.names == [
        "question_id", "ratio", "text", "correct", "score", "kind", "label", "fields", "finish"
    ]  # fmt: skip


def test_round_trip_in_order(tmp_path: Path) -> None:
    rows = [_response("a"), {**_response("b"), "logprobs": None}, _response("c", 3)]
    write_shard(tmp_path / shard_name(1), rows[2:], RESPONSES)
    write_shard(tmp_path / shard_name(0), rows[:2], RESPONSES)
    (tmp_path / ".shard-00002.parquet.partial").write_bytes(b"left by a killed run")
    assert read_shards(tmp_path, RESPONSES).to_pylist() == rows
    assert read_shards(tmp_path, RESPONSES, ["text"]).column_names == ["text"]
    assert [path.name for path in list_shards(tmp_path)] == [
        "shard-00000.parquet",
        "shard-00001.parquet",
    ]


def test_a_table_is_cast_and_put_in_order(tmp_path: Path) -> None:
    loose = pa.Table.from_pylist([_reward("a", None)]).select([*reversed(REWARDS.names)])
    write_shard(tmp_path / "new" / shard_name(0), loose, REWARDS)
    assert read_shards(tmp_path / "new", REWARDS).to_pylist() == [_reward("a", None)]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({**_reward("a"), "extra": 1}, "a row has .*extra"),
        ({"question_id": "a"}, "a row has .'question_id'."),
        ({**_reward("a"), "reason": None}, "column 'reason' has empty values"),
    ],
)
def test_rows_that_do_not_fit(tmp_path: Path, row: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        write_shard(tmp_path / shard_name(0), [row], REWARDS)
    assert list(tmp_path.iterdir()) == []


def test_a_ratio_that_overflows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(pa.ArrowInvalid):
        write_shard(tmp_path / shard_name(0), [{**_reward("a"), "ratio": 40000}], REWARDS)


@pytest.mark.parametrize("keep", [0.0, 0.4, 0.9])
def test_half_a_shard_is_named(tmp_path: Path, keep: float) -> None:
    folder = tmp_path / "responses"
    path = folder / shard_name(0)
    write_shard(path, [_response(str(i)) for i in range(100)], RESPONSES)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(DataError, match=r"shard-00000.parquet: .*cut short.* Delete it and run"):
        read_shards(folder, RESPONSES)
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(DataError, match=r"Delete .*record.json too"):
        read_shards(folder, RESPONSES)


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / shard_name(0)
    write_shard(path, [_response(f"question {i}") for i in range(500)], RESPONSES)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 8] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="damaged"):
        read_shard(path, RESPONSES)


def test_missing_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no shard; expected shard-00000.parquet"):
        read_shards(tmp_path / "nothing", REWARDS)
    write_shard(tmp_path / shard_name(1), [_reward("a")], REWARDS)
    with pytest.raises(DataError, match=r"shard-00000.parquet: missing although later"):
        read_shards(tmp_path, REWARDS)
    with pytest.raises(DataError, match="no such file"):
        read_shard(tmp_path / shard_name(7), REWARDS)


def test_another_table_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / shard_name(0), [_reward("a")], REWARDS)
    with pytest.raises(DataError, match=r"has columns .*judge string; expected .*reference_logp"):
        read_shards(tmp_path, SCORES)


def test_a_full_disk_leaves_the_old_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / shard_name(0)
    write_shard(path, [_reward("a")], REWARDS)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables.os, "fsync", full)
    with pytest.raises(DataError, match=r"No space left on device.*free space.* run again"):
        write_shard(path, [_reward("b")], REWARDS)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert read_shards(tmp_path, REWARDS).to_pylist() == [_reward("a")]
