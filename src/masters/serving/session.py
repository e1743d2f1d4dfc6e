"""Many requests to one server at once: who asks when, again, and until when."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from masters.errors import ServerError, ServerGoneError
from masters.serving.backoff import Backoff
from masters.serving.chat import ChatRequest, ChatResult, body, read_reply
from masters.serving.faults import Fault
from masters.serving.wire import Wire

_LOG = logging.getLogger(__name__)
#: Any server answers this at once.
SMALL = ChatRequest(messages=({"role": "user", "content": "Hi"},), max_tokens=1)


class Session:
    """The requests of one call, and what they know together about the server.

    Two things are shared. A pause that the server asks one request for holds for all. And every
    answer is a *sign of life*: a request whose attempts are used up waits for one from another
    request or, when all in flight are waiting, asks a small question itself. Without a sign the
    server is gone. With one the request gets its attempts once more, and when these fail too
    while others are answered, that is an error of this request alone. So a restart of the server
    costs no request, and a request that no server can answer does not stop the others.

    Args:
        wire: to the server.
        model: asked for by name.
        where: the server, as shown to a person.
        attempts: how often a request is sent before it waits for a sign of life.
        backoff: the waits between.
    """

    def __init__(
        self, wire: Wire, *, model: str, where: str, attempts: int, backoff: Backoff
    ) -> None:
        self.wire = wire
        self.model = model
        self.where = where
        self.attempts = attempts
        self.backoff = backoff
        self._not_before = float("-inf")
        self._signs = 0
        self._failing = False
        self._working = 0
        self._waiting = 0
        self._changed = asyncio.Condition()
        self._asking = asyncio.Lock()

    async def all(
        self,
        requests: Sequence[ChatRequest],
        *,
        concurrency: int,
        put: Callable[[tuple[int, ChatResult]], None],
    ) -> None:
        """Puts the result of every request, once, as it comes.

        Raises:
            ServerGoneError: no sign of life after every attempt.
            ServerError: no request can succeed (key, model, path).
        """
        rest = iter(range(len(requests)))
        self._working = min(concurrency, len(requests))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._working):
                    group.create_task(self._worker(rest, requests, put))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _worker(
        self,
        rest: Iterator[int],
        requests: Sequence[ChatRequest],
        put: Callable[[tuple[int, ChatResult]], None],
    ) -> None:
        for index in rest:
            put((index, await self.answer(requests[index])))
        self._working -= 1
        await self._tell()

    async def answer(self, request: ChatRequest) -> ChatResult:
        """The result of one request, whatever it takes; raises as ``all`` does."""
        try:
            made = body(request, self.model)
        except Fault as fault:
            return ChatResult(error=fault.words)
        for again in (False, True):
            last = await self.attempt(request, made)
            if isinstance(last, ChatResult):
                return last
            await self._sign(last)
            if again:
                break
        return ChatResult(
            error=f"unanswered: {2 * self.attempts} attempts failed while the server answers "
            f"others; the last: {last.words}"
        )

    async def attempt(self, request: ChatRequest, made: dict[str, Any]) -> ChatResult | Fault:
        """The result, or the last fault when the attempts are used up; raises as ``once`` does."""
        failures = tries = 0
        seen = self._signs
        while True:
            try:
                return await self.once(request, made)
            except Fault as fault:
                if fault.kind == "own":
                    return ChatResult(error=fault.words)
                last = fault
            alive = self._signs > seen
            seen = self._signs
            failures += 1
            # That the server is busy with others uses up no attempt of this one.
            tries += not (last.kind == "busy" and alive)
            if tries > 1 and not alive and not self._failing:
                self._failing = True
                _LOG.warning("%s gives no answer: %s; asking again", self.where, last.words)
            if tries >= self.attempts:
                return last
            await self.backoff.sleep(self.backoff.pause(failures))

    async def once(self, request: ChatRequest, made: dict[str, Any]) -> ChatResult:
        """One attempt, when no pause forbids it.

        Raises:
            Fault: it brought no answer.
            ServerError: no request can succeed.
        """
        while (wait := self._not_before - self.backoff.clock()) > 0:
            # The jitter keeps all from asking in the moment the pause ends.
            await self.backoff.sleep(wait + self.backoff.pause(1))
        try:
            result = read_reply(await self.wire.chat(made), request, self.model)
        except Fault as fault:
            await self._note(fault)
            raise
        await self._alive()
        return result

    async def _note(self, fault: Fault) -> None:
        """What a fault tells about the server."""
        if fault.kind == "fatal":
            raise self.refusal(fault)
        if fault.kind == "own":
            await self._alive()
            return
        if fault.pause:
            if fault.pause > self.backoff.longest_asked:
                raise ServerGoneError(
                    f"the server at {self.where} wants no request for {fault.pause:.0f} s, and at "
                    f"most {self.backoff.longest_asked:.0f} s are waited ({fault.words}). Run the "
                    "same command then; what was answered is kept"
                )
            self._not_before = max(self._not_before, self.backoff.clock() + fault.pause)

    async def _alive(self) -> None:
        self._signs += 1
        if self._failing:
            self._failing = False
            _LOG.warning("%s answers again", self.where)
        await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _sign(self, last: Fault) -> None:
        """Returns when the server has answered anything from now on.

        Raises:
            ServerGoneError: it answers nobody.
        """
        signs = self._signs
        self._waiting += 1
        await self._tell()
        try:
            while self._signs == signs:
                async with self._changed:
                    await self._changed.wait_for(
                        lambda: self._signs > signs or self._waiting >= self._working
                    )
                if self._signs > signs:
                    return
                async with self._asking:
                    if self._signs == signs:
                        await self._ask_small(last)
        finally:
            self._waiting -= 1

    async def _ask_small(self, last: Fault) -> None:
        try:
            await self.once(SMALL, body(SMALL, self.model))
        except Fault as fault:
            if fault.kind != "own":
                raise self.gone(last) from None

    def gone(self, last: Fault) -> ServerGoneError:
        """The error of a server that answers nobody."""
        return ServerGoneError(
            f"the server at {self.where} gives no answer, {self.attempts} attempts in a row; the "
            f"last: {last.words}. Start it again, or set runtime.server.url to one that runs, and "
            "run the same command; what was answered is kept"
        )

    def refusal(self, fault: Fault) -> ServerError:
        """The error of a fault that every request would meet: who, what, and what to set."""
        key = "set the variable that runtime.server.key_variable names to a key that"
        sent = "The key was refused" if self.wire.key else "No key was sent"
        advice = {
            401: f". {sent}: {key} it takes",
            403: f". To ask it for this model, {key} may",
            404: ". Let runtime.server.url end where the interface begins (usually /v1), and name "
            "a model that is served",
        }.get(fault.status, "")
        return ServerError(
            f"the server at {self.where}, asked for model {self.model!r}: {fault.words}{advice}"
        )
