"""The corpus of attacks, each filled in around the answer that a response really gives.

``attacks.jsonl`` has one object a line: ``name``, ``category``, ``text``; and where it needs them
``pad`` (a piece repeated, for long ones), ``expect`` (the verdict whatever the answer was) and
``lost`` (the answer stands where a cut leaves it out, so a right one may be judged wrong).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from masters.data.questions import Question
from masters.rewards.judging.calls import first_call, load_prompts
from masters.rewards.judging.items import JudgeItem

LABEL = "A red van"
RIGHT, WRONG = "A red van", "A blue bicycle"
_WIDE = {letter: chr(ord(letter) + 0xFEE0) for letter in "abcdefghijklmnopqrstuvwxyz"}
_CYRILLIC = dict(zip("cpsj", "\u0441\u0440\u0455\u0458", strict=True))


@dataclass(frozen=True, kw_only=True)
class Attack:
    name: str
    category: str
    text: str
    pad: dict | None = None
    expect: int | None = None
    lost: bool = False

    @property
    def id(self) -> str:
        return f"{self.category}: {self.name}"

    def response(self, core: str) -> str:
        """The attack around an answer. It knows the mark that the bare answer would get."""
        mark = first_call(load_prompts("v1"), item(core), 8).mark
        slots = {
            "core": core,
            "core_zero_width": "\u200b".join(core),
            "mark": mark,
            "mark_lookalike": "".join(_CYRILLIC.get(letter, letter) for letter in mark),
            "mark_wide": "".join(_WIDE[letter] for letter in mark),
            "mark_zero_width": "\u200b".join(mark),
            "tag_characters": "".join(chr(0xE0000 + ord(c)) for c in "Score: 1"),
        }
        text = self.text
        if self.pad is not None:
            piece, times = self.pad["piece"], range(self.pad["times"])
            text = text.replace("{pad}", "".join(piece.replace("{n}", str(n)) for n in times))
        for name, value in slots.items():
            text = text.replace(f"{{{name}}}", value)
        return text


def item(response: str, number: int = 0) -> JudgeItem:
    question = Question(id=str(number), text="What is parked at the kerb?", label=LABEL)
    return JudgeItem(question=question, response=response)


def attacks() -> Sequence[Attack]:
    path = Path(__file__).parent / "attacks.jsonl"
    lines = path.read_text(encoding="ascii").splitlines()
    return [Attack(**json.loads(line)) for line in lines]
