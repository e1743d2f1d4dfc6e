"""Who judges: a model run here, or one behind a server. Both answer chats of text, greedily."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masters.artifacts import StageContext, fingerprint
from masters.errors import StageError
from masters.generation.engine import Engine, Request, TransformersEngine
from masters.generation.sampling import SampleKey, Sampling
from masters.models.chat import ChatEncoder
from masters.models.encode import EncodedPrompt
from masters.models.load import DTYPES
from masters.models.memory import doing
from masters.recipe import Judge, Prompt, Runtime
from masters.rewards.judging.asking import Asker, Chat, Reply
from masters.specs import LocalJudge
from masters.stages.opening import model_folder, model_identity, open_model
from masters.stages.servers import open_server

if TYPE_CHECKING:
    from masters.serving import ChatRequest, Server

_KEY = SampleKey(seed=0, question_id="", source="judge", ratio=0, round=0, sample=0)
_DIGITS = 12


def open_asker(judge: Judge, local: LocalJudge | None, context: StageContext) -> Asker:
    """The judge that the recipe names; nothing is loaded or reached before it is asked.

    Args:
        local: the model that judges here; None for a server.
    """
    if local is not None:
        return LocalAsker(local, context)
    return ServerAsker(server_of(judge, context.runtime))


def server_of(judge: Judge, runtime: Runtime) -> Server:
    """The server that judges, with its key from the environment.

    Raises:
        StageError: the recipe has no address.
    """
    if judge.name is None:
        raise StageError("a server judges, but the judge has no name there; expected judge.name")
    return open_server(runtime, judge.name, does="judges")


def local_name(local: LocalJudge, inputs: Mapping[str, Path]) -> str:
    """What verdicts of a model run here are kept under: other weights have another name."""
    identity = {"model": model_identity(local.model, inputs), "precision": local.precision}
    return f"teacher:{local.name}@{fingerprint(identity)[:_DIGITS]}"


class LocalAsker:
    """A model that answers chats through the transformers engine, the longest together.

    Args:
        local: the model; it is loaded when first asked, which cached verdicts spare.
        context: of the stage that asks; its inputs may hold the model.
    """

    def __init__(self, local: LocalJudge, context: StageContext) -> None:
        self._local, self._context = local, context
        self._name = local_name(local, context.inputs)
        self._opened: tuple[Engine, ChatEncoder] | None = None

    @property
    def name(self) -> str:
        """``teacher:<name>@<12 digits of its fingerprint>``."""
        return self._name

    def ask(self, chats: Sequence[Chat]) -> Iterator[tuple[int, Reply]]:
        """Each chat's place with its reply, batch by batch, as they come."""
        if not chats:
            return
        engine, encode = self._open()
        prompts = [encode([(m.role, m.text) for m in chat.messages]) for chat in chats]
        for batch in self._batches(chats, prompts):
            sampling = Sampling.greedy(chats[batch[0]].max_tokens)
            requests = [Request(prompt=prompts[place], keys=(_KEY,)) for place in batch]
            with doing("generating verdicts"):
                results = engine.generate(requests, sampling)
            for place, completions in zip(batch, results, strict=True):
                yield place, Reply(text=completions[0].text)

    def _batches(
        self, chats: Sequence[Chat], prompts: Sequence[EncodedPrompt]
    ) -> Iterator[list[int]]:
        """Places of about equal length and the same limit, as many as run together."""
        size = self._context.runtime.generation_batch
        lengths = [(chat.max_tokens, len(p.ids)) for chat, p in zip(chats, prompts, strict=True)]
        order = sorted(range(len(chats)), key=lambda place: (lengths[place], place))
        batch: list[int] = []
        for place in order:
            full = len(batch) == size
            if batch and (full or lengths[place][0] != lengths[batch[0]][0]):
                yield batch
                batch = []
            batch.append(place)
        yield batch

    def _open(self) -> tuple[Engine, ChatEncoder]:
        if self._opened is None:
            local, context = self._local, self._context
            opened = open_model(
                model_folder(local.model, context.inputs),
                Prompt(image_backend="pil"),  # it sees no image
                context.runtime,
                precision=local.precision,
                teacher=True,
            )
            engine = TransformersEngine(
                opened.model,
                opened.processor,
                opened.ids,
                batch_rows=context.runtime.generation_batch,
                precision=DTYPES[local.precision],
            )
            self._opened = engine, ChatEncoder(opened.processor, opened.ids.banned)
        return self._opened


class ServerAsker:
    """A model behind an OpenAI-compatible server.

    Args:
        server: checked when it is first asked.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._checked = False

    @property
    def name(self) -> str:
        """``server:<served model>``."""
        return f"server:{self._server.model}"

    def ask(self, chats: Sequence[Chat]) -> Iterator[tuple[int, Reply]]:
        """Each chat's place with its reply, as they come.

        Raises:
            ServerError: the server refuses the key or the model, or is gone.
        """
        if not chats:
            return
        if not self._checked:
            self._server.check()
            self._checked = True
        for place, result in self._server.complete([_request(chat) for chat in chats]):
            yield place, Reply(text=result.text, error=result.error)


def _request(chat: Chat) -> ChatRequest:
    from masters.serving import ChatRequest

    messages: tuple[dict[str, Any], ...] = tuple(
        {"role": message.role, "content": message.text} for message in chat.messages
    )
    return ChatRequest(messages=messages, max_tokens=chat.max_tokens, temperature=0.0)
