"""Text from outside as people see it: what would steer a page or a terminal is made harmless."""

from __future__ import annotations

import re
import unicodedata

_TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def shown(text: str) -> str:
    """The text with control characters, and marks that turn the reading direction, as signs.

    New lines and tabs stay. What models write may move a terminal's cursor or hide what follows.
    """
    return text if text.isascii() and text.isprintable() else "".join(map(_shown, text))


def markdown(text: str) -> str:
    """The text as one line of Markdown that shows it: a cell of a table, an item of a list."""
    return re.sub(r"([\\`\[\]<>|])", r"\\\1", shown(" ".join(text.split())))


def _shown(character: str) -> str:
    if character in "\n\t":
        return character
    kind = unicodedata.category(character)
    if kind == "Cc":
        return chr(0x2400 + ord(character)) if ord(character) < 32 else "\N{REPLACEMENT CHARACTER}"
    turning = unicodedata.bidirectional(character) in _TURNING
    return "\N{REPLACEMENT CHARACTER}" if kind == "Cs" or turning else character
