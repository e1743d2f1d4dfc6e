"""A whole text as one number: digits, words, fractions, powers of ten."""

from __future__ import annotations

import math
import re
import unicodedata

from masters.rewards.wording import is_number, numbers, words

_FRACTION = re.compile(r"([-+]?)(?:(\d+)\s+)?(\d+)\s*/\s*(\d+)(\s*(?:%|percent))?")
_POWER = re.compile(
    r"(?:([-+]?\d+(?:\.\d+)?)\s*[x\u00d7*\u00b7]\s*)?10\s*(?:\^|\*\*)\s*\(?([-+]?\d{1,3})\)?", re.I
)
_DECIMAL_COMMA = re.compile(r"([-+]?\d+),(\d{1,2}|\d{4,})(\s*(?:%|percent))?", re.I)
_DIGITS = re.compile(r"\d+(?:\.\d+)?")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_HALVES = {"half": 0.5, "1 half": 0.5, "quarter": 0.25, "1 quarter": 0.25}


def amount(text: str) -> tuple[float, bool] | None:
    """The one number that a text is, and whether it is a percentage; None if it is anything else.

    "1,200", "-3.5 %", "$40", "twenty-one", "2 million", "one hundred and five", "1/2", "1½",
    "1.5e3", "1.5 × 10³", "3,5". A range ("3-5"), a time ("10:30") and a number with a
    unit are none.
    """
    text = re.sub(r"\bper cent\b", "percent", spelt_out(text)).strip().rstrip(".").strip()
    found = _read(text) if text else None
    return found if found and math.isfinite(found[0]) else None


def _read(text: str) -> tuple[float, bool] | None:
    fraction = _FRACTION.fullmatch(text)
    if fraction:
        sign, whole, above, below, percent = fraction.groups()
        if int(below) == 0:
            return None
        value = int(whole or 0) + int(above) / int(below)
        return (-value if sign == "-" else value), bool(percent)
    power = _POWER.fullmatch(text)
    if power:
        return float(f"{power[1] or 1}e{int(power[2])}"), False
    comma = _DECIMAL_COMMA.fullmatch(text)
    if comma:
        return float(f"{comma[1]}.{comma[2]}"), bool(comma[3])
    if is_number(text):
        return numbers(text)[0]
    return _in_words(text)


def spelt_out(text: str) -> str:
    """The text in plain characters: "1½" as "1 1/2", "10³" as "10^3".

    Unicode's own folding (NFKC) would make 11/2 and 103 of them.
    """
    text = re.sub(r"(?<=10)[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda m: "^" + m[0].translate(_SUPERSCRIPTS), text)
    out = []
    for letter in text:
        if unicodedata.decomposition(letter).startswith("<fraction>"):
            out.append(" " + unicodedata.normalize("NFKC", letter).replace("\u2044", "/"))
        else:
            out.append(letter)
    folded = unicodedata.normalize("NFKC", "".join(out))
    return folded.replace("\u2212", "-").replace("\u2044", "/")


def _in_words(text: str) -> tuple[float, bool] | None:
    """ "one hundred and five", "two million three hundred", "a hundred", "half", "ten trillion"."""
    tokens = words(text)
    percent = tokens[-1:] == ["percent"]
    tokens = [token for token in tokens if token != "percent"]
    if " ".join(tokens) in _HALVES:
        return _HALVES[" ".join(tokens)], percent
    if not any(token == "hundred" or token in _SCALES for token in tokens):
        return None
    total, group, started, before = 0.0, 0.0, False, ""
    for token in tokens:
        if token == "hundred":
            group, started = (group if started else 1.0) * 100, True
        elif token in _SCALES:
            total, group, started = total + (group if started else 1.0) * _SCALES[token], 0.0, False
        elif token == "and":
            if before != "hundred" and before not in _SCALES:
                return None
        elif re.fullmatch(r"\d+(?:\.\d+)?", token) and (
            not started or before in ("hundred", "and")
        ):
            group, started = group + float(token), True
        else:
            return None
        before = token
    return None if before == "and" else (total + group, percent)
