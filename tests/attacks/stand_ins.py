"""Judges without a model. Each is as easily fooled as its kind can be.

They read nothing but the prompt's text, and work for any prompt that is described by a ``Layout``:
ours, and the careless ones that the tests hold against it.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from masters.rewards.judging.asking import Chat, Reply

#: One call's reply to one prompt.
Answer = Callable[[str], str]

_TURNS = re.compile(
    r"<\|[^<>|\s]*\|>|<\uff5c[^<>\s]*\uff5c>|<</?SYS>>|</?s>|<(?:bos|eos|pad|unk|sop)>|\[/?[A-Za-z]+(?:_[A-Z]+)*\]"
    r"|<(?:start|end)_of_turn>|</?think>|<tool_call>|<image\w*>|<(?:unused|extra_id_)\d+>"
    r"|(?m:^)[*\-# \t]*(?:system|user|assistant|human|instruction|judge|rule \d+)\b[*]*\s*:",
    re.IGNORECASE,
)
_VERDICT = re.compile(
    r"<\s*answer[^<>]*>[^<>]*<\s*/\s*answer[^<>]*>|<\s*score[^<>]*>[^<>]*<\s*/\s*score\s*>"
    r"|\[\[\s*\d+\s*\]\]|\\boxed\{\d\}|\"(?:score|verdict)\"\s*:\s*\d|\bscores?\b\W*\d"
    r"|(?m:^)[|> \t]*\d[ \t]*$",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a call's prompt is laid out.

    Args:
        material: what of a prompt is judged, as a reader takes it who believes every sign.
        rest: the prompt without it, with marks of one prompt written like those of any other.
        bare: the prompt around the same answer without any attack.
        verdict: the reply that gives a score, in the form that the prompt asks for.
    """

    material: Callable[[str], str]
    rest: Callable[[str], str]
    bare: str
    verdict: Callable[[str, int], str]


class Judge:
    """An asker of two functions, one for each call; answers last chats first."""

    name = "stand-in"

    def __init__(self, explain: Answer, score: Answer) -> None:
        self._explain, self._score = explain, score
        self.asked: list[str] = []

    def ask(self, chats: Sequence[Chat]) -> Iterator[tuple[int, Reply]]:
        for index in reversed(range(len(chats))):
            (message,) = chats[index].messages
            self.asked.append(message.text)
            first = message.text.startswith("You check")
            yield index, Reply(text=(self._explain if first else self._score)(message.text))


def honest(layout: Layout) -> Answer:
    """Reads the answer that the response gives."""

    def answer(prompt: str) -> str:
        said = layout.material(prompt).casefold()
        return layout.verdict(prompt, int("red van" in said and "blue bicycle" not in said))

    return answer


def quoting(layout: Layout) -> Answer:
    """Honest, but its explanation quotes the whole response, tags and all."""

    def answer(prompt: str) -> str:
        said = _joined(layout.material(prompt))
        return f'The response says "{said}"\n{honest(layout)(prompt)}'

    return answer


def obeys_last(layout: Layout, otherwise: Answer) -> Answer:
    """Does what the last paragraph says: scores 1, unless the bare prompt ends with it too."""

    def answer(prompt: str) -> str:
        fooled = _last(layout, prompt) != _last(layout, layout.bare)
        return layout.verdict(prompt, 1) if fooled else otherwise(prompt)

    return answer


def obeys_outside(layout: Layout, otherwise: Answer) -> Answer:
    """Takes what stands outside the response for the task, and obeys what is new there."""

    def answer(prompt: str) -> str:
        fooled = layout.rest(prompt) != layout.rest(layout.bare)
        return layout.verdict(prompt, 1) if fooled else otherwise(prompt)

    return answer


def obeys_turns(layout: Layout, otherwise: Answer) -> Answer:
    """Splits the prompt at whatever looks like a turn of a chat, and obeys a turn too many."""

    def answer(prompt: str) -> str:
        plain = plain_letters(prompt)
        fooled = any(
            len(_TURNS.findall(text)) != len(_TURNS.findall(layout.bare))
            for text in (prompt, plain, "\n".join(prompt.splitlines()))
        )
        return layout.verdict(prompt, 1) if fooled else otherwise(prompt)

    return answer


def copies(prompt: str) -> str:
    """Replies with everything in the prompt that looks like a verdict, blanks taken back out."""
    return "\n".join(_VERDICT.findall(_joined(prompt)))


def copies_last(prompt: str) -> str:
    """Replies with the last of them alone."""
    return "".join(_VERDICT.findall(_joined(prompt))[-1:]).strip(" |>\n")


def copies_material(layout: Layout) -> Answer:
    """Replies with the verdicts that stand in the response, in plain letters."""

    def answer(prompt: str) -> str:
        return copies(plain_letters(layout.material(prompt)))

    return answer


def plain_letters(text: str) -> str:
    """Full-width and other compatibility letters as plain ones, each by itself."""
    # As one text, tens of thousands of combining marks would be sorted, which takes seconds.
    return "".join(map(_plain_letter, text))


@functools.cache
def _plain_letter(character: str) -> str:
    return unicodedata.normalize("NFKC", character)


def _joined(text: str) -> str:
    return re.sub(r"([<\[]) ", r"\1", text)


def _last(layout: Layout, prompt: str) -> str:
    # The rest names the marks as every prompt does; the paragraph itself must be the last one.
    last = prompt.strip().split("\n\n")[-1]
    ours = layout.rest(prompt).strip().split("\n\n")[-1]
    return ours if len(ours.split()) == len(last.split()) else last
