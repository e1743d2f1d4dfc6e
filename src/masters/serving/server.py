"""A model behind an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from masters.errors import ServerError
from masters.serving.background import results
from masters.serving.backoff import Backoff
from masters.serving.chat import ChatRequest, ChatResult

if TYPE_CHECKING:
    from masters.serving.session import Session

_CHECKS = 3


@dataclass(frozen=True, kw_only=True)
class Server:
    """One model on one server.

    Attributes:
        url: of the interface, up to and with ``/v1``.
        model: the name it is served under.
        key: the bearer token, if it wants one; never shown.
        concurrency: at most this many requests are open at a time.
        timeout: seconds one request may take in all.
        attempts: how often a request is sent before the server counts as gone.
        backoff: the waits between attempts.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    concurrency: int = 16
    timeout: float = 120.0
    attempts: int = 6
    backoff: Backoff = field(default_factory=Backoff, repr=False)

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ServerError(
                f"runtime.server.url is {self.url!r}, not the address of a server; give it as "
                "http://host:8000/v1"
            )
        for name in ("concurrency", "timeout", "attempts"):
            if not getattr(self, name) > 0:
                raise ServerError(
                    f"runtime.server.{name} is {getattr(self, name)}; give a number above 0"
                )

    def complete(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, ChatResult]]:
        """Yields (index, result) of every request exactly once, in the order in which they come.

        Requests are read by index when their turn comes, so a sequence may make them then. A
        request that cannot be answered has its error in its result. Stopping early, or Ctrl-C,
        drops the requests that are open.

        Raises:
            ServerGoneError: the server gives no answer any more; all that came has been yielded.
            ServerError: no request can succeed: key, model or path.
        """
        if requests:
            yield from results(partial(self._complete, requests))

    async def _complete(
        self, requests: Sequence[ChatRequest], put: Callable[[tuple[int, ChatResult]], None]
    ) -> None:
        async with self._session() as session:
            await session.all(requests, concurrency=self.concurrency, put=put)

    def check(self) -> tuple[str, ...]:
        """Makes sure that the server is there and that ``model`` is what it serves.

        It lists its models and is asked a small question; both, because some servers list nothing
        and some answer to any name.

        Returns:
            The names of the models that it lists; empty if it lists none.

        Raises:
            ServerGoneError: it cannot be reached.
            ServerError: it refuses the key or the model, or serves another one.
        """
        # A wrong address should be told soon.
        quick = replace(self, attempts=min(_CHECKS, self.attempts))
        [listed] = results(quick._check)
        return listed

    async def _check(self, put: Callable[[tuple[str, ...]], None]) -> None:
        from masters.serving.checking import check

        async with self._session() as session:
            put(await check(session))

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Session]:
        # Imported here: the client costs half a second that `masters plan` need not pay.
        from masters.serving.session import Session
        from masters.serving.wire import Wire, shown

        async with Wire(self.url, self.key, self.timeout) as wire:
            yield Session(
                wire,
                model=self.model,
                where=shown(self.url),
                attempts=self.attempts,
                backoff=self.backoff,
            )
