"""Responses from an OpenAI-compatible server: text that comes back is tokenised once, here."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from masters.data.questions import Question
from masters.generation.engine import Completion
from masters.generation.sampling import SampleKey, Sampling
from masters.models.encode import PromptText, chat_messages
from masters.serving import ChatRequest, ChatResult, Server
from masters.serving.chat import picture

Messages = tuple[Mapping[str, Any], ...]
_PART = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, kw_only=True)
class ChatQuestion:
    """One question as chat messages, and the samples wanted for it.

    Args:
        messages: makes them, pictures included, when the request is sent: a shard's pictures are
            not held together. Called in another thread.
    """

    messages: Callable[[], Messages]
    keys: tuple[SampleKey, ...]


def question_messages(question: Question, images: Sequence[bytes], prompt: PromptText) -> Messages:
    """The conversation of `chat_messages`, its pictures as data URLs in their places."""
    left = iter(images)
    made: list[Mapping[str, Any]] = []
    for message in chat_messages(question, prompt):
        parts = [picture(next(left)) if p["type"] == "image" else p for p in message["content"]]
        alone = len(parts) == 1 and parts[0]["type"] == "text"
        # Some servers take a list for messages with pictures only.
        made.append({**message, "content": parts[0]["text"] if alone else parts})
    return tuple(made)


class ServerEngine:
    """A model behind a server. What it samples cannot be made again by us, only recorded.

    A question's samples are asked for together. What is lacking then is asked one by one, with its
    own seed: a server that ignores ``n`` gives one of them, one that refuses it none. A server seen
    to give one is asked one by one from then on.

    Args:
        server: where the model is served.
        tokenizer: the student's and the teacher's, which have their ids in common.
        end: the id that ends a response that stopped by itself.
        logprobs: ask for each token's log-probability, to compare them. A response is then cut to
            the first tokens that the server and its text's ids agree about: a text may be cut into
            tokens in more ways than the one in which it was sampled.
    """

    def __init__(self, server: Server, tokenizer: Any, *, end: int, logprobs: bool = False) -> None:
        self._server = server
        self._tokenizer = copy.deepcopy(tokenizer)  # it keeps settings between calls
        self._end = end
        self._logprobs = logprobs
        self._one_by_one = False

    def generate(
        self, questions: Sequence[ChatQuestion], sampling: Sampling
    ) -> list[list[Completion]]:
        """The completions of every question, in the order of its keys.

        A sample that the server refuses, or ends in a way other than ``stop`` and ``length``, is
        ``failed``, without ids.

        Raises:
            ServerError: no request can succeed, or the server is gone.
        """
        found: list[dict[int, Completion]] = [{} for _ in questions]
        if not self._one_by_one:
            together = [(place, range(len(q.keys))) for place, q in enumerate(questions)]
            for (place, _), result in self._asked(questions, together, sampling):
                found[place] = self._read(questions[place].keys, result)
                self._one_by_one |= len(result.texts) == 1 < len(questions[place].keys)
        lacking = [
            (place, range(sample, sample + 1))
            for place, question in enumerate(questions)
            for sample in range(len(question.keys))
            if sample not in found[place]
        ]
        for (place, samples), result in self._asked(questions, lacking, sampling):
            keys = [questions[place].keys[sample] for sample in samples]
            own = self._read(keys, result).get(0)
            found[place][samples[0]] = own or _failed(keys[0], result)
        pairs = zip(questions, found, strict=True)
        return [[own[sample] for sample in range(len(q.keys))] for q, own in pairs]

    def _asked(
        self,
        questions: Sequence[ChatQuestion],
        wanted: Sequence[tuple[int, range]],
        sampling: Sampling,
    ) -> Iterator[tuple[tuple[int, range], ChatResult]]:
        def request(place: int) -> ChatRequest:
            question, samples = questions[wanted[place][0]], wanted[place][1]
            return ChatRequest(
                messages=question.messages(),
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                n=len(samples),
                seed=question.keys[samples[0]].engine_seed,
                logprobs=self._logprobs,
                extra=beyond_the_interface(sampling),
                fewer=True,
            )

        for place, result in self._server.complete(_Made(len(wanted), request)):
            yield wanted[place], result

    def _read(self, keys: Sequence[SampleKey], result: ChatResult) -> dict[int, Completion]:
        """What can be used of a reply, by its place among the keys asked for."""
        tokens = result.tokens or (None,) * len(result.texts)
        found: dict[int, Completion] = {}
        for place, (text, finish) in enumerate(zip(result.texts, result.finishes, strict=True)):
            if finish in ("stop", "length"):
                seed = keys[place].engine_seed
                found[place] = self._completion(text, finish, tokens[place], seed)
        return found

    def _completion(
        self, text: str, finish: str, tokens: Sequence[tuple[str, float]] | None, seed: int
    ) -> Completion:
        encoded = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        ids = [*encoded["input_ids"], *([self._end] if finish == "stop" else [])]
        logprobs = None if tokens is None else self._agreed(ids, tokens)
        return Completion(
            token_ids=ids if logprobs is None else ids[: len(logprobs)],
            logprobs=logprobs,
            text=text.strip(),
            finish=finish,
            seed=seed,
        )

    def _agreed(self, ids: Sequence[int], tokens: Sequence[tuple[str, float]]) -> list[float]:
        """The log-probs of the first tokens that both cut the text into."""
        agreed: list[float] = []
        for token, (said, logprob) in zip(ids, tokens, strict=False):
            # Part of a character looks like any other part of one.
            if _PART in said or self._tokenizer.decode([token]) != said:
                break
            agreed.append(logprob)
        return agreed


def beyond_the_interface(sampling: Sampling) -> dict[str, Any]:
    """What of the sampling OpenAI's interface has no word for; left out where it says nothing."""
    extra: dict[str, Any] = {}
    if sampling.top_k:
        extra["top_k"] = sampling.top_k
    if sampling.repetition_penalty != 1.0:
        extra["repetition_penalty"] = sampling.repetition_penalty
    return extra


def _failed(key: SampleKey, result: ChatResult) -> Completion:
    ended = f"it ended with finish_reason {result.finishes[0]!r}" if result.finishes else "no text"
    return Completion(
        token_ids=[], logprobs=None, text="", finish="failed", seed=key.engine_seed,
        error=result.error or ended,
    )  # fmt: skip


class _Made(Sequence[ChatRequest]):
    """Requests made when their turn comes; the client reads them by index, each once.

    Args:
        size: how many.
        make: called in the client's thread, one at a time.
    """

    def __init__(self, size: int, make: Callable[[int], ChatRequest]) -> None:
        self._size, self._make = size, make
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> ChatRequest: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ChatRequest]: ...
    def __getitem__(self, index: int | slice) -> ChatRequest | Sequence[ChatRequest]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._size))]
        with self._lock:
            return self._make(index)
