"""`masters calibrate` as it is typed: on a model folder, on a recipe's teacher, and wrongly."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.running import SMALL, fails, folders, lines, read, succeeds

PLAIN = (
    "prompt.suffix=null",
    "method.responses.max_new_tokens=8",
    "method.optimiser.precision=fp32",
    "runtime={threads: 1, micro_batch_questions: 40}",
)
SCENES = "{kind: scenes, count: 60, seed: 21}"
ROW = {
    "ratio", "n", "accuracy", "accuracy_low", "accuracy_high", "difference", "difference_low",
    "difference_high", "gained", "lost", "changed", "entropy", "entropy_low", "entropy_high", "jsd",
    "jsd_low", "jsd_high", "zeros", "seconds", "verdict",
}  # fmt: skip


def on_folder(whole: Path, out: Path, *words: str) -> str:
    """The whole run's teacher, given as its stage's folder."""
    teacher = str(folders(whole)["model/teacher"])
    return succeeds(
        "calibrate", teacher, "--questions", SCENES, "--sample", "40", "--out", str(out), *words,
        sets=PLAIN,
    )  # fmt: skip


def results(out: Path) -> Path:
    (folder,) = (out / "calibrate").iterdir()
    return folder


def test_a_model_folder_again_and_with_more(whole: Path, tmp_path: Path) -> None:
    said = on_folder(whole, tmp_path, "--ratios", "0.5,0.2")
    folder = results(tmp_path)
    content = read(folder / "calibration.json")
    assert [row["ratio"] for row in content["rows"]] == [0, 0.2, 0.5]
    unmasked, *masked = content["rows"]
    for row in content["rows"]:
        assert set(row) == ROW
        assert row["n"] == 40
        for name in ("accuracy", "difference", "jsd", "entropy"):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"], name
        assert row["difference"] == pytest.approx(row["accuracy"] - unmasked["accuracy"])
        assert row["difference"] * 40 == pytest.approx(row["gained"] - row["lost"])
    assert unmasked["jsd"] < 1e-6 and unmasked["zeros"] == 0 == unmasked["changed"]
    assert 0 < masked[0]["jsd"] < masked[1]["jsd"] < 0.6932
    assert content["questions"]["in_all"] == 60 and content["questions"]["sample"] == 40
    assert content["command"].startswith("masters calibrate")
    assert content["recommendation"]["max_ratio"] in said
    assert (folder / "calibration.png").read_bytes().startswith(b"\x89PNG")

    (kept,) = folder.glob("measured-*.jsonl")
    before = lines(kept)
    on_folder(whole, tmp_path, "--ratios", "0.2,0.5")
    assert lines(kept) == before
    assert read(folder / "calibration.json")["rows"] == content["rows"]

    # What a killed run left is taken up; the line that was cut and the new ratio are measured.
    kept.write_bytes(kept.read_bytes()[:-9])
    on_folder(whole, tmp_path, "--ratios", "0.2,0.5,0.7", "--per", "part", "--per-ratio", "0.6")
    again = read(folder / "calibration.json")
    timeless = [
        [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
        for rows in (content["rows"], again["rows"][:3])
    ]
    assert timeless[0] == timeless[1]
    assert [row["ratio"] for row in again["rows"]] == [0, 0.2, 0.5, 0.7]
    parts = again["groups"]["part"]
    assert {row["group"] for row in parts} == {"language", "projector", "vision"}
    assert all(row["ratio"] == 0.6 and row["jsd"] > 0 for row in parts)
    assert (folder / "per-part.png").is_file()
    assert len(lines(kept)) == len(before) + 1 + len(parts)

    left = [path.name for path in folder.iterdir() if path.name.endswith((".tmp", ".partial"))]
    assert left == []


def test_other_settings_are_measured_anew(whole: Path, tmp_path: Path) -> None:
    on_folder(whole, tmp_path, "--ratios", "0.5")
    masked = "method.phases.0.mask.parts=[vision]"
    on_folder(whole, tmp_path, "--ratios", "0.5", "--set", masked)
    folder = results(tmp_path)
    assert len(list(folder.glob("measured-*.jsonl"))) == 2
    content = read(folder / "calibration.json")
    assert content["mask"]["parts"] == ["vision"]
    assert content["rows"][1]["zeros"] < 0.15


def test_a_recipes_teacher_and_the_recipe_it_writes(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    teacher = folders(whole)["model/teacher"].name
    trained = (out / "stages" / teacher / "record.json").stat().st_mtime_ns
    written = tmp_path / "calibrated.yaml"
    said = succeeds(
        "calibrate", "masters", "--profile", "tiny", "--out", str(out), "--ratios", "0.4",
        "--tolerance", "0.9", "--write", str(written), sets=SMALL,
    )  # fmt: skip
    content = read(out / "calibrate" / "teacher" / "calibration.json")
    # data.validation of SMALL has 16 questions; fewer than the sample asks for is all of them.
    assert content["questions"]["sample"] == 16
    assert (out / "stages" / teacher / "record.json").stat().st_mtime_ns == trained
    recommended = content["recommendation"]
    assert f'max_ratio: "{recommended["max_ratio"]}"' in said
    plan = succeeds("plan", str(written), "--out", str(out))
    assert "model/teacher" in plan
    assert f"max_ratio: '{recommended['max_ratio']}'" in written.read_text()


def test_a_tiny_teacher_that_is_not_trained_yet_is(tmp_path: Path) -> None:
    succeeds(
        "calibrate", "masters", "--profile", "tiny", "--out", str(tmp_path), "--ratios", "0.4",
        sets=[*SMALL, "models.teachers.0.sft.steps=2"],
    )  # fmt: skip
    stages = [path.name.split("-")[0] for path in (tmp_path / "stages").iterdir()]
    assert stages == ["train"]
    assert (tmp_path / "calibrate" / "teacher" / "calibration.json").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nowhere", "--questions", SCENES), "nowhere: no such teacher"),
        (("masters", "--profile", "tiny", "--teacher", "big"), "expected one of teacher"),
        (("masters", "--profile", "tiny", "--ratios", "0.1,1.5"), "--ratios is 1.5"),
        (("masters", "--profile", "tiny", "--sample", "0"), "--sample is 0"),
        (("masters", "--profile", "tiny", "--questions", "gone.jsonl"), "gone.jsonl"),
        (("masters", "--profile", "tiny", "--per", "neuron"), "--per is 'neuron'"),
    ],
)
def test_wrong_words(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    message = fails("calibrate", *words, "--out", str(tmp_path / "out"))
    assert said in message, message
    assert not (tmp_path / "out").exists()


def test_questions_that_cannot_be_judged(whole: Path, tmp_path: Path) -> None:
    teacher = str(folders(whole)["model/teacher"])
    unlabelled = tmp_path / "unlabelled.jsonl"
    unlabelled.write_text('{"id": "1", "question": "Which colour?"}\n')
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    for file, said in ((unlabelled, "unlabelled.jsonl:1"), (empty, "empty.jsonl")):
        message = fails(
            "calibrate", teacher, "--questions", str(file), "--out", str(tmp_path / "out")
        )
        assert said in message, message
        assert not (tmp_path / "out").exists()


def test_a_file_is_never_written_over(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: masters  # mine\n")
    message = fails(
        "calibrate", str(mine), "--profile", "tiny", "--write", str(mine),
        "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert "is there already" in message
    assert mine.read_text() == "extends: masters  # mine\n"
    assert not (tmp_path / "out").exists()
