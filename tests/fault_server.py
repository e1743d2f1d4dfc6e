"""A chat server on loopback that does what a script says, wrong things above all."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: What the script may return for the nth time (from 0) that a question comes: one of the names of
#: ``_Handler``'s methods, or an HTTP status with headers.
Act = str | tuple[int, dict[str, str]]
Script = Callable[[str, int], Act]


def well(question: str, nth: int) -> Act:
    """Nothing goes wrong."""
    return "answer"


class FaultServer:
    """Use as a context manager; ``stop`` and ``start`` are an outage, on the same port.

    Attributes:
        served: the model's name, in the list and in replies.
        clock: stamps each request in ``asked``.
        asked: (time, question) of every request that came.
        answered: how often each question was answered in full.
        most_open: the largest number of requests at one time.
        says: what it answers to a question.
    """

    def __init__(
        self,
        script: Script = well,
        *,
        served: str = "judge",
        hold: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.script = script
        self.served = served
        self.hold = hold
        self.clock = clock
        self.listing: Act = "list"
        self.says: Callable[[str], str] = lambda question: f"answer to {question}"
        self.asked: list[tuple[float, str]] = []
        self.answered: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.most_open = 0
        self.running = False
        self._open = 0
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> FaultServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listens; again on the port it had."""
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = _Listener(("127.0.0.1", self._port), handler)
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.running = True

    def stop(self) -> None:
        """Stops listening and drops every connection, as a killed server does."""
        if not self.running:
            return
        self.running = False
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        with self._lock:
            dropped = list(self._sockets)
        for connection in dropped:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def count(self, question: str) -> int:
        """How often a question came."""
        with self._lock:
            return sum(asked == question for _, asked in self.asked)

    def begins(self, question: str, headers: dict[str, str], body: dict[str, Any]) -> int:
        with self._lock:
            nth = sum(asked == question for _, asked in self.asked)
            self.asked.append((self.clock(), question))
            self.headers.append(headers)
            self.bodies.append(body)
            self._open += 1
            self.most_open = max(self.most_open, self._open)
            return nth

    def ends(self) -> None:
        with self._lock:
            self._open -= 1

    def gave(self, question: str) -> None:
        with self._lock:
            self.answered[question] += 1

    def holds(self, connection: socket.socket, *, open: bool) -> None:
        with self._lock:
            (self._sockets.add if open else self._sockets.discard)(connection)


class _Listener(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that gave up is part of the play


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    owner: FaultServer

    def setup(self) -> None:
        super().setup()
        self.owner.holds(self.connection, open=True)

    def finish(self) -> None:
        self.owner.holds(self.connection, open=False)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._does(self.owner.listing, "")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        content = body["messages"][-1]["content"]
        question = content if isinstance(content, str) else content[-1]["text"]
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.body = body
        nth = self.owner.begins(question, headers, body)
        try:
            if self.owner.hold:
                time.sleep(self.owner.hold)
            self._does(self.owner.script(question, nth), question)
        finally:
            self.owner.ends()

    def _does(self, act: Act, question: str) -> None:
        if isinstance(act, str):
            getattr(self, act)(question)
        else:
            status, headers = act
            error = {"error": {"message": f"status {status}, {self.headers['authorization']}"}}
            self._send(json.dumps(error).encode(), status=status, headers=headers)

    def _send(
        self,
        content: bytes,
        *,
        status: int = 200,
        headers: dict[str, str] | None = None,
        length: int | None = None,
        kind: str = "application/json",
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def _reply(self, question: str, **changes: Any) -> bytes:
        message = {"role": "assistant", "content": self.owner.says(question)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return json.dumps({"model": self.owner.served, "choices": [choice], **changes}).encode()

    def answer(self, question: str) -> None:
        self._send(self._reply(question))
        self.owner.gave(question)

    def many(self, question: str) -> None:
        """As many answers as asked for, each drawn by its own seed, as vLLM does."""
        self._drawn(question, range(self.body.get("n", 1)))

    def one(self, question: str) -> None:
        """One answer, however many were asked for."""
        self._drawn(question, range(1))

    def one_at_a_time(self, question: str) -> None:
        """Status 400 where several are asked for."""
        if "n" in self.body:
            self._does((400, {}), question)
        else:
            self.one(question)

    def _drawn(self, question: str, samples: range, **changes: Any) -> None:
        """Answers that tell the seed they were drawn from; their tokens are characters."""
        choices = []
        for i in samples:
            text = f"{question}:{self.body['seed'] + i}"
            message = {"role": "assistant", "content": text}
            choice = {"index": i, "message": message, "finish_reason": "stop", **changes}
            if self.body.get("logprobs"):
                tokens = [{"token": t, "logprob": -0.5} for t in [*text, "<end>"]]
                choice["logprobs"] = {"content": tokens}
            choices.append(choice)
        self._send(self._reply(question, choices=choices))
        self.owner.gave(question)

    def cut(self, question: str) -> None:
        """One answer, stopped by the limit."""
        self._drawn(question, range(1), finish_reason="length")

    def tool(self, question: str) -> None:
        """One that ended in a way no answer should."""
        self._drawn(question, range(1), finish_reason="tool_calls")

    def list(self, question: str) -> None:
        self._send(json.dumps({"data": [{"id": self.owner.served}]}).encode())

    def echo(self, question: str) -> None:
        """Any model's name is repeated."""
        self._send(self._reply(question, model=self.owner.bodies[-1]["model"]))

    def wrong_model(self, question: str) -> None:
        self._send(self._reply(question, model="another"))

    def revision(self, question: str) -> None:
        self._send(self._reply(question, model=f"{self.owner.served}@main"))

    def no_choices(self, question: str) -> None:
        self._send(self._reply(question, choices=[]))

    def no_message(self, question: str) -> None:
        self._send(self._reply(question, choices=[{"index": 0}]))

    def filtered(self, question: str) -> None:
        message = {"role": "assistant", "content": None}
        choice = {"index": 0, "message": message, "finish_reason": "content_filter"}
        self._send(self._reply(question, choices=[choice]))

    def half_json(self, question: str) -> None:
        reply = self._reply(question)
        self._send(reply[: len(reply) // 2])

    def half_body(self, question: str) -> None:
        """Fewer bytes than announced, then the connection is gone."""
        reply = self._reply(question)
        self._send(reply[: len(reply) // 2], length=len(reply))
        self.drop(question)

    def not_utf8(self, question: str) -> None:
        self._send(self._reply(question).replace(b"answer", b"\xff\xfe\xff"))

    def html(self, question: str) -> None:
        """What a proxy says, with status 200."""
        self._send(b"<html>Bad gateway</html>", kind="text/html")

    def not_object(self, question: str) -> None:
        self._send(b'["no", "object"]')

    def drop(self, question: str) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def hang(self, question: str) -> None:
        """Nothing comes, for longer than any client of the tests waits."""
        self._wait(30.0)
        self.drop(question)

    def drip(self, question: str) -> None:
        """One byte at a time: each read succeeds and the whole takes longer than anyone waits."""
        reply = self._reply(question)
        self._send(b"", length=len(reply))
        for at in range(len(reply)):
            self.wfile.write(reply[at : at + 1])
            time.sleep(0.05)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self.owner.running and time.monotonic() < until:
            time.sleep(0.02)
