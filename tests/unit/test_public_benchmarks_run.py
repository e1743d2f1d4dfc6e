"""Public benchmarks run: a stand-in for lmms-eval is started, fails, and is gone on with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from masters.errors import StageError
from masters.evaluation.benchmarks.catalogue import BENCHMARKS, chosen
from masters.evaluation.benchmarks.environment import harness_version, installed
from masters.evaluation.benchmarks.harness import (
    LMMS_EVAL,
    Judge,
    Request,
    adapter_of,
    check_judge,
    command_of,
    kit_settings,
    variables_of,
)
from tests.running import command, environment

SAMPLES = Path(__file__).parents[1] / "samples"
KEY = "sk-not-a-real-key"
JUDGE = Judge(name="made-up-judge", url="http://127.0.0.1:9/v1")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """As much of a stage's folder as is looked at: what family the model is of."""
    folder = tmp_path / "train-0123" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen3_vl"}')
    return folder.parent


def run(
    model: Path, out: Path, names: str, *words: str, stand_in: bool = True, **variables: str
) -> subprocess.CompletedProcess[str]:
    """``masters benchmark run`` with the stand-in before everything else on the path."""
    inherited = environment()
    path = [str(SAMPLES / "stand_in")] * stand_in + [inherited["PYTHONPATH"]]
    return subprocess.run(
        command(
            "benchmark", "run", str(model), "--benchmarks", names, "--out", str(out),
            "--python", sys.executable, *words,
        ),
        env={
            **inherited, "PYTHONPATH": os.pathsep.join(path), "OPENAI_API_KEY": KEY,
            "STAND_IN_SAMPLE": str(SAMPLES / "lmms_eval" / "start"), **variables,
        },
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def record(out: Path, name: str) -> dict[str, Any]:
    return json.loads((out / name / "benchmark.json").read_text())


def test_run_fail_go_on_and_read(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    judge = ("--judge", "made-up-judge", "--judge-url", "http://127.0.0.1:9/v1")
    names = "ai2d,chartqa,mmbench,mmvet"
    first = run(
        model, out, names, *judge, STAND_IN_SWALLOW="chartqa", STAND_IN_CRASH="mmvet"
    )  # fmt: skip
    assert first.returncode == 1
    assert "ai2d: 57.1," in first.stdout and "mmbench: 57.1," in first.stdout
    # lmms-eval ends with 0 whatever happens; what it left is what counts.
    assert "chartqa: failed" in first.stdout and "holds no results of lmms-eval" in first.stdout
    assert "Error during evaluation: the data set is not there" in first.stdout
    assert "mmvet: the harness ended with exit code 3" in first.stdout
    assert "CUDA out of memory (not really)" in first.stdout
    assert "2 of 4 benchmarks failed: chartqa, mmvet" in first.stderr
    assert (record(out, "chartqa")["state"], record(out, "chartqa")["exit_code"]) == ("failed", 0)

    kept = {path: path.stat().st_mtime_ns for path in (out / "ai2d").rglob("*") if path.is_file()}
    second = run(model, out, names, *judge)
    assert second.returncode == 0, second.stderr
    assert "ai2d: 57.1, done before" in second.stdout
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert record(out, "chartqa")["output"] == "output-2"

    made = record(out, "mmvet")
    assert made["state"] == "done"
    assert made["installed"]["lmms_eval"] == made["request"]["version"] == LMMS_EVAL
    assert made["installed"]["transformers"]
    assert made["request"]["judge"]["name"] == "made-up-judge"
    assert made["request"]["model"] == str(model / "model")
    assert made["command"][1:5] == ["-m", "lmms_eval", "--model", "qwen3_vl"]
    assert record(out, "ai2d")["request"]["judge"] is None
    # The judge's key is in no file.
    for path in out.rglob("*"):
        assert not path.is_file() or KEY not in path.read_text(), path
    assert "the key is [key]" in (out / "mmvet" / "log.txt").read_text()

    done = subprocess.run(
        command("benchmark", "read", f"start={out}", "--benchmarks", names, "--as", "json"),
        env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [row] = json.loads(done.stdout)["rows"]
    assert list(row["scores"]) == names.split(",")
    assert row["scores"]["mmvet"]["judge"] == "made-up-judge"
    assert row["scores"]["mmvet"]["harness"] == f"lmms-eval {LMMS_EVAL}"

    other = run(model, out, "mmvet", "--judge", "another", "--judge-url", "http://127.0.0.1:9/v1")
    assert other.returncode == 1 and "give another --out" in other.stderr
    assert "made-up-judge" in other.stderr and "another" in other.stderr


def test_a_judge_that_was_gone_is_counted(model: Path, tmp_path: Path) -> None:
    """MMBench guesses where its judge is gone, and says so in the log alone."""
    done = run(model, tmp_path / "out", "mmbench", "--judge", "GPT API failed to answer")
    assert done.returncode == 0, done.stderr  # the stand-in prints its judge's name: one line
    assert "MMB, out: the judge gave no verdict on 1 of 14 questions" in done.stdout


def test_a_smoke_run_is_marked(model: Path, tmp_path: Path) -> None:
    done = run(model, tmp_path / "out", "ai2d", "--limit", "14")
    assert done.returncode == 0, done.stderr
    assert "--limit" in record(tmp_path / "out", "ai2d")["command"]
    assert "AI2D, out: * only 14 questions were asked" in done.stdout


def test_nothing_starts_without_what_it_needs(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for done, words in (
        (run(model, out, "ai2d,mmvet"), "mmvet need an LLM judge; expected --judge NAME"),
        (run(model, out, "ai2d", stand_in=False), "has no lmms-eval; expected an environment"),
        (run(model, out, "ai2d", "--python", "/no/such"), "--python /no/such: could not be asked"),
        (run(model, out, "ai2d", "--model-args", "fps"), "--model-args fps: expected key=value"),
        (
            run(model, out, "ai2d,mmvet", "--judge", "gpt-4o-2024-11-20", OPENAI_API_KEY=""),
            "OPENAI_API_KEY is not set",
        ),
        (
            run(model, out, "ai2d", "--harness", "vlmevalkit", "--checkout", str(tmp_path)),
            "holds no run.py; expected a clone of VLMEvalKit",
        ),
    ):
        assert done.returncode == 1
        assert words in re.sub(r"\s+", " ", done.stderr), done.stderr
    assert not list(out.glob("*/benchmark.json"))


def test_the_version_is_pinned(tmp_path: Path) -> None:
    found = {"lmms_eval": "0.7.2"}
    with pytest.raises(StageError, match="lmms-eval is 0.7.2; expected 0.7.3.*--any-version"):
        harness_version("lmms-eval", "python", found, None, any_version=False)
    assert harness_version("lmms-eval", "python", found, None, any_version=True) == "0.7.2"
    from_git = {"lmms_eval": LMMS_EVAL, "lmms_eval_commit": "75571cfe0fa36ca5"}
    with pytest.raises(StageError, match=r"is 0\.7\.3\+75571cfe0fa3; expected"):
        harness_version("lmms-eval", "python", from_git, None, any_version=False)
    path = {**os.environ, "PYTHONPATH": str(SAMPLES / "stand_in")}
    assert installed(sys.executable, path)["lmms_eval"] == LMMS_EVAL


def request(**more: Any) -> Request:
    defaults: Any = {"version": LMMS_EVAL, "model": "/models/one", "adapter": "qwen3_vl"}
    return Request(**{**defaults, **more})


def test_the_command_of_lmms_eval() -> None:
    [pro] = chosen("mmmu_pro")
    asked = request(model_args=("max_pixels=1605632",), batch=4, limit=8)
    assert command_of(pro, asked, "py", Path("/out")) == [
        "py", "-m", "lmms_eval", "--model", "qwen3_vl",
        "--model_args", "pretrained=/models/one,max_pixels=1605632",
        "--tasks", "mmmu_pro_standard,mmmu_pro_vision", "--batch_size", "4",
        "--output_path", "/out", "--log_samples", "--verbosity", "INFO", "--limit", "8",
    ]  # fmt: skip
    several = command_of(pro, asked, "py", Path("/out"), processes=8)
    assert several[:6] == [
        "py", "-m", "accelerate.commands.launch", "--num_processes=8", "-m", "lmms_eval",
    ]  # fmt: skip
    with pytest.raises(StageError, match="has a comma or a quote"):
        command_of(pro, request(model="/models/a,b"), "py", Path("/out"))


def test_the_judges_address_as_each_client_takes_it() -> None:
    found = {
        benchmark.name: variables_of(benchmark, request(judge=JUDGE), {"OPENAI_API_KEY": KEY})
        for benchmark in BENCHMARKS
    }
    assert {name for name, added in found.items() if added} == {
        "mathvista", "mmbench", "mmbench_cn", "mmvet",
    }  # fmt: skip
    assert found["mmvet"] == {
        "API_TYPE": "openai", "MODEL_VERSION": "made-up-judge", "OPENAI_API_KEY": KEY,
        "OPENAI_API_URL": "http://127.0.0.1:9/v1",
    }  # fmt: skip
    whole = "http://127.0.0.1:9/v1/chat/completions"
    assert found["mmbench_cn"]["OPENAI_API_URL"] == whole
    [mmvet] = chosen("mmvet")
    no_key = variables_of(mmvet, request(judge=JUDGE), {})
    assert no_key["OPENAI_API_KEY"] == "none"  # lmms-eval asks nobody without a key
    check_judge([mmvet], request(judge=JUDGE))
    assert request(judge=JUDGE).judge == JUDGE and KEY not in str(request(judge=JUDGE))


def test_the_command_of_vlmevalkit() -> None:
    [pro] = chosen("mmmu_pro")
    asked = request(harness="vlmevalkit", adapter="Qwen3VLChat", model_args=("use_vllm=false",))
    assert command_of(pro, asked, "py", Path("/out")) == [
        "py", "run.py", "--config", "/out/kit.json", "--work-dir", "/out",
        "--judge", "exact_matching",
    ]  # fmt: skip
    assert kit_settings(pro, asked) == {
        "model": {
            "model": {"class": "Qwen3VLChat", "model_path": "/models/one", "use_vllm": False}
        },
        "data": {
            name: {"class": "MMMUProDataset", "dataset": name}
            for name in ("MMMU_Pro_10c", "MMMU_Pro_V")
        },
    }


def test_the_adapter_by_family(tmp_path: Path) -> None:
    for kind, harness, adapter in (
        ("qwen2_5_vl", "lmms-eval", "qwen2_5_vl"),
        ("internvl", "lmms-eval", "internvl_hf"),
        ("qwen3_vl", "vlmevalkit", "Qwen3VLChat"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        assert adapter_of(str(tmp_path), harness, None) == adapter  # type: ignore[arg-type]
    with pytest.raises(StageError, match="a model of type 'unknown' is not known here.*--adapter"):
        adapter_of("some/hub-name", "lmms-eval", None)
    assert adapter_of("some/hub-name", "lmms-eval", "gemma3") == "gemma3"
