"""Verdicts that need no judge: responses that say nothing, and answers that leave no doubt.

Nothing, and one phrase over and over, are worth 0 whoever judges. With ``rules_first`` three more
kinds of response are settled, and only where no reader could differ:

- the label itself, but for case, white space, an article, outer quotes or bold, and a final stop;
- one option of a choice question by its letter, its text or both, and nothing else; or a bare
  "yes" or "no" where the label is the one or the other;
- a bare number where the label is one: right when equal, wrong when more than 5 % off and not off
  by a power of ten. What lies between (rounding, percent, thousands) is a matter of judgement.

A unit, a further word, a second option: the judge reads it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from masters.data.answers import accepted_answers
from masters.data.questions import Question
from masters.rewards.judging.items import JudgeItem, JudgeVerdict
from masters.rewards.judging.material import visible

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
_LETTER = re.compile(r"\(?([a-z])(?:\)|[.:])?")
_TOLERANCE = 0.05
# Six words or sixteen pieces of text in a row: a list of six equal answers is the most that a
# person would still write down.
_WORD_COPIES, _PIECE_COPIES, _SHORTEST_PIECES = 6, 16, 64
_SHARE = 2 / 3


def without_judge(item: JudgeItem, *, rules_first: bool) -> JudgeVerdict | None:
    """The verdict of a rule that leaves no doubt; None for what the judge must read."""
    response = visible(item.response)
    labels = [visible(label) for label in accepted_answers(item.question)]
    if not response:
        return _verdict(0.0, "empty")
    if rules_first and _same(response) in map(_same, labels):
        return _verdict(1.0, "same text")
    if is_repetitive(response) and not any(map(is_repetitive, labels)):
        return _verdict(0.0, "repetitive")
    if not rules_first:
        return None
    found = [_exact(response, label, item.question) for label in labels]
    # Right by one answer is right; wrong is only what is wrong by every one of them.
    right = (one for one in found if one is not None and one.reward)
    return next(right, None if None in found else found[0] if found else None)


def is_repetitive(text: str) -> bool:
    """Whether a phrase over and over makes up two thirds of the text or more, up to its end.

    Counted in words (six copies), or in characters of a text of at least 64 (sixteen copies), for
    writing without spaces.
    """
    words = re.findall(r"\w+", text.casefold())
    letters = "".join(text.split())
    in_words = _loops(words, _WORD_COPIES)
    return in_words or (len(letters) >= _SHORTEST_PIECES and _loops(letters, _PIECE_COPIES))


def _loops(pieces: Sequence[str], copies: int) -> bool:
    """Whether the last two thirds or more of the pieces are a phrase at least ``copies`` times."""
    backwards = pieces[::-1]
    # The prefix function: border[i] is the longest proper prefix of the first i + 1 pieces that
    # ends there too; their period is what remains.
    border = [0] * len(backwards)
    for index in range(1, len(backwards)):
        length = border[index - 1]
        while length and backwards[index] != backwards[length]:
            length = border[length - 1]
        border[index] = length + (backwards[index] == backwards[length])
        covered = index + 1
        period = covered - border[index]
        if covered >= copies * period and covered >= _SHARE * len(backwards):
            return True
    return False


def _exact(response: str, label: str, question: Question) -> JudgeVerdict | None:
    if question.choices:
        wanted = _option(label, question.choices)
        picked = _option(response, question.choices)
        if wanted is None or picked is None:
            return None
        return _verdict(1.0, "same option") if picked == wanted else _verdict(0.0, "other option")
    said, truth = _same(response), _same(label)
    if {said, truth} <= {"yes", "no"}:
        return _verdict(0.0, "other of yes and no")
    value, wanted = _number(said), _number(truth)
    return None if value is None or wanted is None else _numeric(value, wanted)


def _numeric(value: float, wanted: float) -> JudgeVerdict | None:
    if value == wanted:
        return _verdict(1.0, "same number")
    if value == 0 or wanted == 0:
        return _verdict(0.0, "other number")
    power = round(math.log10(abs(value / wanted)))
    near = abs(abs(value) / 10.0**power - abs(wanted)) <= _TOLERANCE * abs(wanted)
    # The sign too may be a matter of wording ("fell by 3").
    return None if near else _verdict(0.0, "other number")


def _number(text: str) -> float | None:
    # Up to fifteen digits a float holds every decimal, so that equal means equal.
    short = len(text) <= 15
    return float(text.replace(",", "")) if short and _NUMBER.fullmatch(text) else None


def _option(text: str, choices: Sequence[str]) -> int | None:
    """The one option that a text is, by letter, text or both; None where it could be another."""
    said = _same(text)
    options = [_same(choice) for choice in choices]
    letters = "abcdefghijklmnopqrstuvwxyz"[: len(options)]
    # Options that are alike, or are themselves letters ("A" as the text of C), leave doubt.
    if len(set(options)) < len(options) or any(_LETTER.fullmatch(option) for option in options):
        return None
    if said in options:
        return options.index(said)
    letter = _LETTER.fullmatch(text.strip().casefold())
    if letter and letter[1] in letters:
        return letters.index(letter[1])
    for index, option in enumerate(options[:26]):
        if re.fullmatch(rf"\(?{letters[index]}[).:]+\s*{re.escape(option)}", said):
            return index
    return None


def _same(text: str) -> str:
    """The text without case, spare white space, outer quotes or bold, final stop, first article."""
    text = " ".join(text.casefold().split())
    before = None
    while before != text:
        before = text
        text = text.strip().removesuffix(".")
        for wrap in ("**", "*", '"', "'", "`", "\u201c"):
            close = "\u201d" if wrap == "\u201c" else wrap
            if len(text) > 2 * len(wrap) and text.startswith(wrap) and text.endswith(close):
                text = text[len(wrap) : -len(close)]
    return re.sub(r"^(?:the|an?) (?=\S)", "", text)


def _verdict(reward: float, reason: str) -> JudgeVerdict:
    return JudgeVerdict(reward=reward, reason=reason, by="rule")
