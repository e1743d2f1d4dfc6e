"""A generate stage through ``transformers serve``: killed, resumed; another model refused."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from masters.data.scenes import scene_vocabulary
from masters.models.load import load_model, load_processor, token_ids
from masters.specs import GenerateSpec
from tests.end_to_end.test_live_server import LiveServer
from tests.families import write_tiny
from tests.running import environment

pytestmark = pytest.mark.slow
for _module in ("fastapi", "uvicorn", "accelerate"):
    pytest.importorskip(_module, reason=f"transformers serve needs {_module}")

_LOG = logging.getLogger(__name__)
_SECONDS = 180
STAGE = """
import sys
from pathlib import Path
from masters.artifacts import StageContext
from masters.errors import MastersError
from masters.recipe import Runtime
from masters.specs import GenerateSpec
from masters.stages import generate
folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
runtime = Runtime(device="cpu", threads=1, server={"url": sys.argv[2], "attempts": 3})
context = StageContext(folder=folder, inputs={}, runtime=runtime, progress=lambda *_: None)
try:
    print(generate.run(GenerateSpec.model_validate_json(sys.argv[3]), context))
except MastersError as error:
    sys.exit(str(error))
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    home = tmp_path_factory.mktemp("serving")
    for name, seed in (("model", 1), ("other", 2)):
        write_tiny(home / name, "idefics3", size="student", seed=seed, texts=scene_vocabulary())
        _says_words(home / name)
        file = home / name / "generation_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "do_sample": True}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        server = LiveServer(home / "model", home)
        server.start()
        try:
            server.wait()
            yield server
        finally:
            server.kill()


def _says_words(folder: Path) -> None:
    """Keeps a random model from bytes that are no text and from what stands for pictures."""
    model, processor = load_model(str(folder)), load_processor(str(folder))
    tokenizer, head = processor.tokenizer, model.get_output_embeddings().weight
    end = token_ids(model, processor).end
    with torch.no_grad():
        for token in range(len(head)):
            word = tokenizer.decode([token], skip_special_tokens=True)
            if token not in end and not (word.isascii() and word.isprintable() and word):
                head[token] = 0
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})


def _spec(live: LiveServer, model: str = "model") -> GenerateSpec:
    return GenerateSpec.model_validate(
        {
            "source": "student",
            "model": {"path": str(live.home / model)},
            "data": {"kind": "scenes", "count": 64, "seed": 4},
            "prompt": {"suffix": None},
            "seed": 3,
            "schedule": {"key": "0", "seed": 3, "epochs": "1", "questions_per_step": 8},
            "start": 0,
            "stop": 8,
            "samples": 3,
            "temperature": 1.0,
            "top_p": 0.9,
            "top_k": 0,  # this server knows neither
            "repetition_penalty": 1.0,
            "max_new_tokens": 8,
            "precision": "fp32",
            "engine": "server",
            "served": [{"ratio": 0, "model": live.model}],
            "shard_questions": 8,
        }
    )


def _run(live: LiveServer, folder: Path, spec: GenerateSpec) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STAGE, str(folder), live.url, spec.model_dump_json()],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def _shards(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((folder / "responses").glob("shard-*"))}


def _wait_for(folder: Path, shards: int, stage: subprocess.Popen[str]) -> None:
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until and stage.poll() is None:
        if len(_shards(folder)) >= shards:
            return
        time.sleep(0.05)
    pytest.fail(f"{len(_shards(folder))} shards: {stage.communicate(timeout=60)[0][-2000:]}")


def test_a_stage_killed_and_then_its_server_killed(live: LiveServer, tmp_path: Path) -> None:
    """First the stage dies, then the server under it; run again, nothing is lost or doubled."""
    folder, spec = tmp_path / "stage", _spec(live)
    stage = _run(live, folder, spec)
    _wait_for(folder, 2, stage)
    stage.kill()
    stage.wait()
    first = _shards(folder)
    _LOG.warning("the stage was killed with SIGKILL; %d of 8 shards are here", len(first))
    stage = _run(live, folder, spec)
    _wait_for(folder, len(first) + 2, stage)
    live.kill()
    said = stage.communicate(timeout=_SECONDS)[0]
    second = _shards(folder)
    assert stage.returncode == 1 and "what was answered is kept" in said, said
    assert len(second) < 8
    _LOG.warning("the server was killed with SIGKILL; %d of 8 shards are here", len(second))
    live.start()
    live.wait()
    stage = _run(live, folder, spec)
    said = stage.communicate(timeout=_SECONDS)[0]
    assert stage.returncode == 0, said
    last = _shards(folder)
    assert len(last) == 8
    assert last.items() >= second.items() and second.items() >= first.items(), "kept as they were"
    rows = [
        row
        for path in sorted((folder / "responses").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    times = Counter((row["question_id"], row["sample"]) for row in rows)
    _LOG.warning("%d responses, each once", len(times))
    assert len(times) == 64 * 3 and set(times.values()) == {1}
    assert {row["finish"] for row in rows} <= {"stop", "length"}
    assert len({row["text"] for row in rows}) > 64, "it samples"
    assert not list((folder / "responses").glob(".*"))
    check = json.loads((folder / "engine.json").read_text())["checks"]
    assert [(c["rule"], c["same"]) for c in check.values()] == [("text", True)]


def test_another_model_is_refused_before_it_answers(live: LiveServer, tmp_path: Path) -> None:
    """The name that is served is asked for, and the recipe's model is another one."""
    stage = _run(live, tmp_path / "stage", _spec(live, "other"))
    said = stage.communicate(timeout=_SECONDS)[0]
    assert stage.returncode == 1 and "is not" in said and "likeliest path" in said, said
    assert not _shards(tmp_path / "stage")
