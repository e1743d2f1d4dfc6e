"""What can go wrong with one request, and what that asks for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Literal

#: again: the fault may pass. busy: the same, and the server said that it is there but has too much
#: to do. own: it lies in this request. fatal: every request would meet it.
Kind = Literal["again", "busy", "own", "fatal"]

_OWN = frozenset({400, 413, 422})
_BUSY = frozenset({429, 529})
_AGAIN = frozenset({408, 409, 425})


class Fault(Exception):
    """An attempt that brought no answer.

    Attributes:
        kind: what it asks for.
        words: what happened, for a person.
        pause: how many seconds the server wants no request, if it said so.
        status: the HTTP status, or 0 if there was none.
    """

    def __init__(
        self, kind: Kind, words: str, *, pause: float | None = None, status: int = 0
    ) -> None:
        super().__init__(words)
        self.kind: Kind = kind
        self.words = words
        self.pause = pause
        self.status = status


def of_status(status: int, headers: Mapping[str, str], text: str) -> Fault:
    """What a reply with an error status asks for.

    Args:
        status: the HTTP status, 300 or more.
        headers: of the reply; names in any case if the mapping allows that, else in lower case.
        text: of the reply.
    """
    words = f"status {status}: {' '.join(text.split())[:300] or 'no words'}"
    if status in _OWN:
        return Fault("own", words, status=status)
    pause = retry_after(headers)
    if status in _BUSY or (status == 503 and pause is not None):
        return Fault("busy", words, pause=pause, status=status)
    if status in _AGAIN or status >= 500:
        return Fault("again", words, pause=pause, status=status)
    return Fault("fatal", words, status=status)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds a reply asks to wait: ``retry-after-ms``, or ``retry-after`` as seconds or date.

    A date is counted from the reply's own ``date``, because clocks differ. None if it says none,
    or what it says cannot be read.
    """
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / scale
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    until = _date(headers.get("retry-after", ""))
    if until is None:
        return None
    now = _date(headers.get("date", ""))
    return max(0.0, until - (time.time() if now is None else now))


def _date(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
