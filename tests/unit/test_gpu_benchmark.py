"""benchmarks/gpu_suite.py runs whole on a CPU, with what a bare GPU machine has, and keeps all."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.running import environment, read

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SUITE = BENCHMARKS / "gpu_suite.py"
#: What the machine with the GPU lacks.
LACKING = (
    "pydantic", "trl", "pytest", "torchvision", "matplotlib", "typer", "datasets", "peft",
    "bitsandbytes", "tests",
)  # fmt: skip
WAYS = {
    "repeat, live", "mask, live", "attention, live",
    "mask, stored hidden", "attention, stored hidden", "attention, stored hidden, layers kept",
    "mask, stored topk", "attention, stored topk",
}  # fmt: skip
MEASURED = {
    "gradient_seconds", "update_seconds", "response_tokens_per_second", "tera_operations", "mfu",
    "peak_gib",
}  # fmt: skip


def bare(*words: str) -> subprocess.CompletedProcess[str]:
    """The suite where these packages cannot be imported."""
    code = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({LACKING!r}))\n"
        f"sys.argv = {[str(SUITE), *words]!r}\n"
        f"sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        f"runpy.run_path({str(SUITE)!r}, run_name='__main__')\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )


def test_a_small_run_has_every_number(tmp_path: Path) -> None:
    done = bare("--small", "--json", str(tmp_path / "gpu.json"))
    assert done.returncode == 0, done.stderr
    found = read(tmp_path / "gpu.json")
    assert found["schema"] == 1 and found["small"] and found["versions"]["torch"]
    sections = found["sections"]
    assert list(sections) == [
        "device", "scores", "exactness", "steps 8B", "generation", "masks", "steps 32B"
    ]  # fmt: skip
    assert {s["status"] for s in sections.values()} == {"done"}, sections
    results = {name: section["results"] for name, section in sections.items()}
    assert results["device"]["matmul_tflops"] > 0
    for task in ("jsd", "both"):
        for head in ("head trained", "head frozen"):
            assert results["scores"][task][head]["times_products"]["median"] > 0
    forms = {"mask", "attention"}
    assert results["exactness"]["first_use"].keys() == forms
    assert results["exactness"]["gradient_apart"].keys() == {*forms, "repeat in two passes"}
    assert all(0 < x < 0.05 for x in results["exactness"]["gradient_apart"].values())
    for name in ("steps 8B", "steps 32B"):
        assert results[name].keys() == {"first_use", "4:1", "16:1", "1:1"}
        for ratio in ("4:1", "16:1", "1:1"):
            ways = results[name][ratio]
            assert ways.keys() == {"counted", *WAYS}
            for way in WAYS:
                assert ways[way].keys() - {"teacher_seconds"} == MEASURED, way
            assert ways["repeat, live"]["tera_operations"] > ways["mask, live"]["tera_operations"]
    assert all(results["generation"][name]["new_tokens"] > 0 for name in ("2B", "8B"))
    masks = results["masks"]
    assert masks["0 to 500"]["bytes_read"] == 0 < masks["500 to 0"]["bytes_read"]


def test_without_a_device_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    done = bare()
    assert done.returncode == 1 and "sees no CUDA device; --small runs on a CPU" in done.stderr


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from on_gpu import running  # pyright: ignore[reportMissingImports]

    return running


def ran(suite: Any, path: Path, budget: float, **runs: Any) -> dict[str, Any]:
    sections = [
        suite.Section(name=name, least=least, most=0.5, run=run)
        for name, (least, run) in runs.items()
    ]
    suite.run_sections(sections, {}, budget=budget, path=path)
    return json.loads(path.read_text())["sections"]


def test_what_was_found_is_kept_and_the_rest_still_runs(suite: Any, tmp_path: Path) -> None:
    path, written = tmp_path / "gpu.json", []

    def full() -> Any:
        yield ("a", "b"), 1
        written.append(json.loads(path.read_text())["sections"]["full"]["results"])
        raise torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate")

    def slow() -> Any:
        yield ("first",), 1
        while True:  # a compiler that catches what stops it is stopped again
            try:
                time.sleep(60)
            except suite.OutOfTimeError:
                if written[-1] == "caught":
                    raise
                written.append("caught")

    def broken() -> Any:
        raise KeyError("no such thing")
        yield

    def large() -> Any:
        raise suite.SkippedError("32B takes 113 GiB; there are 80")
        yield

    def well() -> Any:
        yield ("x",), 2

    suite.AGAIN = 0.1
    found = ran(
        suite, path, 60.0, full=(0, full), slow=(0, slow), broken=(0, broken), large=(0, large),
        long=(1000, well), well=(0, well),
    )  # fmt: skip
    assert written == [{"a": {"b": 1}}, "caught"]
    status = {name: (section["status"], section["reason"]) for name, section in found.items()}
    assert status["full"] == ("partly", "OutOfMemoryError: CUDA out of memory. Tried")
    assert found["full"]["results"] == {"a": {"b": 1}}
    assert status["slow"] == ("partly", "its 0 s were used up")
    assert status["broken"] == ("failed", "KeyError: 'no such thing'")
    assert status["large"] == ("skipped", "32B takes 113 GiB; there are 80")
    assert status["long"][0] == "skipped" and "it takes 1000" in status["long"][1]
    assert status["well"] == ("done", "") and found["well"]["results"] == {"x": 2}


def test_a_device_without_room(suite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 45 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 40 * 2**30)
    suite.need(cuda, 14 * 2**30, "a teacher")
    suite.need(cuda, 54 * 2**30, "student and teacher", held=True)
    with pytest.raises(suite.SkippedError, match="a teacher takes 16 GiB; there are 15"):
        suite.need(cuda, 16 * 2**30, "a teacher")
    suite.need(torch.device("cpu"), 2**50, "anything")


def test_the_published_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from on_gpu.setting import Setting  # pyright: ignore[reportMissingImports]

    setting = Setting(torch.device("meta"), False)
    assert setting.vocabulary == 151_936
    assert [round(setting.weights(n) / 1e9, 2) for n in ("2B", "8B", "32B")] == [2.13, 8.77, 33.36]
    model = setting.model("8B", torch.bfloat16, 4)
    assert len(model.base_model.language_model.layers) == 4
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {p.device.type for p in model.parameters()} == {"meta"}
