"""The same answer in one spelling: case, punctuation, articles, number words, Unicode forms."""

from __future__ import annotations

import re
import unicodedata

_ARTICLES = frozenset({"a", "an", "the"})
_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_NUMBER_WORDS = {word: value for value, word in enumerate(_UNITS)} | {
    word: 10 * value for value, word in enumerate(_TENS, start=2)
}
_SCALES = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9}
_THOUSANDS = re.compile(r"(?<![\w.,])\d{1,3}(?:([,' ])\d{3})(?:\1\d{3})*(?![\w']|,\d)")
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?(?![\w]|\.\d)")
# A point, comma or minus that belongs to a number survives when other punctuation is dropped.
_KEPT = re.compile(r"(?<=\d)\.(?=\d)|(?<![\w.])\.(?=\d)|(?<!\w)-(?=\.?\d)")
_QUOTES = dict.fromkeys(map(ord, "'`\u2018\u2019\u02bc"), None)


def words(text: str) -> list[str]:
    """The words of a text in one spelling.

    Unicode NFKC, case folded; initials joined; thousands separators, apostrophes, punctuation and
    currency signs dropped; "%" as "percent"; number words up to 99 as digits; articles dropped
    unless nothing else is left (so that the option "A" stays). A text of punctuation only is its
    own one word.
    """
    plain = _plain(text)
    spaced = "".join(_spaced(plain, index) for index in range(len(plain)))
    tokens = _digits(spaced.split())
    kept = [token for token in tokens if token not in _ARTICLES]
    return kept or tokens or ([plain.strip()] if plain.strip() else [])


def normalise(text: str) -> str:
    """The words of a text joined by single spaces; see ``words``."""
    return " ".join(words(text))


def numbers(text: str) -> list[tuple[float, bool]]:
    """The numbers of a text in order, each with whether it is a percentage.

    Digits with thousands separators ("1,234", "1 234"), signs, decimal points, decimal commas
    ("3,5") and exponents; number words; and scales after them ("2 million").
    """
    plain = _plain(text, keep_sign=True)
    plain = re.sub(r"(?<![\d.,])(\d+),(\d+)(?![\d.,]\d|\d)", r"\1.\2", plain).replace(",", " , ")
    plain = re.sub(r"([^\W\d_])-(?=[^\W\d_])", r"\1 ", plain).replace("%", " percent ")
    plain = "".join(" " if unicodedata.category(c) == "Sc" else c for c in plain)
    tokens = _digits(re.findall(r"[^\W\d_]+|" + _NUMBER.pattern, plain))
    found: list[tuple[float, bool]] = []
    for before, token in zip(["", *tokens], tokens, strict=False):
        if _NUMBER.fullmatch(token):
            found.append((float(token), False))
        elif found and token in _SCALES and (_NUMBER.fullmatch(before) or before in _SCALES):
            found[-1] = (found[-1][0] * _SCALES[token], False)
        elif found and token == "percent" and (_NUMBER.fullmatch(before) or before in _SCALES):
            found[-1] = (found[-1][0], True)
    return found


def is_number(text: str) -> bool:
    """Whether a text is one number and nothing else ("12", "1,200", "-3.5 %", "twenty-one")."""
    rest = [word for word in words(text) if word != "percent" and word not in _SCALES]
    return len(numbers(text)) == 1 and len(rest) == 1 and _NUMBER.fullmatch(rest[0]) is not None


def _plain(text: str, *, keep_sign: bool = False) -> str:
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u2212", "-").strip()
    # Initials are one word: "U.S.A." as "usa".
    text = re.sub(r"\b(?:[^\W\d_]\.){2,}", lambda match: match[0].replace(".", ""), text)
    text = _THOUSANDS.sub(lambda match: re.sub(r"\D", "", match[0]), text)
    return text if keep_sign else text.translate(_QUOTES)


def _spaced(text: str, index: int) -> str:
    """The character, or what stands for it between words."""
    character = text[index]
    if character == "%":
        return " percent "
    if character in ".-" and _KEPT.match(text, index):
        return character
    category = unicodedata.category(character)
    return " " if category.startswith("P") or category == "Sc" else character


def _digits(tokens: list[str]) -> list[str]:
    """The tokens with number words as digits; a ten and a unit are one number ("twenty one")."""
    out: list[str] = []
    ten = False
    for token in tokens:
        value = _NUMBER_WORDS.get(token)
        if value is None:
            out.append(token)
        elif ten and 1 <= value <= 9:
            out[-1] = str(int(out[-1]) + value)
        else:
            out.append(str(value))
        ten = token in _TENS
    return out
