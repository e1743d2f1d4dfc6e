"""ANLS, how near an answer's letters come to a gold answer's: DocVQA, InfoVQA, ST-VQA."""

from __future__ import annotations

from collections.abc import Sequence


def anls(response: str, golds: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of one question (Biten et al., ICCV 2019).

    For each gold answer NL is the Levenshtein distance over the longer one's length, and the
    similarity 1 - NL where that is 0.5 or more, else 0; the best one counts. Case makes no
    difference, nor does white space around the answer or how much of it stands between two words.
    At NL = 0.5 the paper's equation gives 0; DocVQA's page and program give 0.5, and so does this.

    Returns:
        0, or from 0.5 to 1.
    """
    said = _plain(response)
    return max((_similarity(said, _plain(gold)) for gold in golds), default=0.0)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(one: str, other: str) -> float:
    longest = max(len(one), len(other))
    if not longest:
        return 1.0
    # No text more than twice as long can be near enough, so long responses cost nothing.
    if 2 * abs(len(one) - len(other)) > longest:
        return 0.0
    distance = levenshtein(one, other)
    return 1 - distance / longest if 2 * distance <= longest else 0.0


def levenshtein(one: str, other: str) -> int:
    """How many characters to insert, delete or replace to make one text of the other."""
    above = list(range(len(other) + 1))
    for row, left in enumerate(one, start=1):
        here = [row]
        for column, right in enumerate(other, start=1):
            replaced = above[column - 1] + (left != right)
            here.append(min(replaced, above[column] + 1, here[column - 1] + 1))
        above = here
    return above[-1]
