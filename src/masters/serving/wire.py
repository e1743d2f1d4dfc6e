"""One HTTP request through the official client, which neither retries nor interprets here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI, Timeout

from masters.serving.faults import Fault, of_status

_CONNECT_SECONDS = 10.0


class Wire:
    """The connections to one server; use as an asynchronous context manager.

    Args:
        url: of the interface, up to and with ``/v1``.
        key: sent as the bearer token; without one a placeholder is sent, never a key that happens
            to stand in the environment.
        timeout: seconds one request may take in all.
    """

    def __init__(self, url: str, key: str | None, timeout: float) -> None:
        self.key = key
        self.timeout = timeout
        self._client = AsyncOpenAI(
            base_url=url,
            api_key=key or "none",
            max_retries=0,
            timeout=Timeout(timeout, connect=min(_CONNECT_SECONDS, timeout)),
        )

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.close()

    async def chat(self, body: dict[str, Any]) -> bytes:
        """The reply to a chat request, as it came.

        Raises:
            Fault: nothing came, not all of it, or an error status.
        """
        return await self._bytes(
            lambda: self._client.chat.completions.with_raw_response.create(**body)
        )

    async def models(self) -> bytes:
        """The list of models that the server has; raises as ``chat`` does."""
        return await self._bytes(lambda: self._client.models.with_raw_response.list())

    async def _bytes(self, send: Callable[[], Awaitable[Any]]) -> bytes:
        try:
            # The client's own timeout is for each read; a body that drips never meets it.
            async with asyncio.timeout(self.timeout):
                return (await send()).content
        except (TimeoutError, APITimeoutError) as error:
            raise Fault("again", f"no answer within {self.timeout:g} s") from error
        except APIStatusError as error:
            reply = error.response
            fault = of_status(reply.status_code, reply.headers, reply.text)
            fault.words = self._without_key(fault.words)
            raise fault from None
        except APIConnectionError as error:
            cause = error.__cause__ or error
            words = f"the connection failed ({type(cause).__name__}: {cause})"
            raise Fault("again", self._without_key(words)) from None

    def _without_key(self, words: str) -> str:
        return words.replace(self.key, "***") if self.key else words


def shown(url: str) -> str:
    """A URL without the user and password that may stand in it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
