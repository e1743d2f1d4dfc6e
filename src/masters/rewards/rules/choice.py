"""One option of several, named by its letter or its text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from masters.data.questions import Question
from masters.errors import DataError
from masters.rewards.rules.phrases import NEGATIONS, cut
from masters.rewards.rules.verdicts import Verdict, right_or, wrong
from masters.rewards.wording import normalise, words

_MARKED_A = re.compile(r"[\s*]*(?:[(\[][Aa][)\]]|[Aa][).:,])\s*\S")


def choice(response: str, question: Question, label: str) -> Verdict:
    """One option, by letter or text, and it is the label's.

    Raises:
        DataError: the label is none of the choices.
    """
    wanted = _choice_index(label, question.choices)
    if wanted is None:
        raise DataError(
            f"question {question.id!r}: label {label!r} is none of its choices "
            f"{list(question.choices)}; expected a choice's text or letter. Correct the data."
        )
    named = _options_named(response, question.choices)
    if len(named) != 1:
        return wrong("several options" if named else "no option")
    return right_or("mismatch", named == {wanted})


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
    # "(A) dog" is no "dog" with an article before it, unless that is how an option reads.
    if whole in texts and (response.strip() in choices or not _MARKED_A.match(response)):
        return {texts.index(whole)}
    marked = _plainly_marked(response)
    letters, rest = _letters(marked, len(choices))
    if not letters:
        return _texts_within(words(response), texts) or _last_letter(marked, len(choices))
    # "(B) cat" where B is the dog has picked both.
    if normalise(rest) in texts:
        letters.add(texts.index(normalise(rest)))
    return letters


def _plainly_marked(response: str) -> str:
    """The response without emphasis and quotes, and with round brackets for any others.

    Full-width letters are letters, "[B]", "<B>" and LaTeX's boxed B are "(B)".
    """
    text = unicodedata.normalize("NFKC", response)
    text = re.sub(r"\\(?:boxed|text|mathrm|mathbf)\b|[*\"'`$\u201c\u201d\u2018\u2019]", "", text)
    text = re.sub(r"[\[{<]", "(", text)
    return re.sub(r"[\]}>]", ")", text).strip()


def _letters(text: str, count: int) -> tuple[set[int], str]:
    """Options named by letter, and the text after the letter the response starts with."""
    capital, either = _letter_patterns(count)
    several = re.match(rf"\(?{either}\)?(?:\s*(?:,|/|&|\bor\b|\band\b)\s*\(?{either}\b\)?)+", text)
    if several and not re.match(r"\s*\w", text[several.end() :]):
        named = re.findall(rf"(?<!\w){either}(?!\w)", several[0])
        return {_position(letter) for letter in named}, ""
    # A bare capital before further words counts, but not the words "A" and "I".
    word = r"A\s+(?!because|since)[^\W\d]|I\s"
    marked = rf"\(+({either})\)+|({either})(?=[).:,;!?\u3002]|$)"
    start = re.match(rf"(?:{marked}|((?!{word}){capital})(?=\s))[).:,;!?\u3002\s]*", text)
    stated = re.findall(
        r"(?i:\b(?:answer|option|choice|choose|pick|select)\b(?:\s+is\b)?)[:\s-]*"
        rf"(?:\(+({either})\)|((?!{word}){capital})\b)",
        text,
    )
    found = {next(group for group in groups if group) for groups in stated}
    if start:
        found.add(next(group for group in start.groups() if group))
    return {_position(letter) for letter in found}, text[start.end() :] if start else ""


def _last_letter(text: str, count: int) -> set[int]:
    """The one lone capital that a response without any option's text ends with ("so it is B.")."""
    capital, _ = _letter_patterns(count)
    named = set(re.findall(rf"(?<!\w){capital}(?!\w)", text))
    last = re.search(rf"(?<!\w)({capital})[).]*$", text)
    if last is None or len(named) != 1 or not NEGATIONS.isdisjoint(words(text)):
        return set()
    return {_position(last[1])}


def _letter_patterns(count: int) -> tuple[str, str]:
    """Regular expressions of the options' letters: capitals, and either case."""
    last = chr(ord("A") + min(count, 26) - 1)
    return f"[A-{last}]", f"[A-{last}a-{last.lower()}]"


def _position(letter: str) -> int:
    return ord(letter.upper()) - ord("A")


def _texts_within(response: list[str], texts: Sequence[str]) -> set[int]:
    """Options whose text stands in the response, longer ones first so that parts don't count.

    "not a dog" does not name the dog.
    """
    found: set[int] = set()
    for index in sorted(range(len(texts)), key=lambda i: -len(texts[i].split())):
        phrase = texts[index].split()
        response, times = cut(response, phrase)
        if times and not (NEGATIONS.isdisjoint(phrase) and _negated(response)):
            found.add(index)
        response = ["/" if word == "|" else word for word in response]
    return found


def _negated(response: list[str]) -> bool:
    """Whether a negation is one of the two words before a bar, which stands for an option."""
    for place, word in enumerate(response):
        if word == "|" and not NEGATIONS.isdisjoint(response[max(0, place - 2) : place]):
            return True
    return False
