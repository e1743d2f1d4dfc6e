"""The client against a real server: ``transformers serve`` with a tiny model, on loopback."""

from __future__ import annotations

import io
import logging
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from masters.errors import ServerError, ServerGoneError
from masters.serving import Backoff, ChatRequest, ChatResult, Server
from tests.families import write_tiny
from tests.running import environment

pytestmark = pytest.mark.slow
for _module in ("fastapi", "uvicorn", "accelerate"):
    pytest.importorskip(_module, reason=f"transformers serve needs {_module}")

_LOG = logging.getLogger(__name__)
_ASKED = {"role": "user", "content": "what colour is the circle?"}
_START_SECONDS = 180


class LiveServer:
    """``transformers serve`` for one folder, on a port that stays the same."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.model = str(folder)
        self.home = home
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Starts it and returns at once."""
        with (self.home / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "transformers.cli.transformers", "serve",
                    self.model,
                    "--device", "cpu", "--host", "127.0.0.1", "--port", str(self.port),
                ],
                env={**environment(), "HF_HOME": str(self.home), "HF_HUB_OFFLINE": "1"},
                stdout=log, stderr=log,
            )  # fmt: skip

    def wait(self) -> None:
        """Returns when it serves."""
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        pytest.fail(f"it does not start:\n{(self.home / 'server.log').read_text()[-3000:]}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    home = tmp_path_factory.mktemp("serving")
    texts = [str(_ASKED["content"]), "red blue green circle square"]
    write_tiny(home / "judge", "idefics3", size="student", seed=1, texts=texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        server = LiveServer(home / "judge", home)
        server.start()
        try:
            server.wait()
            yield server
        finally:
            server.kill()


def _picture(colour: str) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(written, "PNG")
    return written.getvalue()


def test_text_and_images(live: LiveServer) -> None:
    server = Server(url=live.url, model=live.model, concurrency=3)
    server.check()
    text = ChatRequest(messages=(_ASKED,), max_tokens=12)
    asked = [
        text,
        ChatRequest(messages=(_ASKED,), max_tokens=12, images=(_picture("red"),)),
        ChatRequest(messages=(_ASKED,), max_tokens=12, images=(_picture("blue"),)),
        ChatRequest(messages=({"role": "system", "content": "green"}, _ASKED), max_tokens=12),
    ]
    first, second = (dict(server.complete(asked)) for _ in range(2))
    assert first == second  # temperature 0
    assert [first[index].error for index in range(4)] == [""] * 4
    # A random model's answers mean nothing, but they show that all of the question arrived.
    assert len({first[index].text for index in range(4)}) == 4


def test_another_model_is_refused(live: LiveServer) -> None:
    with pytest.raises(ServerError, match="pinned to") as refused:
        Server(url=live.url, model="Qwen/Qwen3-VL-2B-Instruct").check()
    assert not isinstance(refused.value, ServerGoneError)


def test_an_outage_survived(live: LiveServer) -> None:
    """Killed in the middle of 120 requests and started again: each is answered once."""
    requests = [
        ChatRequest(
            messages=({"role": "user", "content": f"what colour is circle {index}?"},),
            max_tokens=12,
        )
        for index in range(120)
    ]
    server = Server(
        url=live.url,
        model=live.model,
        concurrency=8,
        attempts=10,
        backoff=Backoff(first=0.5, longest=5.0),
    )
    undisturbed = dict(server.complete(requests))
    results: list[tuple[int, ChatResult]] = []
    for index, result in server.complete(requests):
        results.append((index, result))
        if len(results) == 40:
            live.kill()
            _LOG.warning("40 answers are here; the server was killed with SIGKILL")
            live.start()
    times = Counter(index for index, _ in results)
    errors = [result.error for _, result in results if result.error]
    _LOG.warning(
        "%d requests: %d answered once, %d more than once, %d never, %d errors",
        len(requests), sum(n == 1 for n in times.values()), sum(n > 1 for n in times.values()),
        len(requests) - len(times), len(errors),
    )  # fmt: skip
    assert times == Counter(range(120))
    assert errors == []
    assert dict(results) == undisturbed
