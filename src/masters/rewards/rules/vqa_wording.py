"""The wording in which VQA v2 compares answers: its own rules, oddities included.

These are the rules of visualqa.org/evaluation as the evaluation program applies them. They are not
those of ``wording``: a minus is punctuation, "none" is 0, and an article is dropped anywhere.
"""

from __future__ import annotations

import re

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS: dict[str, str] = dict(
    zip(
        "none zero one two three four five six seven eight nine ten".split(),
        "0 0 1 2 3 4 5 6 7 8 9 10".split(),
        strict=True,
    )
)
_ARTICLES = frozenset({"a", "an", "the"})
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()


def _missing_one() -> dict[str, str]:
    """Each contraction by the ways to write it with one apostrophe left out."""
    return {
        whole[:place] + whole[place + 1 :]: whole
        for whole in _CONTRACTIONS
        for place, letter in enumerate(whole)
        if letter == "'"
    }


CONTRACTIONS = _missing_one() | {"somebody'd": "somebodyd"}
"""The last one is the wrong way round in the benchmark's own table."""


def vqa_wording(answer: str) -> str:
    """An answer in lower case, without punctuation and articles, digits for words up to ten.

    A punctuation mark is dropped where it stands beside a space anywhere in the answer, or where a
    comma stands between digits; elsewhere it becomes a space. Periods go unless a digit follows.
    An answer of which nothing would be left ("A", "?") stays as it is, in lower case, so that two
    of these are not taken for the same.
    """
    text = re.sub(r"[\n\t]", " ", answer).strip()
    in_number = re.search(r"\d,\d", text) is not None
    plain = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if beside_space or in_number else " ")
    plain = re.sub(r"\.(?!\d)", "", plain)
    words = [_DIGITS.get(word, word) for word in plain.lower().split()]
    kept = [CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES]
    return " ".join(kept) or text.lower()
