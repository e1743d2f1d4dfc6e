"""What a judge is to this package: something that answers chats of text, greedily, in any order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message of a chat; text only, a judge sees no image."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, kw_only=True)
class Chat:
    """One call.

    Args:
        messages: in order; the last one is the user's.
        max_tokens: the longest reply, in the judge's tokens.
    """

    messages: tuple[Message, ...]
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came back for one chat.

    Args:
        text: None where no reply can be had for this chat alone: its content was refused, say.
        error: then why, in a few words that are the same for the same cause.
    """

    text: str | None
    error: str = ""


class Asker(Protocol):
    """A model that judges: the local engine, a server, or a test's stand-in."""

    @property
    def name(self) -> str:
        """Who judges, as the cache and the tables call it; another model has another name."""
        ...

    def ask(self, chats: Sequence[Chat]) -> Iterator[tuple[int, Reply]]:
        """Each chat's place with its reply, in any order, each exactly once, as they come.

        Greedy (temperature 0). A judge that is gone raises; what was yielded before stands.
        """
        ...
