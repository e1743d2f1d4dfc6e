"""What a user gets wrong: told in one line, before anything is computed, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.pictures import make_rows, sets_for, write_rows
from tests.running import SMALL, cli, fails, folders, read, succeeds

TINY = ("masters", "--profile", "tiny", "--out")
Rows = list[dict[str, Any]]


def nothing_computed(out: Path) -> bool:
    return not (out / "stages").exists()


# --------------------------------------------------------------------------------------- the data


def missing_image(folder: Path, rows: Rows) -> None:
    (folder / "pictures" / "5.png").unlink()


def empty_answer(folder: Path, rows: Rows) -> None:
    rows[5]["answer"] = "  "


def duplicate_id(folder: Path, rows: Rows) -> None:
    rows[5]["id"] = rows[2]["id"]


def no_label(folder: Path, rows: Rows) -> None:
    del rows[5]["answer"]


def cut_image(folder: Path, rows: Rows) -> None:
    path = folder / "pictures" / "5.png"
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (missing_image, ("train.jsonl:6", "'q5'", "pictures/5.png", "no file")),
        (empty_answer, ("train.jsonl:6", "'q5'", "answer", "not blank")),
        (duplicate_id, ("train.jsonl:6", "'q2'", "already used at", "train.jsonl:3")),
        (no_label, ("train.jsonl:6", "'q5'", "no answer", "ground truth")),
        (cut_image, ("'q5'", "pictures/5.png", "cannot be decoded", "whole image file")),
    ],
)
def test_a_bad_row(
    spoil: Callable[[Path, Rows], None], said: tuple[str, ...], tmp_path: Path
) -> None:
    rows = make_rows(tmp_path, 16)
    good = write_rows(tmp_path / "good.jsonl", rows[:4])
    spoil(tmp_path, rows)
    train = write_rows(tmp_path / "train.jsonl", rows)
    message = fails("run", *TINY, str(tmp_path / "out"), sets=sets_for(train, good))
    assert all(part in message for part in said), message
    assert len(message.strip().splitlines()) == 1
    assert nothing_computed(tmp_path / "out")


def test_a_broken_test_picture_is_found_before_training(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 16)
    cut_image(tmp_path, rows)
    test = write_rows(tmp_path / "test.jsonl", rows[4:8])
    train = write_rows(tmp_path / "train.jsonl", rows[8:])
    message = fails("run", *TINY, str(tmp_path / "out"), sets=sets_for(train, test))
    assert "test.jsonl" in message
    assert "cannot be decoded" in message
    assert nothing_computed(tmp_path / "out")


@pytest.mark.slow
def test_bad_rows_are_skipped_by_name_where_the_recipe_says_so(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 12)
    good = write_rows(tmp_path / "good.jsonl", rows[8:])
    duplicate_id(tmp_path, rows)
    rows[6]["answer"] = ""
    cut = tmp_path / "pictures" / "7.png"
    cut.write_bytes(cut.read_bytes()[:60])
    train = write_rows(tmp_path / "train.jsonl", rows)
    source = f"{{kind: jsonl, path: {train}, on_bad: skip}}"
    sets = [value.replace(f"={train}", f"={source}") for value in sets_for(train, good)]
    done = cli("run", *TINY, str(tmp_path / "out"), "--until", "model/student", sets=sets)
    assert done.returncode == 0, done.stderr
    metrics = read(folders(tmp_path / "out")["model/student"] / "record.json")["metrics"]
    assert metrics["skipped_rows"] == {"duplicate id": 1, "empty answer": 1, "broken image": 1}
    assert "left out (empty answer)" in done.stderr
    assert "train.jsonl:7" in done.stderr


# ------------------------------------------------------------------------------------- the recipe


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (
            "method.phases=[{teacher: teacher, mask: {max_ratio: '0.33', step: '0.1'}, epochs: 1}]",
            ("max_ratio", "0.33", "multiple"),
        ),
        ("method.optimizer.lr=1", ("optimizer", "optimiser")),
        ("method.optimiser.lr=fast", ("method.optimiser.lr", "fast")),
    ],
)
def test_a_bad_key(key: str, said: tuple[str, ...], tmp_path: Path) -> None:
    message = fails("run", *TINY, str(tmp_path / "out"), sets=[key])
    assert all(part in message for part in said), message
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------- the models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``student`` and ``teacher`` of one family, ``foreign`` of another vocabulary, ``text``."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from masters.models.tiny import write_tiny_model

    folder = tmp_path_factory.mktemp("models")
    texts = ["what colour is the box?", *("red", "green", "blue", "yellow")]
    for name, seed in (("student", 0), ("teacher", 1)):
        write_tiny_model(folder / name, "qwen3_vl_100k", seed=seed, texts=texts)
    other = ["zwölf Boxkämpfer jagen Viktor", "quer über den großen Sylter Deich"]
    write_tiny_model(folder / "foreign", "qwen3_vl_100k", seed=2, texts=other)
    shutil.copytree(folder / "teacher", folder / "text")
    (folder / "text" / "model.safetensors").unlink()
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=512,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "text")
    return folder


def run_with(student: Path, teacher: Path, tmp_path: Path, *sets: str) -> str:
    rows = make_rows(tmp_path, 8)
    data = write_rows(tmp_path / "rows.jsonl", rows)
    paths = (
        f"models.student={{path: {student}, tiny: null, sft: null}}",
        f"models.teachers=[{{name: teacher, path: {teacher}}}]",
    )
    own = [value for value in sets_for(data, data) if not value.startswith("models.")]
    return fails("run", *TINY, str(tmp_path / "out"), sets=(*paths, *own, *sets))


def test_another_vocabulary(models: Path, tmp_path: Path) -> None:
    message = run_with(models / "student", models / "foreign", tmp_path)
    assert "different vocabularies" in message
    assert "models of one family" in message
    assert nothing_computed(tmp_path / "out")


def test_another_vocabulary_in_a_later_phase(models: Path, tmp_path: Path) -> None:
    """Before the first phase: a student that phase 0 leaves has the vocabulary it came with."""
    two = [f"{{name: {name}, path: {models / name}}}" for name in ("teacher", "foreign")]
    taught = f"models.teachers=[{', '.join(two)}]"
    for phases in (
        "{teacher: teacher}, {teacher: foreign}",
        "{student: foreign, teacher: foreign}, {teacher: foreign}",
    ):
        sets = (taught, f"method.phases=[{phases}]")
        message = run_with(models / "student", models / "teacher", tmp_path, *sets)
        assert "different vocabularies" in message, phases
        assert nothing_computed(tmp_path / "out")


def test_a_teacher_that_sees_nothing(models: Path, tmp_path: Path) -> None:
    message = run_with(models / "student", models / "text", tmp_path)
    assert "'llama' has no vision tower" in message
    assert str(models / "text") in message
    assert nothing_computed(tmp_path / "out")


def damaged(models: Path, tmp_path: Path, spoil: Callable[[Path], object]) -> Path:
    folder = tmp_path / "damaged"
    shutil.copytree(models / "student", folder)
    spoil(folder / "model.safetensors")
    return folder


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def no_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])


@pytest.mark.parametrize("spoil", [cut, no_header])
def test_damaged_weights(spoil: Callable[[Path], object], models: Path, tmp_path: Path) -> None:
    folder = damaged(models, tmp_path, spoil)
    message = run_with(folder, models / "teacher", tmp_path)
    assert str(folder / "model.safetensors") in message
    assert "again" in message
    assert nothing_computed(tmp_path / "out")


def poison(path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    weights[name][0, 0] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})


def test_a_weight_that_is_no_number(models: Path, tmp_path: Path) -> None:
    folder = damaged(models, tmp_path, poison)
    message = run_with(folder, models / "teacher", tmp_path, "runtime.jobs=1")
    assert "NaN" in message
    assert str(folder) in message


def test_a_loss_that_is_no_number(models: Path, tmp_path: Path) -> None:
    """The step and its questions are named; what was finished before is kept."""
    student, teacher = models / "student", models / "teacher"
    message = run_with(student, teacher, tmp_path, "method.optimiser.lr=1e30", "runtime.jobs=1")
    assert "train/0-teacher failed: step 2" in message
    assert "the loss is" in message or "the gradient norm is" in message
    assert "q" in message.split("Questions of the step: ")[1]
    stages = folders(tmp_path / "out")
    assert (stages["score/0-teacher/student"] / "record.json").is_file()
    assert not (stages["train/0-teacher"] / "record.json").exists()
    assert (stages["train/0-teacher"] / "error.log").is_file()


# --------------------------------------------------------------------------------- files and disk


def test_a_shard_cut_in_half(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    stages = folders(out)
    shutil.rmtree(stages["judge/0-teacher/teacher"])
    folder = stages["generate/0-teacher/teacher"]
    shard = folder / "responses" / "shard-00000.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    message = fails("run", *TINY, str(out), sets=SMALL)
    assert str(shard) in message
    assert "cut short or damaged" in message
    assert str(folder / "record.json") in message
    shard.unlink()
    (folder / "record.json").unlink()
    succeeds("run", *TINY, str(out), sets=SMALL)
    assert shard.read_bytes() == content, "it was made anew as the message says"


def test_a_record_cut_in_half(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    record = folders(out)["mask/teacher"] / "record.json"
    record.write_bytes(record.read_bytes()[:100])
    message = fails("plan", *TINY, str(out), sets=SMALL)
    assert str(record) in message
    assert "damaged" in message


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes (and resizes) a file system of a given size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted: list[str] = []

    def sized(size: str) -> Path:
        options = f"remount,size={size}" if mounted else f"size={size}"
        words = ("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder))
        if os.geteuid() != 0 or subprocess.run(words, capture_output=True).returncode != 0:
            pytest.skip("no right to mount a small file system here")
        mounted.append(size)
        return folder

    yield sized
    if mounted:
        subprocess.run(("umount", str(folder)), check=True)


@pytest.mark.parametrize(
    ("size", "jobs"),
    [
        ("14m", "1"),  # the optimiser's state no longer fits
        pytest.param("11m", "1", marks=pytest.mark.slow),  # the checkpoint's weights don't
        pytest.param("14m", "2", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk(size: str, jobs: str, disk: Callable[[str], Path]) -> None:
    out = disk(size) / "out"
    message = fails("run", *TINY, str(out), "--jobs", jobs, sets=SMALL)
    assert "the disk is full" in message
    assert "Make room and run the same command again" in message
    kept = [path for path in out.glob("stages/*/metrics.jsonl") if path.stat().st_size]
    assert kept, "steps logged before are kept"
    disk("64m")
    succeeds("run", *TINY, str(out), "--until", "model/teacher", sets=SMALL)


def test_no_room_at_all(disk: Callable[[str], Path]) -> None:
    folder = disk("1m")
    (folder / "filler").write_bytes(b"\0" * (2**20 - 8192))
    message = fails("run", *TINY, str(folder / "out"), sets=SMALL)
    assert "the disk is full" in message
