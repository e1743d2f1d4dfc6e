"""Text that is judged, made harmless: it can be read, but it cannot pose as ours.

A response may hold closing tags, chat tokens, role markers or characters nobody sees, by accident
or because it was rewarded for them. Three things keep it in its place. Nothing invisible is left.
No chat token survives: each begins with "<" or "[", and a space goes behind every one of those, so
that no tokenizer finds a special token and no reader loses a word. And every line begins with
"| ", between two lines with a mark that does not occur in any of the texts.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence

#: A response longer than the sum is judged by its first and its last characters, and says so.
HEAD, TAIL = 4000, 2000

_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]")
# Letters that show nothing: Hangul fillers, Braille blank, and the joiners of other scripts.
_BLANK = frozenset("\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\u034f")
_MARK_LETTERS = 8


def visible(text: str) -> str:
    """The text without what cannot be seen, its lines ending in "\\n".

    Zero-width characters, direction controls, tag characters, variation selectors, letters without
    ink and control characters go. Half a surrogate pair becomes U+FFFD. Letters stay as they are:
    compatibility forms matter (10\u00b2 is not 102), and words of other alphabets are words.
    """
    text = _LINE_ENDS.sub("\n", text)
    return text.translate(_SHOWN).strip()


class _Shown(dict[int, str]):
    """What is left of each character, worked out when one is first met."""

    def __missing__(self, code: int) -> str:
        self[code] = _shown(chr(code))
        return self[code]


_SHOWN = _Shown()


def _shown(character: str) -> str:
    if character in "\n\t":
        return character
    category = unicodedata.category(character)
    if category == "Cs":
        return "\ufffd"
    selector = "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
    if category in ("Cc", "Cf", "Cn", "Co") or selector or character in _BLANK:
        return ""
    # Full-width "<" and "[" become what some tokenizers would read them as.
    plain = unicodedata.normalize("NFKC", character)
    return plain if plain != character and set(plain) & set("<[>]|") else character


def harmless(text: str) -> str:
    """The visible text without chat tokens, and with at most one blank line at a time."""
    spaced = re.sub(r"([<\[])(?=\S)", r"\1 ", visible(text))
    lines = "\n".join(line.rstrip() for line in spaced.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", lines)


def block(title: str, text: str, mark: str, *, cut: bool = False) -> str:
    """The text as material: harmless, each line after "| ", between two lines with the mark.

    Args:
        title: a word of ours.
        mark: of ``mark_of``, over this text and all others of the same prompt.
        cut: leave out the middle of a text of more than ``HEAD + TAIL`` characters. The line that
            says so carries the mark, so that no text can claim to have been cut.
    """
    text = harmless(text)
    left_out = len(text) - HEAD - TAIL
    if cut and left_out > 0:
        note = f"=== {mark} {left_out} characters left out here"
        parts = [_quoted(text[:HEAD]), note, _quoted(text[-TAIL:])]
    else:
        parts = [_quoted(text)]
    return "\n".join([f"=== {mark} {title} begins", *parts, f"=== {mark} {title} ends"])


def _quoted(text: str) -> str:
    return "\n".join(f"| {line}" for line in text.split("\n"))


def mark_of(texts: Sequence[str], turn: str) -> str:
    """Eight letters that none of the texts contains: the same ones for the same texts and turn.

    A hash of all that is shown, so that no text can be written towards its own mark by guessing;
    and should one hold its mark all the same, the next one is taken until none does.

    Args:
        texts: everything that is shown between marks.
        turn: which call it is, so that another try has another mark.
    """
    shown = [form for text in texts for form in (text, harmless(text))]
    folded = "\n".join(shown).casefold()
    count = 0
    while True:
        content = json.dumps([turn, count, *texts])
        digest = hashlib.sha256(content.encode()).digest()
        # Letters without vowels or digits: no word and no number can come out.
        mark = "".join("bcdfghjkmnpqrstv"[byte % 16] for byte in digest[:_MARK_LETTERS])
        if mark not in folded:
            return mark
        count += 1
