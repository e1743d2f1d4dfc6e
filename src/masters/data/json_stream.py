"""The items of one long JSON list, one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

_BLOCK = 1 << 20
_SPACE = " \t\n\r"


def json_items(path: Path) -> Iterator[object]:
    """The items of the list that a file holds, read as far as it is iterated over.

    Raises:
        TypeError: the file holds another value; the message is its type's name.
        ValueError: it is no JSON in UTF-8 (as far as it was read).
        OSError: it cannot be read.
    """
    decode = json.JSONDecoder().raw_decode
    with open(path, encoding="utf-8") as file:
        text = _Window(file.read)
        if text.next() != "[":
            raise TypeError(type(decode(text.rest())[0]).__name__)
        text.at += 1
        if text.next() == "]":
            text.at += 1
        else:
            while True:
                yield text.item(decode)
                separator = text.next()
                text.at += 1
                if separator == "]":
                    break
                if separator != ",":
                    raise ValueError(f"expected ',' or ']' after an item, found {separator!r}")
                text.next()
        if text.next():
            raise ValueError(f"expected nothing behind the list, found {text.next()!r}")


class _Window:
    """The part of a file around the place being read."""

    def __init__(self, read: Callable[[int], str]) -> None:
        self._read = read
        self._text, self.at, self._block = "", 0, _BLOCK

    def next(self) -> str:
        """The next character that is no space, "" at the end; ``at`` stops at it."""
        while True:
            while self.at < len(self._text) and self._text[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self._text):
                return self._text[self.at]
            if not self._more():
                return ""

    def rest(self) -> str:
        """What is left of the window."""
        return self._text[self.at :]

    def item(self, decode: Callable[[str, int], tuple[object, int]]) -> object:
        """The value that begins at ``at``.

        Raises:
            ValueError: there is none, though the file was read to its end.
        """
        while True:
            try:
                value, end = decode(self._text, self.at)
            except ValueError:
                # It may go on behind the window. Twice as much each time: the work stays linear.
                if not self._more():
                    raise
                continue
            if end < len(self._text) or not self._more():  # a number may go on as well
                self.at, self._block = end, _BLOCK
                return value

    def _more(self) -> bool:
        new = self._read(self._block)
        if new:
            self._text, self.at = self._text[self.at :] + new, 0
            self._block *= 2
        return bool(new)
