"""Questions with several gold answers: DocVQA's spellings of one, VQA's ten annotators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from masters.data.questions import Question

ANSWERS = "answers"
"""Their key in a question's ``meta``."""
_VOTES = 3


def answer_texts(value: object) -> tuple[str, ...] | None:
    """The texts of a list of answers; None where it is no such list.

    Args:
        value: of a row: texts or numbers, or VQA's mappings with the key ``answer``.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        return None
    found = [one.get("answer") if isinstance(one, Mapping) else one for one in value]
    if not all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in found):
        return None
    return tuple(str(one).strip() for one in found)


def most_given(answers: Sequence[str]) -> str:
    """The answer that is given most often and is not blank, the first of those; "" for none."""
    counts = Counter(answer for answer in answers if answer)
    return counts.most_common(1)[0][0] if counts else ""


def gold_answers(question: Question) -> tuple[str, ...]:
    """All gold answers of a question in order: ``meta["answers"]``, else its label alone.

    A question with neither has none.
    """
    several = answer_texts(question.meta.get(ANSWERS))
    if several is not None:
        return several
    return () if question.label is None else (question.label,)


def accepted_answers(question: Question) -> tuple[str, ...]:
    """What a reader may accept as right, each wording once: the label, then other gold answers.

    Where annotators voted (an answer was given three times or more), only what at least three of
    them gave: the number that VQA v2 asks for full marks; the rest may be slips. A question
    without label has none.
    """
    if question.label is None:
        return ()
    counts = Counter(answer for answer in gold_answers(question) if answer)
    voted = max(counts.values(), default=0) >= _VOTES
    kept = [answer for answer, count in counts.items() if not voted or count >= _VOTES]
    return tuple(dict.fromkeys([question.label, *kept]))
