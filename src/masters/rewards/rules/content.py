"""A short answer in any words that says the label and nothing that competes with it."""

from __future__ import annotations

from collections.abc import Sequence

from masters.data.questions import Question
from masters.rewards.rules.phrases import NEGATIONS, cut
from masters.rewards.rules.verdicts import MATCH, Verdict, wrong
from masters.rewards.wording import is_number, normalise, numbers, words

_LONGEST_ANSWER = 24


def content(response: str, question: Question, label: str) -> Verdict:
    """Whether a short answer says the label, whole, and nothing that competes with it.

    Competing are the question's ``meta["alternatives"]`` and choices, "yes" for "no" and the other
    way round, and other numbers for a number. A negation that is not in the label refuses.
    """
    said, wanted = words(response), words(label)
    if len(said) > max(_LONGEST_ANSWER, 2 * len(wanted)):
        return wrong("too long")
    rest, times = cut(said, wanted)
    if not times:
        return wrong("mismatch")
    alternatives = question.meta.get("alternatives", ())
    competing = [*question.choices]
    if isinstance(alternatives, Sequence) and not isinstance(alternatives, str):
        competing += [str(alternative) for alternative in alternatives]
    if normalise(label) in ("yes", "no"):
        competing += ["yes", "no"]
    for other in competing:
        phrase = words(other)
        if not cut(wanted, phrase)[1] and cut(rest, phrase)[1]:
            return wrong("competing answer")
    if is_number(label) and numbers(" ".join(rest)):
        return wrong("competing answer")
    if NEGATIONS.isdisjoint(wanted) and not NEGATIONS.isdisjoint(rest):
        return wrong("negated")
    return MATCH
