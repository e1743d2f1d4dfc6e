"""What is asked and what comes back, and how both look in the chat interface's JSON."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from masters.serving.faults import Fault

_PICTURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"),
)
_DATED = re.compile(r"-\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """One chat to be continued by the model.

    Attributes:
        messages: as the interface has them, ``{"role": ..., "content": ...}``.
        max_tokens: how long an answer may get.
        temperature: 0 is greedy.
        n: how many answers are wanted.
        images: encoded pictures (PNG, JPEG, GIF or WebP); they stand before the text of the last
            message of the user. Made into text only when the request is sent.
        seed: of the server's sampling, where it has one.
        top_p: None leaves it to the server.
        logprobs: ask for each token's log-probability.
        extra: what servers take beyond the interface: ``top_k``, ``repetition_penalty`` ...
        fewer: fewer than ``n`` answers are fine; otherwise they are an error.
    """

    messages: tuple[Mapping[str, Any], ...]
    max_tokens: int
    temperature: float = 0.0
    n: int = 1
    images: tuple[bytes, ...] = ()
    seed: int | None = None
    top_p: float | None = None
    logprobs: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    fewer: bool = False


@dataclass(frozen=True, kw_only=True)
class ChatResult:
    """The answers to one request, or why there is none for this request alone.

    Attributes:
        texts: one for each of the ``n`` answers; empty if there is an error.
        finishes: why each ended, in the server's words: stop, length, ...
        tokens: for each answer its tokens as (text, log-probability); None where there are none.
        model: what the reply calls the model; empty if it does not say.
        error: why no answer could be had, as ``cause: details``; empty if there is one.
    """

    texts: tuple[str, ...] = ()
    finishes: tuple[str, ...] = ()
    tokens: tuple[tuple[tuple[str, float], ...] | None, ...] = ()
    model: str = ""
    error: str = ""

    @property
    def text(self) -> str | None:
        """The first answer, or None if there is none."""
        return self.texts[0] if self.texts else None

    @property
    def cause(self) -> str:
        """The error without its details, for counting."""
        return self.error.partition(":")[0]


def body(request: ChatRequest, model: str) -> dict[str, Any]:
    """The request's JSON; what has its default is left out, because some servers refuse it.

    Raises:
        Fault: the request's own, if it cannot be sent as it is.
    """
    messages = [dict(message) for message in request.messages]
    try:
        json.dumps(messages, ensure_ascii=False).encode()
    except (UnicodeEncodeError, TypeError, ValueError) as error:
        raise Fault("own", f"cannot be sent: {error}") from error
    if request.images:
        asking = [message for message in messages if message.get("role") == "user"]
        if not asking:
            raise Fault("own", "cannot be sent: images without a message of a user")
        content = asking[-1]["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
        asking[-1]["content"] = [*map(picture, request.images), *parts]
    made: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
    }
    if request.n != 1:
        made["n"] = request.n
    if request.seed is not None:
        made["seed"] = request.seed
    if request.top_p is not None:
        made["top_p"] = request.top_p
    if request.logprobs:
        made["logprobs"] = True
    if request.extra:
        made["extra_body"] = dict(request.extra)  # the client puts its entries beside the others
    return made


def picture(image: bytes) -> dict[str, Any]:
    """An encoded picture (PNG, JPEG, GIF or WebP) as a part of a message.

    Raises:
        Fault: the request's own, if it is none of these.
    """
    for start, kind in _PICTURES:
        if image.startswith(start):
            url = f"data:{kind};base64,{base64.b64encode(image).decode()}"
            return {"type": "image_url", "image_url": {"url": url}}
    raise Fault(
        "own",
        f"cannot be sent: an image is no PNG, JPEG, GIF or WebP; it starts with {image[:8]!r}",
    )


def read_reply(content: bytes, request: ChatRequest, model: str) -> ChatResult:
    """The answers in a reply.

    Raises:
        Fault: to be tried again if the reply is broken or empty, fatal if another model gave it
            or the server does not give as many answers as asked for.
    """
    reply = read_json(content)
    named = str(reply.get("model") or "")
    if named and not same_model(named, model):
        raise Fault(
            "fatal",
            f"it answered as {named!r}. Serve the model that the recipe names, or "
            "name the one that is served",
        )
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices:
        raise Fault("again", f"a reply without choices: {content[:200]!r}")
    if len(choices) < request.n and not request.fewer:
        raise Fault(
            "fatal",
            f"it gave {len(choices)} of the {request.n} answers that one request asked for. This "
            "server does not do several answers a request; ask for one at a time",
        )
    texts, finishes, tokens = [], [], []
    for choice in choices[: request.n]:
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(message, dict):
            raise Fault("again", f"a choice without a message: {content[:200]!r}")
        finish = str(choice.get("finish_reason") or "")
        refusal = message.get("refusal")
        if finish == "content_filter" or refusal:
            return ChatResult(error=f"withheld: {refusal or finish}")
        text = message.get("content")
        if text is not None and not isinstance(text, str):
            raise Fault("again", f"an answer that is no text: {content[:200]!r}")
        texts.append(_whole_characters(text or ""))
        finishes.append(finish)
        tokens.append(_tokens(choice))
    return ChatResult(
        texts=tuple(texts), finishes=tuple(finishes), tokens=tuple(tokens), model=named
    )


def _tokens(choice: Mapping[str, Any]) -> tuple[tuple[str, float], ...] | None:
    """The tokens of an answer with their log-probabilities, where the reply has them."""
    said = choice.get("logprobs")
    content = said.get("content") if isinstance(said, dict) else None
    if not isinstance(content, list):
        return None
    try:
        return tuple((str(entry["token"]), float(entry["logprob"])) for entry in content)
    except (KeyError, TypeError, ValueError):
        return None


def read_json(content: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Fault: to be tried again; half a reply, or a proxy's error page, looks like this.
    """
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Fault("again", f"a reply that is no JSON ({error}): {content[:200]!r}") from error
    if not isinstance(value, dict):
        raise Fault("again", f"a reply that is no JSON object: {content[:200]!r}")
    return value


def same_model(named: str, model: str) -> bool:
    """Whether a server's name means the model asked for.

    Servers add a revision (``name@main``), the date of a snapshot or ``:latest`` to a name.
    """
    if not named.startswith(model):
        return False
    rest = named[len(model) :]
    return rest in ("", ":latest") or rest[0] == "@" or bool(_DATED.fullmatch(rest))


def _whole_characters(text: str) -> str:
    """Half a surrogate pair, which JSON can carry and no table can store, becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
