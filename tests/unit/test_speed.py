"""How speed is measured: against a clock of the test's own, on tiny models, and read back."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from masters.data.sources import open_questions
from masters.errors import RecipeError, StageError
from masters.evaluation.speed import Speed, Speeds, Spread, read_speed, speed_sheet
from masters.generation.engine import Completion, TransformersEngine
from masters.measuring.speed import Load, measure_speed, read_load
from masters.measuring.speed_subjects import find_subjects

TINY = ("prompt.suffix=null", "method.optimiser.precision=fp32", "runtime.threads=1")
SCENES = "{kind: scenes, count: 3, seed: 1}"


def subjects(*words: str) -> Any:
    return find_subjects(words, data=SCENES, profile=None, overrides=TINY)


def test_two_tiny_models_are_measured_through_the_engine(tmp_path: Path) -> None:
    found = measure_speed(
        subjects("qwen3_vl_100k", "qwen3_vl_500k"),
        Load(tokens=6, batches=(1, 4), repeats=2, warm_up=1),
        tmp_path,
        ["masters", "speed"],
    )
    assert [(row.model, row.batch) for row in found.rows] == [
        ("qwen3_vl_100k", 1), ("qwen3_vl_100k", 4), ("qwen3_vl_500k", 1), ("qwen3_vl_500k", 4),
    ]  # fmt: skip
    for row in found.rows:
        assert row.new_tokens == 6 and row.prompt_tokens > 20
        for spread in (row.encode, row.first, row.decode, row.answer):
            assert 0 < spread.least <= spread.median <= spread.most
        assert row.answer.median < row.decode.most, "the first token costs more than another"
        assert row.peak_bytes is None or row.peak_bytes > 4 * row.parameters
    assert found.rows[0].parameters < found.rows[2].parameters
    assert read_speed(tmp_path) == found


def test_rates_against_a_clock_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that takes 0.5 s for the first token of a batch and 0.01 s for each further one."""
    now = [0.0]
    asked: list[tuple[int, int]] = []

    def generate(self: Any, requests: Any, sampling: Any) -> list[list[Completion]]:
        tokens = sampling.max_new_tokens
        asked.append((len(requests), tokens))
        now[0] += 0.5 if len(asked) % 5 not in (1, 2) else 60.0  # the first two are warm-up
        for _ in range(tokens):
            self._watch()
            now[0] += 0.01
        now[0] -= 0.01
        completion = Completion(token_ids=[0] * tokens, logprobs=[], text="", finish="length")
        return [[completion] for _ in requests]

    monkeypatch.setattr(TransformersEngine, "generate", generate)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    load = Load(tokens=11, batches=(1, 5), repeats=3, warm_up=2)
    found = measure_speed(subjects("qwen3_vl_100k"), load, tmp_path, [])
    for row in found.rows:
        assert row.first.median == pytest.approx(0.5)
        assert row.decode.median == pytest.approx(row.batch / 0.01)
        assert row.answer.median == pytest.approx(row.batch * 11 / 0.6)
    assert asked == [(1, 11)] * 5 + [(5, 11)] * 5


def test_an_engine_that_stops_early_is_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(self: Any, requests: Any, sampling: Any) -> list[list[Completion]]:
        self._watch()
        return [[Completion(token_ids=[0], logprobs=[], text="", finish="stop")] for _ in requests]

    monkeypatch.setattr(TransformersEngine, "generate", generate)
    with pytest.raises(StageError, match=r"answers of \[1\] tokens; expected 4 each"):
        measure_speed(subjects("qwen3_vl_100k"), Load(tokens=4), tmp_path, [])
    assert read_speed(tmp_path) is None


def test_which_models_are_meant(tmp_path: Path) -> None:
    found = find_subjects(["masters"], data=None, profile="tiny", overrides=())
    assert [(model.name, model.role, model.tiny) for model in found.models] == [
        ("student", "student", "qwen3_vl_250k"), ("teacher", "teacher", "qwen3_vl_1m"),
    ]  # fmt: skip
    assert found.data == found.recipe.data.test
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    found = find_subjects(["a/b", str(tmp_path)], data=None, profile=None, overrides=())
    assert [model.path for model in found.models] == ["a/b", str(tmp_path / "model")]
    assert found.models[1].name == tmp_path.name
    for words in (["nothing"], ["masters", "sft"], ["a/b", "c/b"]):
        with pytest.raises(RecipeError):
            find_subjects(words, data=None, profile="tiny", overrides=())


def test_without_data_there_are_scenes_to_ask_about() -> None:
    found = find_subjects(["qwen3_vl_100k"], data=None, profile=None, overrides=())
    questions = open_questions(found.data)
    assert questions.open_images(questions[0])[0].size == (450, 450)


def test_numbers_of_the_command_line() -> None:
    load = read_load(tokens=9, batches="1, 8,1", repeats=2, warm_up=0)
    assert load == Load(tokens=9, batches=(1, 8), repeats=2, warm_up=0)
    for changed in ({"tokens": 1}, {"batches": "0"}, {"batches": "x"}, {"repeats": 0}):
        with pytest.raises(RecipeError, match="expected"):
            read_load(**{"tokens": 9, "batches": "1", "repeats": 2, "warm_up": 0, **changed})  # pyright: ignore[reportArgumentType]


def row(model: str, parameters: int, rate: float) -> Speed:
    one = Spread(median=rate, least=rate / 2, most=2 * rate)
    return Speed(
        model=model, role=model, parameters=parameters, batch=1, prompt_tokens=9, new_tokens=4,
        encode=one, first=Spread.of([0.002, 0.004, 0.003]), decode=one, answer=one, peak_bytes=None,
    )  # fmt: skip


def test_the_table_is_against_the_largest_model(tmp_path: Path) -> None:
    machine = {"device": "cpu", "name": "CPU", "threads": 1, "precision": "fp32"}
    found = Speeds(
        command="", machine=machine, settings={"new_tokens": 4, "repeats": 3},
        rows=(row("teacher", 2_000_000, 50.0), row("student", 500_000, 200.0)),
    )  # fmt: skip
    lines = speed_sheet(found).rows
    assert [line[0] for line in lines] == ["student", "teacher"]
    assert [line[6] for line in lines] == ["4.00", "1.00"]
    assert lines[0][4:6] == ("3 (2 to 4)", "200 (100 to 400)")
    (tmp_path / "speed.json").write_text(json.dumps({"schema": 2}))
    with pytest.raises(StageError, match="no result of masters speed"):
        read_speed(tmp_path)


def test_the_peak_of_a_device_is_what_it_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    from masters.measuring.speed import _Peak

    reset: list[Any] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123)
    device = SimpleNamespace(type="cuda")
    assert _Peak(device).read() == 123  # pyright: ignore[reportArgumentType]
    assert reset == [device]
