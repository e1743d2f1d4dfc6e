"""Whole generate stages through other engines: vLLM's protocol and a server, over real models."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from masters.artifacts import StageContext
from masters.errors import StageError
from masters.recipe import Runtime, ScenesSource
from masters.recipe_engines import Vllm
from masters.recipe_judge import ServerAddress
from masters.specs import GenerateSpec, MaskSpec, ModelRef, Schedule, ServedRatio
from masters.stages import generate, mask
from masters.teachers.materialise import write_masked
from masters.teachers.thresholds import load_thresholds
from tests.running import environment

from .model_server import ModelServer

RATIOS = (3000, 0)
REPO = Path(__file__).parents[2]


def interpreter(folder: Path, says: str) -> str:
    """Something to call as the interpreter of vLLM's environment."""
    script = folder / "python"
    path = environment()["PYTHONPATH"]
    script.write_text(
        f"#!/bin/sh\ncd {REPO}\nPYTHONPATH={path} OMP_NUM_THREADS=1 VLLM_STAND_IN={says} "
        f"exec {sys.executable} -m tests.invariant.vllm_stand_in\n"
    )
    os.chmod(script, 0o755)
    return str(script)


def spec_of(
    model: Path, engine: Any, *, ratios: tuple[int, ...] = (0,), **changes: Any
) -> GenerateSpec:
    return GenerateSpec(
        source="teacher",
        model=ModelRef(path=str(model)),
        data=ScenesSource(count=16, seed=4),
        prompt={"image_backend": "pil", "suffix": None},  # pyright: ignore[reportArgumentType]
        seed=3,
        schedule=Schedule(key="0", seed=3, epochs="1", questions_per_step=4, ratios=ratios),
        start=0,
        stop=4,
        samples=3,
        top_p=0.9,
        top_k=50,
        repetition_penalty=1.05,
        max_new_tokens=6,
        precision="fp32",
        engine=engine,
        shard_questions=4,
        **{"temperature": 1.0, **changes},
    )


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., StageContext]:
    def made(inputs: dict[str, Path] | None = None, **runtime: Any) -> StageContext:
        folder = tmp_path / "stage"
        folder.mkdir(exist_ok=True)
        return StageContext(
            folder=folder,
            inputs=inputs or {},
            runtime=Runtime(device="cpu", threads=1, workers=0, **runtime),
            progress=lambda done, total, note: None,
        )

    return made


def rows_of(context: StageContext) -> list[dict[str, Any]]:
    shards = sorted((context.folder / "responses").glob("shard-*.parquet"))
    return [row for shard in shards for row in pq.read_table(shard).to_pylist()]


def once_each(rows: list[dict[str, Any]]) -> None:
    names = ("question_id", "source", "ratio", "round", "sample")
    times = Counter(tuple(row[name] for name in names) for row in rows)
    assert len(times) == 16 * 3 and set(times.values()) == {1}


@pytest.fixture(scope="module")
def thresholds(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("thresholds")
    context = StageContext(
        folder=folder, inputs={}, runtime=Runtime(device="cpu"), progress=lambda *_: None
    )
    mask.run(MaskSpec(teacher=ModelRef(path=str(folders[1])), ratios=(3000,)), context)
    return folder


def test_a_masked_teacher_through_vllm_dies_and_goes_on(
    folders: tuple[Path, Path], thresholds: Path, context: Any, tmp_path: Path
) -> None:
    """Masked checkpoints for the ratios above 0; a dead worker loses the shard it was at alone."""
    spec = spec_of(folders[1], "vllm", ratios=RATIOS)
    # Batch 0 is the check's; the worker after it answers one shard and dies.
    dying = Vllm(python=interpreter(tmp_path, "1.0:1"))
    first = context({"thresholds": thresholds}, vllm=dying)
    with pytest.raises(
        StageError, match=r"died generating responses \(exit code 9\)[\s\S]*killed by"
    ):
        generate.run(spec, first)
    kept = {p.name: p.read_bytes() for p in (first.folder / "responses").glob("*.parquet")}
    assert len(kept) == 1
    well = Vllm(python=interpreter(tmp_path, "1.0"))
    second = context({"thresholds": thresholds}, vllm=well)
    metrics = generate.run(spec, second)
    for name, content in kept.items():
        assert (second.folder / "responses" / name).read_bytes() == content
    rows = rows_of(second)
    once_each(rows)
    assert Counter(row["ratio"] for row in rows) == {3000: 24, 0: 24}
    assert all(row["logprobs"] for row in rows)
    assert len({row["seed"] for row in rows}) == 48
    opened = [
        line for line in (second.folder / "vllm.log").read_text().splitlines() if "opened" in line
    ]
    # The check, a shard; then the other shard of the first ratio, and the whole teacher.
    assert [line.endswith("masked-3000") for line in opened] == [True, True, True, False]
    assert metrics["engine"]["engine"] == "vllm 1.0"
    [(name, check)] = metrics["engine"]["checks"].items()
    assert name.endswith("at ratio 3000/10000") and check["same"] and check["difference"] < 1e-4
    masked = [path.name for path in (second.folder / "checkpoints").glob("*")]
    assert sorted(masked) == [".lock", "masked-3000"], "`tidy` removes it once the stage is done"


def test_another_vllm_does_not_go_on(
    folders: tuple[Path, Path], context: Any, tmp_path: Path
) -> None:
    spec = spec_of(folders[0], "vllm")
    dying = context(vllm=Vllm(python=interpreter(tmp_path, "1.0:2")), engine_check=False)
    with pytest.raises(StageError, match="died"):
        generate.run(spec, dying)
    checks = json.loads((dying.folder / "engine.json").read_text())["checks"]
    assert list(checks.values()) == [{"skipped": True}]
    other = context(vllm=Vllm(python=interpreter(tmp_path, "2.0")), engine_check=False)
    with pytest.raises(StageError, match="made by vllm 1.0, and this is vllm 2.0"):
        generate.run(spec, other)


def served(model: Path, name: str = "big", **changes: Any) -> GenerateSpec:
    names = (ServedRatio(ratio=0, model=name),)
    return spec_of(model, "server", served=names, **changes)


@pytest.mark.parametrize("logprobs", [True, False])
def test_a_server_of_the_right_model_passes(
    folders: tuple[Path, Path], context: Any, logprobs: bool
) -> None:
    with ModelServer(folders[1], "big", logprobs=logprobs) as server:
        at = context(server=ServerAddress(url=server.url, concurrency=3))
        metrics = generate.run(served(folders[1]), at)
    rows = rows_of(at)
    once_each(rows)
    assert {row["model"] for row in rows} == {"server:big"}
    check = metrics["engine"]["checks"]["server:big at ratio 0/10000"]
    assert check["rule"] == ("log-probs" if logprobs else "text")
    assert check["same"] and metrics["failed"] == 0


@pytest.mark.parametrize("logprobs", [True, False])
def test_a_server_of_another_model_is_refused(
    folders: tuple[Path, Path], thresholds: Path, context: Any, logprobs: bool
) -> None:
    """The name is right and the model is not: another one, or another ratio of it."""
    with ModelServer(folders[0], "big", logprobs=logprobs) as server:
        at = context(server=ServerAddress(url=server.url))
        with pytest.raises(StageError, match=r"server:big is not .* at masking ratio 0/10000"):
            generate.run(served(folders[1]), at)
        assert not rows_of(at)
        checks = json.loads((at.folder / "engine.json").read_text())["checks"]
        assert [check["same"] for check in checks.values()] == [False]
    with ModelServer(folders[1], "big", logprobs=logprobs) as server:
        at = context({"thresholds": thresholds}, server=ServerAddress(url=server.url))
        names = (ServedRatio(ratio=3000, model="big"), ServedRatio(ratio=0, model="big"))
        spec = spec_of(folders[1], "server", served=names, ratios=RATIOS)
        with pytest.raises(StageError, match=r"big is not .* at masking ratio 3000/10000"):
            generate.run(spec, at)


def test_a_server_is_checked_at_every_ratio(
    folders: tuple[Path, Path], thresholds: Path, context: Any, tmp_path: Path
) -> None:
    """Right at the ratio that comes first, and the same model behind the others' names."""
    found = load_thresholds(thresholds / "thresholds.json")
    write_masked(folders[1], tmp_path / "masked", found, RATIOS[0])
    names = tuple(ServedRatio(ratio=ratio, model="big") for ratio in RATIOS)
    spec = spec_of(folders[1], "server", served=names, ratios=RATIOS)
    with ModelServer(tmp_path / "masked", "big", logprobs=True) as server:
        at = context({"thresholds": thresholds}, server=ServerAddress(url=server.url))
        with pytest.raises(StageError, match=r"big is not .* at masking ratio 0/10000"):
            generate.run(spec, at)
    checks = json.loads((at.folder / "engine.json").read_text())["checks"]
    assert [check["same"] for check in checks.values()] == [True, False]
    assert not rows_of(at)


def test_a_server_that_never_samples_is_refused(folders: tuple[Path, Path], context: Any) -> None:
    with ModelServer(folders[1], "big", logprobs=False, greedy=True) as server:
        at = context(server=ServerAddress(url=server.url))
        with pytest.raises(StageError, match=r"server:big does not sample"):
            generate.run(served(folders[1], temperature=5.0), at)


def test_too_many_failures_stop_it_and_a_shard_is_whole_or_not_there(
    folders: tuple[Path, Path], context: Any
) -> None:
    with ModelServer(folders[1], "big", refuse="top_k") as server:
        at = context(server=ServerAddress(url=server.url))
        with pytest.raises(StageError, match=r"does not know top_k[\s\S]*responses.top_k=0"):
            generate.run(served(folders[1]), at)
        off = context(server=ServerAddress(url=server.url), engine_check=False)
        with pytest.raises(StageError, match=r"12 of 12 responses could not be had"):
            generate.run(served(folders[1]), off)
    assert not rows_of(at)
