"""Whole words in order within other words."""

from __future__ import annotations

NEGATIONS = frozenset(
    "not no never neither nor none without isnt arent wasnt doesnt dont cannot cant".split()
)
"""As ``wording.words`` writes them."""


def cut(text: list[str], phrase: list[str]) -> tuple[list[str], int]:
    """The text without the phrase's occurrences (as whole words in order), and their number.

    A bar is left where one stood, so that words on both sides do not meet.
    """
    if not phrase:
        return text, 0
    kept: list[str] = []
    index = times = 0
    while index < len(text):
        if text[index : index + len(phrase)] == phrase:
            kept.append("|")
            index, times = index + len(phrase), times + 1
        else:
            kept.append(text[index])
            index += 1
    return kept, times
