"""The pipe to vLLM's worker: what it may say, and how it may die; the worker with a fake vLLM."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from masters.errors import StageError
from masters.generation.sampling import SampleKey, Sampling
from masters.generation.vllm_engine import WORKER, VllmEngine, VllmRequest
from masters.models.load import TokenIds

IDS = TokenIds(end=(2, 3), pad=0, banned=(9,), vocabulary=20)
SAMPLING = Sampling(max_new_tokens=4)

STAND_IN = """
import json, os, sys, time
def say(text):
    print(text, flush=True)
opening = json.loads(sys.stdin.readline())
mode = opening["options"]["mode"]
print("loading weights", file=sys.stderr, flush=True)
if mode == "no_start":
    print("ValueError: no such architecture", file=sys.stderr, flush=True)
    sys.exit(3)
if mode == "slow_start":
    time.sleep(30)
say(json.dumps({"ready": "1.2.3"}))
for line in sys.stdin:
    batch = json.loads(line)
    order = list(enumerate(batch["requests"]))[::-1]  # in any order
    for index, request in order:
        ids = [request["seed"] % 5 + 10, len(request["images"]) + 4, 2]
        one = {"ids": ids, "logprobs": [-0.5, -1.0, -1.5], "finish": "stop"}
        samples = [dict(one) for _ in range(request["n"])]
        if mode == "dies" and index == 1:
            print("CUDA out of memory", file=sys.stderr, flush=True)
            os.kill(os.getpid(), 9)
        if mode == "garbage" and index == 1:
            say("Processed prompts: 100%")
        if mode == "slow":
            time.sleep(30)
        if mode == "few_samples":
            samples.pop()
        if mode == "unended":
            samples[0]["ids"] = [10, 11, 12]
        if mode == "unscored":
            samples[0]["logprobs"] = [-0.5]
        if mode == "odd_end":
            samples[0]["finish"] = "abort"
        if mode == "few_requests" and index == 1:
            continue
        if mode == "twice" and index == 1:
            index = 2
        say(json.dumps({"index": index, "samples": samples}))
    say(json.dumps({"done": True}))
"""


class Words:
    """A tokenizer that shows the ids."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(str(i) for i in ids if i not in IDS.end)


@pytest.fixture
def open_engine(tmp_path: Path):  # noqa: ANN201
    (tmp_path / "standin.py").write_text(STAND_IN)

    def opened(mode: str, **changes: Any) -> VllmEngine:
        settings: dict[str, Any] = {
            "python": sys.executable,
            "options": {"mode": mode},
            "log": tmp_path / "vllm.log",
            "start_seconds": 20.0,
            "answer_seconds": 20.0,
            "worker": tmp_path / "standin.py",
        }
        return VllmEngine(tokenizer=Words(), ids=IDS, rows=22, **{**settings, **changes})

    return opened


def requests(count: int = 4, samples: int = 2) -> list[VllmRequest]:
    made = []
    for q in range(count):
        keys = tuple(
            SampleKey(seed=0, question_id=f"q{q}", source="teacher", ratio=0, round=0, sample=s)
            for s in range(samples)
        )
        made.append(VllmRequest(ids=[1, 8, 5], images=[b"x"] * q, keys=keys))
    return made


def test_answers_come_in_the_order_of_the_requests(open_engine: Any) -> None:
    asked = requests()
    with open_engine("well") as engine:
        assert engine.version == "1.2.3"
        for _ in range(2):
            found = engine.generate(asked, SAMPLING)
            for q, (request, own) in enumerate(zip(asked, found, strict=True)):
                first = request.keys[0].engine_seed % 5 + 10
                assert [c.token_ids for c in own] == [[first, q + 4, 2]] * 2
                assert [c.seed for c in own] == [key.engine_seed for key in request.keys]
                assert own[0].logprobs == [-0.5, -1.0, -1.5]
                assert own[0].text == f"{first} {q + 4}"
        process = engine._process
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("dies", r"died generating responses \(signal 9\)[\s\S]*CUDA out of memory"),
        ("garbage", r"said 'Processed prompts: 100%', which is no answer"),
        ("few_samples", r"answered \{"),
        ("unended", r"answered \{"),
        ("unscored", r"answered \{"),
        ("odd_end", r"answered \{"),
        ("few_requests", r"answered 3 of 4 requests"),
        ("twice", r"answered \{"),
    ],
)
def test_what_makes_no_sense_stops_it(open_engine: Any, mode: str, says: str) -> None:
    with open_engine(mode) as engine, pytest.raises(StageError, match=says) as caught:
        engine.generate(requests(), SAMPLING)
    assert "loading weights" in str(caught.value), "the end of its log"
    assert "run the same command again" in str(caught.value)


def test_a_worker_that_does_not_start(open_engine: Any) -> None:
    with pytest.raises(
        StageError, match=r"died loading the model \(exit code 3\)[\s\S]*no such architecture"
    ):
        open_engine("no_start")
    with pytest.raises(StageError, match=r"runtime\.vllm\.python is '/nowhere/python'"):
        open_engine("well", python="/nowhere/python")


@pytest.mark.parametrize("mode", ["slow_start", "slow"])
def test_a_worker_that_hangs_is_ended(
    open_engine: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masters.generation.vllm_engine._STOP_SECONDS", 0.2)
    begin = time.monotonic()
    with (
        pytest.raises(StageError, match="gives no answer"),
        open_engine(mode, start_seconds=1.5, answer_seconds=0.3) as engine,
    ):
        process = engine._process
        engine.generate(requests(), SAMPLING)
    assert time.monotonic() - begin < 15
    if mode == "slow":
        assert process.returncode == -9  # pyright: ignore[reportPossiblyUnboundVariable]


FAKE_VLLM = """
import os
import sys
from types import SimpleNamespace
__version__ = "fake"
print("INFO: a banner on standard output")
class SamplingParams:
    def __init__(self, **options):
        self.options = options
class LLM:
    def __init__(self, **options):
        print("INFO: loading", options["model"])
        assert not {"RANK", "WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE"} & os.environ.keys()
    def generate(self, prompts, params, use_tqdm):
        found = []
        for prompt, param in zip(prompts, params):
            options = param.options
            assert options["logit_bias"] == {9: -100.0, 20: -100.0, 21: -100.0}, options
            assert options["stop_token_ids"] == [2, 3] and options["ignore_eos"]
            assert "prompt_logprobs" not in options
            images = prompt.get("multi_modal_data", {}).get("image", [])
            ids = [10 + len(images), images[0].size[0] if images else 11, 3]
            steps = [{i: SimpleNamespace(logprob=-i / 10)} for i in ids]
            one = SimpleNamespace(token_ids=ids, logprobs=steps, finish_reason="stop")
            found.append(SimpleNamespace(outputs=[one] * options["n"]))
        return found
"""


def test_the_worker_itself(
    open_engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What vLLM prints goes to the log, pictures arrive whole, every setting is its own.

    Started by a rank of torchrun, it is none.
    """
    from PIL import Image

    from masters.generation.pictures import png_files

    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.setenv(name, "1")
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text(FAKE_VLLM)
    python = tmp_path / "python"  # as an interpreter that has vLLM among its packages
    code = f"import runpy, sys; sys.path.insert(0, {str(tmp_path)!r}); "
    code += "runpy.run_path(sys.argv[1], run_name='__main__')"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$1" -c "{code}" "$2"\n')
    os.chmod(python, 0o755)
    asked = requests(2)
    asked[1] = VllmRequest(
        ids=asked[1].ids, images=png_files([Image.new("RGB", (17, 5))], None), keys=asked[1].keys
    )
    with open_engine("-", python=str(python), worker=WORKER, options={"model": "m"}) as engine:
        assert engine.version == "fake"
        found = engine.generate(asked, SAMPLING)
    assert [own[0].token_ids for own in found] == [[10, 11, 3], [11, 17, 3]]
    assert found[1][1].logprobs == pytest.approx([-1.1, -1.7, -0.3])
    assert "a banner on standard output" in (tmp_path / "vllm.log").read_text()
