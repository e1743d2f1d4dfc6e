"""Accuracy rewards by rule: does a response give the label's answer?

Every rule returns 1 or 0 and says why. Rules are strict where a loose reading could be gamed: a
response that names two numbers, two options or two colours has not answered.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

from masters.data.questions import Question
from masters.errors import DataError
from masters.rewards.wording import is_number, normalise, numbers, words

Rule = Literal["exact", "normalised", "numeric", "choice", "content", "auto"]

_TOLERANCE = 0.05
_LONGEST_ANSWER = 24
_NEGATIONS = frozenset(
    "not no never neither nor none without isnt arent wasnt doesnt dont cannot cant".split()
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a response is worth.

    Args:
        reward: 1.0 for the label's answer, 0.0 otherwise.
        reason: a few words, the same for the same cause, so that they can be counted.
    """

    reward: float
    reason: str


_MATCH = Verdict(reward=1.0, reason="match")


def verify(rule: Rule, response_text: str, question: Question) -> Verdict:
    """The verdict of a rule on a response.

    Args:
        rule: "exact" (the same text but for white space around it), "normalised" (the same words,
            see ``wording.words``), "numeric" (one number within 5 % of the label), "choice" (one
            option by letter or text), "content" (a short answer that says the label and no
            competing one) or "auto", see ``rule_for``.
        response_text: the decoded response, without special tokens.
        question: with its label.

    Raises:
        DataError: the question has no label, or a choice question's label is none of its choices.
    """
    label = question.label
    if label is None:
        raise DataError(
            f"question {question.id!r}: has no label; expected one to judge responses against. "
            "Add its answer to the data."
        )
    if not response_text.strip():
        return _wrong("empty")
    match rule:
        case "auto":
            return verify(rule_for(question), response_text, question)
        case "exact":
            return _MATCH if response_text.strip() == label.strip() else _wrong("mismatch")
        case "normalised":
            return _normalised(response_text, label)
        case "numeric":
            return _numeric(response_text, label)
        case "choice":
            return _choice(response_text, question, label)
        case "content":
            return _content(response_text, question, label)
        case _:
            assert_never(rule)


def rule_for(question: Question) -> Rule:
    """The rule that "auto" stands for: the first that fits the question.

    "choice" with choices; "content" where the training label is worded differently from the label;
    "numeric" where the label is a number (in digits or words); "normalised" otherwise. A year is a
    number too: name "normalised" for data where 5 % is too kind.
    """
    if question.choices:
        return "choice"
    if question.training_label not in (None, question.label):
        return "content"
    return "numeric" if is_number(question.label or "") else "normalised"


def _wrong(reason: str) -> Verdict:
    return Verdict(reward=0.0, reason=reason)


def _normalised(response: str, label: str) -> Verdict:
    return _MATCH if normalise(response) == normalise(label) else _wrong("mismatch")


def _numeric(response: str, label: str) -> Verdict:
    """Relaxed accuracy: within 5 % of the label; a label of 0 must be met exactly.

    "45 %" and "0.45" count as equal, and so do "45 %" and "45": data and models write both. A
    label that is no number falls back to the normalised rule.
    """
    expected = numbers(label)
    if len(expected) != 1:
        return _normalised(response, label)
    found = list(dict.fromkeys(numbers(response)))
    if len(found) != 1:
        return _wrong("several numbers" if found else "no number")
    (wanted, wanted_percent), (value, percent) = expected[0], found[0]
    readings = [(value, wanted)]
    if percent and not wanted_percent:
        readings.append((value / 100, wanted))
    if wanted_percent and not percent:
        readings.append((value, wanted / 100))
    near = any(
        math.isfinite(a) and math.isfinite(b) and abs(a - b) <= _TOLERANCE * abs(b) + 1e-12 * abs(b)
        for a, b in readings
    )
    return _MATCH if near else _wrong("mismatch")


def _choice(response: str, question: Question, label: str) -> Verdict:
    wanted = _choice_index(label, question.choices)
    if wanted is None:
        raise DataError(
            f"question {question.id!r}: label {label!r} is none of its choices "
            f"{list(question.choices)}; expected a choice's text or letter. Correct the data."
        )
    named = _options_named(response, question.choices)
    if len(named) != 1:
        return _wrong("several options" if named else "no option")
    return _MATCH if named == {wanted} else _wrong("mismatch")


def _choice_index(label: str, choices: Sequence[str]) -> int | None:
    texts = [normalise(choice) for choice in choices]
    if label in choices:
        return choices.index(label)
    if normalise(label) in texts:
        return texts.index(normalise(label))
    letter = re.fullmatch(r"\(?([A-Za-z])[).]?", label.strip())
    index = _position(letter[1]) if letter else len(choices)
    return index if index < len(choices) else None


def _options_named(response: str, choices: Sequence[str]) -> set[int]:
    """The options a response picks: by its text alone, else by letter, else by text within."""
    texts = [normalise(choice) for choice in choices]
    whole = normalise(response)
    if whole in texts:
        return {texts.index(whole)}
    letters, rest = _letters(response, len(choices))
    if not letters:
        return _texts_within(words(response), texts)
    # "(B) cat" where B is the dog has picked both.
    if normalise(rest) in texts:
        letters.add(texts.index(normalise(rest)))
    return letters


def _letters(response: str, count: int) -> tuple[set[int], str]:
    """Options named by letter, and the text after the letter the response starts with."""
    last = chr(ord("A") + min(count, 26) - 1)
    capital, either = f"[A-{last}]", f"[A-{last}a-{last.lower()}]"
    text = re.sub(r"[*\"'`]", "", response).strip()
    several = re.match(rf"\(?{either}\)?(?:\s*(?:,|/|&|\bor\b|\band\b)\s*\(?{either}\b\)?)+", text)
    if several and not re.match(r"\s*\w", text[several.end() :]):
        named = re.findall(rf"(?<!\w){either}(?!\w)", several[0])
        return {_position(letter) for letter in named}, ""
    # A bare capital before further words counts, but not the words "A" and "I".
    word = r"A\s+(?!because|since)[^\W\d]|I\s"
    marked = rf"\(({either})\)|({either})(?=[).:,]|$)"
    start = re.match(rf"(?:{marked}|((?!{word}){capital})(?=\s))[).:,\s]*", text)
    stated = re.findall(
        r"(?i:\b(?:answer|option|choice)\b(?:\s+is\b)?)[:\s]*"
        rf"(?:\(({either})\)|((?!{word}){capital})\b)",
        text,
    )
    found = {next(group for group in groups if group) for groups in stated}
    if start:
        found.add(next(group for group in start.groups() if group))
    return {_position(letter) for letter in found}, text[start.end() :] if start else ""


def _position(letter: str) -> int:
    return ord(letter.upper()) - ord("A")


def _texts_within(response: list[str], texts: Sequence[str]) -> set[int]:
    """Options whose text stands in the response, longer ones first so that parts don't count."""
    found: set[int] = set()
    for index in sorted(range(len(texts)), key=lambda i: -len(texts[i].split())):
        response, times = _cut(response, texts[index].split())
        if times:
            found.add(index)
    return found


def _content(response: str, question: Question, label: str) -> Verdict:
    """Whether a short answer says the label, whole, and nothing that competes with it.

    Competing are the question's ``meta["alternatives"]`` and choices, "yes" for "no" and the other
    way round, and other numbers for a number. A negation that is not in the label refuses.
    """
    said, wanted = words(response), words(label)
    if len(said) > max(_LONGEST_ANSWER, 2 * len(wanted)):
        return _wrong("too long")
    rest, times = _cut(said, wanted)
    if not times:
        return _wrong("mismatch")
    alternatives = question.meta.get("alternatives", ())
    competing = [*question.choices]
    if isinstance(alternatives, Sequence) and not isinstance(alternatives, str):
        competing += [str(alternative) for alternative in alternatives]
    if normalise(label) in ("yes", "no"):
        competing += ["yes", "no"]
    for other in competing:
        phrase = words(other)
        if not _cut(wanted, phrase)[1] and _cut(rest, phrase)[1]:
            return _wrong("competing answer")
    if is_number(label) and numbers(" ".join(rest)):
        return _wrong("competing answer")
    if _NEGATIONS.isdisjoint(wanted) and not _NEGATIONS.isdisjoint(rest):
        return _wrong("negated")
    return _MATCH


def _cut(text: list[str], phrase: list[str]) -> tuple[list[str], int]:
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
