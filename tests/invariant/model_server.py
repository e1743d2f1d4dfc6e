"""A chat server on loopback that answers with a tiny model, with or without log-probs."""

from __future__ import annotations

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

from masters.data.questions import Question
from masters.generation.engine import Completion, Request, TransformersEngine
from masters.generation.sampling import SampleKey, Sampling
from masters.models.encode import PromptText, encode_prompt
from masters.models.load import load_model, load_processor, token_ids


class ModelServer:
    """Use as a context manager.

    Args:
        folder: the model.
        name: that it is served under.
        logprobs: gives those of each token when asked.
        greedy: never samples, whatever is asked.
        refuse: a key of the request's body that it answers with status 400.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        logprobs: bool = False,
        greedy: bool = False,
        refuse: str = "",
    ) -> None:
        self.name, self._logprobs, self._greedy, self._refuse = name, logprobs, greedy, refuse
        model, self._processor = load_model(str(folder)), load_processor(str(folder))
        self._ids = token_ids(model, self._processor)
        self._engine = TransformersEngine(model, self._processor, self._ids)
        self._one = threading.Lock()

    def __enter__(self) -> ModelServer:
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self._refuse in body:
            return 400, {"error": {"message": f"unknown field {self._refuse}"}}
        content = body["messages"][-1]["content"]
        parts: list[Any] = (
            [{"type": "text", "text": content}] if isinstance(content, str) else content
        )
        files = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        images = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in files]
        question = Question(id="q", text=parts[-1]["text"], images=tuple("x" for _ in images))
        prompt = encode_prompt(self._processor, question, images, PromptText())
        keys = tuple(
            SampleKey(
                seed=body.get("seed", 0) + n, question_id="", source="", ratio=0, round=0, sample=0
            )
            for n in range(body.get("n", 1))
        )
        sampling = Sampling(
            temperature=0.0 if self._greedy else body["temperature"],
            top_p=body.get("top_p", 1.0),
            top_k=body.get("top_k", 0),
            repetition_penalty=body.get("repetition_penalty", 1.0),
            max_new_tokens=body["max_tokens"],
        )
        with self._one:
            [own] = self._engine.generate([Request(prompt=prompt, keys=keys)], sampling)
        wanted = self._logprobs and body.get("logprobs", False)
        choices = [self._choice(completion, wanted) for completion in own]
        return 200, {"model": self.name, "choices": choices}

    def _choice(self, completion: Completion, logprobs: bool) -> dict[str, Any]:
        ended = completion.finish == "stop"
        words = completion.token_ids[:-1] if ended else completion.token_ids
        decode = self._processor.tokenizer.decode
        text = decode(words, skip_special_tokens=True)
        choice: dict[str, Any] = {
            "message": {"role": "assistant", "content": text},
            "finish_reason": completion.finish,
        }
        if logprobs and completion.logprobs is not None:
            pairs = zip(completion.token_ids, completion.logprobs, strict=True)
            content = [{"token": decode([token]), "logprob": logp} for token, logp in pairs]
            choice["logprobs"] = {"content": content}
        return choice


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: ModelServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": self.owner.name}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self._send(*self.owner.answer(body))

    def _send(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
