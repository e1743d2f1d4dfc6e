"""ChartQA's relaxed accuracy: the whole answer is the number, within 5 %, or the same text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from masters.rewards.rules.amounts import amount
from masters.rewards.rules.numeric import near
from masters.rewards.rules.verdicts import Verdict, right_or

# "What year ...", "In which two years ...", "the year with ...", "when did ...".
_ASKS_YEAR = re.compile(
    r"\b(?:which|what)\s+(?:\w+\s+)?years?\b(?!\s*\d)"
    r"|\b(?:is|was|give|name|find)\s+the\s+(?:\w+\s+)?year\b(?!\s*\d)"
    r"|^\W*when\b",
    re.IGNORECASE,
)
_YEAR = re.compile(r"1[0-9]{3}|20[0-9]{2}")


def relaxed(response: str, golds: Sequence[str], asked: str) -> Verdict:
    """Within 5 % of a gold number, or the same text as a gold answer (Masry et al., 2022, 5.1).

    The response has to be the number and nothing else; what counts as one, see ``amount``. "45 %",
    "45" and "0.45" are read as in the rule "numeric". Text is compared but for case, white space,
    quotes and a final period. Where the question asks for a year, 5 % would be a century: a year
    has to be met exactly.

    Args:
        golds: one gold answer or several, of which any will do.
        asked: the question's text.
    """
    return right_or("mismatch", any(_same(response, gold, asked) for gold in golds))


def _same(response: str, gold: str, asked: str) -> bool:
    if _text(response) == _text(gold):
        return True
    found, wanted = amount(response), amount(gold)
    if found is None or wanted is None:
        return False
    if _YEAR.fullmatch(gold.strip()) and _ASKS_YEAR.search(asked):
        return found == wanted
    return near(found, wanted)


def _text(answer: str) -> str:
    plain = " ".join(unicodedata.normalize("NFKC", answer).casefold().split())
    return plain.strip("\"'*\u201c\u201d\u2018\u2019 ").removesuffix(".").rstrip()
