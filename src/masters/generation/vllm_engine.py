"""vLLM in its own process and environment, spoken to over pipes in JSON lines."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masters.errors import StageError
from masters.generation.engine import Completion
from masters.generation.sampling import SampleKey, Sampling
from masters.models.load import TokenIds

WORKER = Path(__file__).with_name("vllm_worker.py")
_TAIL_LINES = 20
_STOP_SECONDS = 20.0
_OF_RANKS = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
    "ROLE_", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_",
)  # fmt: skip
_FORBIDDEN = -100.0  # the lowest bias that vLLM takes


@dataclass(frozen=True, kw_only=True)
class VllmRequest:
    """One prompt and the samples wanted for it.

    Args:
        ids: of the chat prompt, one placeholder for each picture: vLLM multiplies them itself.
        images: the pictures, encoded.
        keys: of samples that follow each other.
    """

    ids: Sequence[int]
    images: Sequence[bytes]
    keys: tuple[SampleKey, ...]


def without_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what torchrun says of the ranks that it started.

    vLLM would take its own processes for some of them, and wait for a store that is not theirs.
    """
    return {name: value for name, value in environment.items() if not name.startswith(_OF_RANKS)}


class VllmEngine:
    """A model in a worker process; use as a context manager.

    A worker that dies, hangs or says what it should not is an error with the end of its log; the
    shard that it was at is not written.

    Args:
        python: interpreter of the environment with vLLM.
        options: arguments of ``vllm.LLM``.
        tokenizer: to make text of ids.
        ids: the model's special ids.
        rows: of its output head; those beyond ``ids.vocabulary`` are never sampled.
        log: file that takes what the worker prints.
        start_seconds: it counts as hung when the model is not loaded after so long.
        answer_seconds: the same for one call of ``generate``.
        worker: the script.

    Attributes:
        version: of vLLM.
    """

    def __init__(
        self,
        *,
        python: str,
        options: Mapping[str, Any],
        tokenizer: Any,
        ids: TokenIds,
        rows: int,
        log: Path,
        start_seconds: float,
        answer_seconds: float,
        worker: Path = WORKER,
    ) -> None:
        self._tokenizer, self._ids, self._rows = tokenizer, ids, rows
        self._log, self._answer_seconds = log, answer_seconds
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        try:
            with log.open("ab") as sink:
                # -I: neither this package nor our PYTHONPATH is seen there. A session of its own:
                # vLLM has children, and all of them end with it.
                self._process = subprocess.Popen(
                    [python, "-I", str(worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=sink, text=True, encoding="utf-8", start_new_session=True,
                    env=without_ranks(os.environ),
                )  # fmt: skip
        except OSError as error:
            raise StageError(
                f"runtime.vllm.python is {python!r}, which cannot be started: {error.strerror}. "
                "Set it to the interpreter of the environment that vLLM is installed in"
            ) from error
        threading.Thread(target=self._read, name="masters-vllm", daemon=True).start()
        try:
            self._say({"options": dict(options)})
            reply = self._next(time.monotonic() + start_seconds, "loading the model")
            if not isinstance(reply.get("ready"), str):
                raise self._wrong(f"said {reply!r} and not that it is ready")
            self.version: str = reply["ready"]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(
        self, requests: Sequence[VllmRequest], sampling: Sampling
    ) -> list[list[Completion]]:
        """The completions of every request, samples in key order.

        Raises:
            StageError: the worker died, hung, or answered what makes no sense.
        """
        until = time.monotonic() + self._answer_seconds
        self._say(
            {
                "sampling": self._sampling(sampling),
                "requests": [
                    {
                        "ids": list(request.ids),
                        "images": [base64.b64encode(image).decode() for image in request.images],
                        "n": len(request.keys),
                        "seed": request.keys[0].engine_seed,
                    }
                    for request in requests
                ],
            }
        )
        found: dict[int, list[Completion]] = {}
        while "done" not in (reply := self._next(until, "generating responses")):
            try:
                place, samples = reply["index"], reply["samples"]
                keys = requests[place].keys
                if place in found or len(samples) != len(keys):
                    raise ValueError
                pairs = zip(samples, keys, strict=True)
                found[place] = [self._completion(sample, key) for sample, key in pairs]
            except (KeyError, TypeError, ValueError, IndexError):
                raise self._wrong(f"answered {json.dumps(reply)[:200]}") from None
        if len(found) != len(requests):
            raise self._wrong(f"answered {len(found)} of {len(requests)} requests")
        return [found[place] for place in range(len(requests))]

    def close(self) -> None:
        """Ends the worker and its children; may be called again."""
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()  # the end of its input is the worker's sign to leave
        try:
            self._process.wait(_STOP_SECONDS if self._process.returncode is None else 0)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _sampling(self, sampling: Sampling) -> dict[str, Any]:
        """Keyword arguments of ``vllm.SamplingParams``, complete: nothing is left to defaults."""
        forbidden = [*self._ids.banned, *range(self._ids.vocabulary, self._rows)]
        return {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "repetition_penalty": sampling.repetition_penalty,
            "max_tokens": sampling.max_new_tokens,
            "stop_token_ids": list(self._ids.end),
            "ignore_eos": True,  # of its own end token: ours are stop_token_ids
            "logprobs": 0,  # of the sampled token alone
            "logit_bias": dict.fromkeys(forbidden, _FORBIDDEN) or None,
            "detokenize": False,
        }

    def _completion(self, sample: Mapping[str, Any], key: SampleKey) -> Completion:
        ids, logprobs = [int(i) for i in sample["ids"]], [float(x) for x in sample["logprobs"]]
        finish = sample["finish"]
        ended = bool(ids) and ids[-1] in self._ids.end
        if finish not in ("stop", "length") or len(ids) != len(logprobs) or not ids:
            raise ValueError
        if (finish == "stop") is not ended:
            raise ValueError
        return Completion(
            token_ids=ids,
            logprobs=logprobs,
            text=self._tokenizer.decode(ids, skip_special_tokens=True).strip(),
            finish=finish,
            seed=key.engine_seed,
        )

    # ------------------------------------------------------------------------------- the pipes

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError, UnicodeDecodeError):
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put(None)

    def _say(self, value: object) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(value) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._died("taking its work") from None

    def _next(self, until: float, doing: str) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            raise self._wrong(
                f"gives no answer {doing}; expected one within runtime.vllm.start_seconds or "
                "answer_seconds"
            ) from None
        if line is None:
            raise self._died(doing)
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError
        except ValueError:
            raise self._wrong(f"said {line.strip()[:200]!r}, which is no answer") from None
        return value

    def _died(self, doing: str) -> StageError:
        try:
            code = self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return self._wrong(f"closed its output {doing}")
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return self._wrong(f"died {doing} ({how})")

    def _wrong(self, said: str) -> StageError:
        """The error with the end of the worker's log; what is written stays written."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        tail = "\n    ".join(lines[-_TAIL_LINES:]) or "(it is empty)"
        return StageError(
            f"the vLLM worker {said}. Whole shards are kept: correct the cause and run the same "
            f"command again. The end of {self._log}:\n    {tail}"
        )
