"""The whole method on files of one's own."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from tests.end_to_end.pictures import make_rows, sets_for, write_rows
from tests.running import folders, lines, read, succeeds


def test_json_lines(tmp_path: Path) -> None:
    rows = make_rows(tmp_path)
    train = write_rows(tmp_path / "train.jsonl", rows[:32])
    test = write_rows(tmp_path / "test.jsonl", rows[32:])
    words = ("masters", "--profile", "tiny", "--out", str(tmp_path / "out"))
    succeeds("run", *words, sets=sets_for(train, test))
    stages = folders(tmp_path / "out")
    steps = lines(stages["train/0-teacher"] / "metrics.jsonl")
    assert len(steps) == 32 // 4
    assert {row["mask/ratio"] for row in steps} == {0.2, 0.0}
    report = read(tmp_path / "out" / "report" / "report.json")
    kinds = {row["kind"] for row in report["results"]}
    assert kinds == {"all", "colour"}
    assert {row["n"] for row in report["results"]} == {8}


def test_llava_conversations_and_a_smoke_run_through_every_stage(tmp_path: Path) -> None:
    """Two turns about each picture; rows without a picture are counted, not trained."""
    rows = make_rows(tmp_path, 16)
    conversations = [
        {
            "id": row["id"],
            "image": row["image"],
            "conversations": [
                {"from": "human", "value": f"<image>\n{row['question']}"},
                {"from": "gpt", "value": row["answer"]},
                {"from": "human", "value": "is it a circle?"},
                {"from": "gpt", "value": "no"},
            ],
        }
        for row in rows
    ]
    text_only = {"id": "t", "conversations": [{"from": "human", "value": "hi"}]}
    path = tmp_path / "train.json"
    path.write_text(json.dumps([*conversations[:2], text_only, *conversations[2:]]))
    words = ("masters", "--profile", "tiny", "--out", str(tmp_path / "out"))
    succeeds("run", *words, sets=(*sets_for(path, path), "data.limit=8"))
    stages = folders(tmp_path / "out")
    metrics = read(stages["generate/0-teacher/teacher"] / "record.json")["metrics"]
    assert metrics["questions"] == 8
    assert metrics["skipped_rows"] == {"text-only": 1}
    assert read(stages["model/teacher"] / "record.json")["metrics"]["skipped_rows"] == {
        "text-only": 1
    }
    report = read(tmp_path / "out" / "report" / "report.json")
    assert {row["n"] for row in report["results"]} == {8}
    assert len(lines(stages["train/0-teacher"] / "metrics.jsonl")) == 2


@pytest.mark.slow
def test_a_label_over_the_limit_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 16)
    rows[3]["answer"] = "red " * 40
    path = write_rows(tmp_path / "train.jsonl", rows)
    words = ("sft", "--profile", "tiny", "--out", str(tmp_path / "out"))
    sets = [value for value in sets_for(path, path) if not value.startswith("method.phases")]
    succeeds("run", *words, "--until", "train/0", sets=sets)
    folder = folders(tmp_path / "out", "sft")["train/0"]
    assert sum(row["groups/dropped"] for row in lines(folder / "metrics.jsonl")) == 1
    assert read(folder / "record.json")["metrics"]["labels_over_limit"] == 1


@pytest.mark.slow
def test_several_images_in_tar_shards_through_every_stage(tmp_path: Path) -> None:
    """One picture, two before the question, and two where the markers are, mixed in a batch."""
    rows = make_rows(tmp_path, 16)
    shards = tmp_path / "shards"
    shards.mkdir()
    for shard in range(2):
        with tarfile.open(shards / f"{shard}.tar", "w") as tar:
            for i in range(8 * shard, 8 * shard + 8):
                shown = [rows[i], rows[(i + 1) % 16]][: 1 + (i % 3 > 0)]
                for place, row in enumerate(shown):
                    tar.add(tmp_path / row["image"], f"{i}.{place}.png")
                fields = {name: rows[i][name] for name in ("id", "question", "answer", "kind")}
                if i % 3 == 2:
                    fields["question"] = "what colour is <image> beside <image>?"
                member = tarfile.TarInfo(f"{i}.json")
                content = json.dumps(fields).encode()
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    words = ("masters", "--profile", "tiny", "--out", str(tmp_path / "out"))
    source = Path(f"{{kind: webdataset, path: {shards}}}")
    succeeds("run", *words, sets=sets_for(source, source))
    stages = folders(tmp_path / "out")
    assert len(lines(stages["train/0-teacher"] / "metrics.jsonl")) == 4
    report = read(tmp_path / "out" / "report" / "report.json")
    assert {row["n"] for row in report["results"]} == {16}
    page = (tmp_path / "out" / "report" / "report.html").read_text()
    assert page.count('<div class="images">') > 0
    said = succeeds("show", "generate/0-teacher/teacher", "--question", "q2", "--out", words[-1])
    assert "q2-1.png" in said
    assert "q2-2.png" in said
    assert said.count("<|image_pad|>") == 2
