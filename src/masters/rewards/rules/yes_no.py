"""Yes or no: MME, POPE, HallusionBench."""

from __future__ import annotations

import re

from masters.data.questions import Question
from masters.errors import DataError
from masters.rewards.rules.verdicts import Verdict, right_or, wrong
from masters.rewards.wording import words

_LABELS = {"yes": True, "y": True, "1": True, "true": True} | {
    "no": False, "n": False, "0": False, "false": False
}  # fmt: skip
_SAID = {"yes": True, "no": False}
# "no" that answers nothing: "no doubt", "player no. 5".
_IDLE = re.compile(
    r"\bno[\s-]+(?:doubt|question|matter|wonder|idea|clue|longer|one)\b|(?<=\w\s)no\.?\s*\d", re.I
)
_BOTH = re.compile(
    r"\b(?:yes\s*/\s*no|no\s*/\s*yes|(?:yes|no)\s+(?:or|and)\s+(?:yes|no))\b"
    r"|^\W*(?:yes\W+no|no\W+yes)\W*$",
    re.IGNORECASE,
)


def yes_no(response: str, question: Question, label: str) -> Verdict:
    """Whether a response says the label's yes or no, and says it once.

    The word that opens the response counts; after any other opening, the only one of the two that
    is said as a word. "y" and "n" count alone.

    Raises:
        DataError: the label is neither.
    """
    wanted = _LABELS.get(" ".join(words(label)))
    if wanted is None:
        raise DataError(
            f"question {question.id!r}: label {label!r} is neither yes nor no; expected one of "
            f"{sorted(_LABELS)}. Correct the data, or choose another rule."
        )
    said = _said(response)
    if isinstance(said, str):
        return wrong(said)
    return right_or("mismatch", said == wanted)


def _said(response: str) -> bool | str:
    """What was said, or why it cannot be told."""
    plain = _IDLE.sub(" ", response)
    if _BOTH.search(plain):
        return "both yes and no"
    said = words(plain)
    if len(said) == 1 and said[0] in ("y", "n"):
        return said[0] == "y"
    found = [word for word in said if word in _SAID]
    if not found:
        return "neither yes nor no"
    if said[0] in _SAID or len(set(found)) == 1:
        return _SAID[found[0]]
    return "both yes and no"
