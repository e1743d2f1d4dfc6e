"""Seeded cases: questions with gold answers, and responses in the forms that models write.

Every case says in which form its response was made, so that a difference between two verifiers can
be told by its cause.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from masters.data.questions import Question

WORDS = (
    "cat dog bus tree table red blue green Paris London apple window paper river street north "
    "market Germany Coca-Cola bicycle umbrella kitchen surfing brick cheese pizza clock"
).split()
SMALL = "zero one two three four five six seven eight nine ten".split()


@dataclass(frozen=True, kw_only=True)
class Case:
    """One response to one question; ``form`` says how it was made."""

    question: Question
    golds: tuple[str, ...]
    response: str
    form: str


Forms = Sequence[tuple[int, str, Callable[[random.Random, str], str]]]
"""Weight, name, and the response made from a gold answer."""


def cases(rule: str, count: int, seed: int) -> list[Case]:
    """``count`` cases for a rule, the same for the same seed."""
    rng = random.Random(f"{rule} {seed}")
    return [_MAKERS[rule](rng, place) for place in range(count)]


def _drawn(rng: random.Random, forms: Forms, gold: str) -> tuple[str, str]:
    (_, name, make), *_ = rng.choices(forms, weights=[weight for weight, *_ in forms])
    return make(rng, gold), name


def _question(place: int, text: str, golds: Sequence[str], label: str, **more: object) -> Question:
    meta: dict[str, object] = {"answers": list(golds)} if len(golds) > 1 else {}
    return Question(id=str(place), text=text, label=label, meta=meta, **more)  # type: ignore[arg-type]


def _phrase(rng: random.Random, most: int = 4) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))


def _wide(text: str) -> str:
    """In full-width characters, as some tokenizers' Chinese leanings produce."""
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def _typo(rng: random.Random, text: str, share: float) -> str:
    letters = list(text)
    for _ in range(max(1, round(share * len(letters)))):
        place = rng.randrange(len(letters))
        letters[place] = rng.choice("abcdefghijklmnopqrstuvwxyz")
    return "".join(letters)


# --------------------------------------------------------------------------------------- relaxed


def _scaled(low: float, high: float) -> Callable[[random.Random, str], str]:
    return lambda rng, gold: f"{float(gold) * rng.uniform(low, high):.10g}"


_NUMBER_FORMS: Forms = (
    (30, "as written", lambda _, gold: gold),
    (10, "within 5 %", _scaled(0.955, 1.045)),
    (10, "beyond 5 %", _scaled(1.06, 1.6)),
    (3, "5 % off exactly", lambda _, gold: f"{float(gold) * 1.05:.12g}"),
    (6, "thousands separators", lambda _, gold: f"{float(gold) * 1000:,.0f}"),
    (5, "final period", lambda _, gold: gold + "."),
    (6, "percent sign", lambda _, gold: gold + "%"),
    (3, "percent sign after a space", lambda _, gold: gold + " % "),
    (5, "in a sentence", lambda _, gold: f"The value is {gold}"),
    (3, "currency", lambda _, gold: "$" + gold),
    (4, "white space", lambda _, gold: f" {gold}\n"),
    (3, "full-width digits", lambda _, gold: _wide(gold)),
    (3, "Unicode minus", lambda _, gold: "\u2212" + gold),
    (3, "scientific", lambda _, gold: f"{float(gold):.6e}"),
    (2, "underscore", lambda _, gold: gold[0] + "_" + gold[1:] if len(gold) > 1 else gold),
    (3, "range", lambda _, gold: f"{gold}-{gold}"),
    (2, "not a number", lambda rng, _: rng.choice(["nan", "inf", "N/A"])),
    (4, "scale word", lambda _, gold: f"{gold} million"),
)
_TEXT_FORMS: Forms = (
    (12, "text as written", lambda _, gold: gold),
    (6, "text in another case", lambda _, gold: gold.swapcase()),
    (5, "text with final period", lambda _, gold: gold + "."),
    (3, "text with white space", lambda _, gold: f"  {gold} "),
    (2, "text in quotes", lambda _, gold: f'"{gold}"'),
    (8, "other text", lambda rng, gold: _phrase(rng)),
)


def _relaxed(rng: random.Random, place: int) -> Case:
    kind = rng.choices(("number", "year", "zero", "text", "words"), weights=(60, 12, 4, 20, 4))[0]
    asked = "What is the value of the tallest bar?"
    if kind == "text":
        gold, (response, form) = "", ("", "")
        gold = _phrase(rng, 2)
        response, form = _drawn(rng, _TEXT_FORMS, gold)
    elif kind == "year":
        asked = "In which year was the value highest?"
        gold = str(rng.randint(1950, 2024))
        near = str(int(gold) + rng.choice((-9, -3, -1, 1, 2, 11)))
        response, form = rng.choice(((gold, "year as written"), (near, "another year")))
    elif kind == "zero":
        gold = "0"
        response, form = rng.choice(
            (("0.0", "zero in decimals"), ("0", "as written"), ("1", "one"))
        )
    elif kind == "words":
        value = rng.randint(0, 10)
        gold, response, form = str(value), SMALL[value], "number word"
    else:
        gold = rng.choice((f"{rng.uniform(1, 99):.1f}", str(rng.randint(1, 999))))
        response, form = _drawn(rng, _NUMBER_FORMS, gold)
        if form == "thousands separators":
            gold = f"{float(gold) * 1000:.0f}"
        elif form == "scale word":
            gold = f"{float(gold) * 1e6:.0f}"
        elif form == "Unicode minus":
            gold = "-" + gold
        elif form == "percent sign" and rng.random() < 0.5:
            gold, form = gold + "%", "percent sign in both"
    return Case(
        question=_question(place, asked, (gold,), gold), golds=(gold,), response=response, form=form
    )


# ------------------------------------------------------------------------------------------ anls

_ANLS_FORMS: Forms = (
    (20, "as written", lambda _, gold: gold),
    (10, "another case", lambda _, gold: gold.upper()),
    (15, "a few letters off", lambda rng, gold: _typo(rng, gold, 0.15)),
    (15, "many letters off", lambda rng, gold: _typo(rng, gold, 0.6)),
    (8, "half of it", lambda _, gold: gold[: len(gold) // 2]),
    (6, "exactly half of it", lambda _, gold: gold + "#" * len(gold)),
    (8, "white space around", lambda _, gold: f"  {gold}   \n"),
    (4, "letters off, white space after", lambda rng, gold: _typo(rng, gold, 0.3) + " " * 8),
    (6, "white space within", lambda _, gold: gold.replace(" ", "   ")),
    (6, "final period", lambda _, gold: gold + "."),
    (6, "in a sentence", lambda _, gold: f"The answer is {gold}"),
    (8, "other text", lambda rng, _: _phrase(rng)),
    (3, "letters that grow in upper case", lambda _, gold: "\u00df" + gold + "\u00df"),
)


def _anls(rng: random.Random, place: int) -> Case:
    gold = rng.choice(
        (_phrase(rng), f"{_phrase(rng, 2)} {rng.randint(1, 2024)}", str(rng.randint(1, 9999)))
    )
    others = [gold.lower(), gold.replace(" ", ""), _phrase(rng)][: rng.randint(0, 3)]
    golds = (gold, *others)
    response, form = _drawn(rng, _ANLS_FORMS, gold)
    question = _question(place, "What does the heading say?", golds, gold)
    return Case(question=question, golds=golds, response=response, form=form)


# ------------------------------------------------------------------------------------------- vqa

_VQA_FORMS: Forms = (
    (40, "as written", lambda _, gold: gold),
    (10, "capitals and period", lambda _, gold: gold.capitalize() + "."),
    (8, "with an article", lambda rng, gold: f"{rng.choice(('a', 'the'))} {gold}"),
    (6, "quotes of a letter", lambda _, gold: f"{gold}'s"),
    (8, "punctuation between", lambda _, gold: f"{gold}-{gold}"),
    (5, "question mark", lambda _, gold: f"{gold}?"),
    (6, "slash", lambda _, gold: f"{gold}/other"),
    (10, "other text", lambda rng, _: _phrase(rng, 2)),
    (5, "new line", lambda _, gold: f"{gold}\n"),
    (3, "an article alone", lambda rng, _: rng.choice(("a", "The", "an"))),
    (2, "forty periods", lambda _, gold: gold + " ." * 40),
)


def _vqa(rng: random.Random, place: int) -> Case:
    pool = [rng.choice(WORDS).lower(), rng.choice(WORDS).lower(), _phrase(rng, 2).lower()]
    special = rng.random()
    if special < 0.15:
        pool[0] = rng.choice(SMALL)
        pool[1] = str(SMALL.index(pool[0]))
    elif special < 0.25:
        pool[0] = rng.choice(("dont know", "isnt", "it's", "can't tell"))
        pool[1] = pool[0].replace("'", "").replace("dont", "don't").replace("isnt", "isn't")
    elif special < 0.32:
        pool[:2] = ["1,000", "1000"]
    elif special < 0.37:
        pool[:2] = ["the", "a"]
    elif special < 0.42:
        pool[:2] = [f"{rng.randint(2, 99)}.", f"{rng.randint(2, 99)}.5"]
    golds = tuple(rng.choices(pool, weights=(6, 3, 2), k=10))
    response, form = _drawn(rng, _VQA_FORMS, pool[rng.choice((0, 0, 1))])
    question = _question(place, "What is this?", golds, golds[0])
    return Case(question=question, golds=golds, response=response, form=form)


# ---------------------------------------------------------------------------------------- choice


def _choice(rng: random.Random, place: int) -> Case:
    choices = tuple(f"a {word}" for word in rng.sample(WORDS, 4))
    if rng.random() < 0.15:
        choices = (*choices[:3], choices[0] + " with wheels")
    right, picked = rng.randrange(4), rng.randrange(4)
    picked = right if rng.random() < 0.6 else picked
    other = (picked + 1) % 4
    letter, text, wrong = "ABCD"[picked], choices[picked], "ABCD"[other]
    forms: list[tuple[int, str, str]] = [
        (20, "letter", letter),
        (8, "letter and period", f"{letter}."),
        (8, "letter in brackets", f"({letter})"),
        (6, "letter and text", f"{letter}. {text}"),
        (6, "bracketed letter and reason", f"({letter}) because it has the right shape"),
        (6, "small letter", letter.lower()),
        (10, "text", text),
        (5, "text with final period", f"{text}."),
        (5, "text in a sentence", f"I can see {text} in the middle of the image"),
        (8, "the answer is", f"The answer is {letter}."),
        (4, "answer in bold", f"The correct answer is **{letter}**"),
        (3, "full-width letter", _wide(letter)),
        (3, "boxed", f"\\boxed{{{letter}}}"),
        (3, "two letters", f"{letter} or {wrong}"),
        (3, "letter of one, text of another", f"({letter}) {choices[other]}"),
        (3, "letter and what it is not", f"{letter}, because {wrong} is wrong"),
        (3, "opening article", f"A photo shows {text[2:]}"),
        (3, "I", f"I think {text}"),
        (3, "denied", f"It is not {text}"),
        (3, "no option", "I cannot tell from this image"),
        (3, "letter beyond", "F"),
        (2, "empty of words", "..."),
    ]
    (_, form, response), *_ = rng.choices(forms, weights=[weight for weight, *_ in forms])
    label = choices[right]
    question = _question(place, "What is shown?", (label,), label, choices=choices)
    return Case(question=question, golds=(label,), response=response, form=form)


# ---------------------------------------------------------------------------------------- yes_no


def _yes_no(rng: random.Random, place: int) -> Case:
    label, said = rng.choice(("yes", "no")), rng.choice(("yes", "no"))
    not_said = "no" if said == "yes" else "yes"
    forms: list[tuple[int, str, str]] = [
        (20, "word", said),
        (8, "capitalised", said.capitalize()),
        (10, "final period", said.capitalize() + "."),
        (8, "word and sentence", f"{said.capitalize()}, the picture shows it."),
        (4, "new line and sentence", f"{said.capitalize()}\nIt can be seen."),
        (6, "answer is", f"The answer is {said}."),
        (4, "bold", f"**{said.capitalize()}**"),
        (4, "one letter", said[0].upper()),
        (4, "full-width", _wide(said)),
        (4, "both", f"{said} or {not_said}"),
        (
            3,
            "opens with one, goes on with the other",
            f"{said.capitalize()}, I see {not_said} sign",
        ),
        (4, "no inside a word", rng.choice(("Know", "Nothing", "Another dog", "Norway", "Snow"))),
        (3, "yes inside a word", rng.choice(("Yesterday", "eyes"))),
        (3, "not sure", rng.choice(("Not sure", "I do not know", "It is not there"))),
        (3, "no doubt", "There is no doubt that it is"),
        (3, "there is no", "There is no dog in the picture"),
        (3, "other text", _phrase(rng)),
        (3, "exclamation mark", said.capitalize() + "!"),
    ]
    (_, form, response), *_ = rng.choices(forms, weights=[weight for weight, *_ in forms])
    question = _question(place, "Is there a dog in the picture?", (label,), label)
    return Case(question=question, golds=(label,), response=response, form=form)


def _exact(rng: random.Random, place: int) -> Case:
    gold = _phrase(rng, 2)
    response, form = _drawn(rng, _TEXT_FORMS, gold)
    question = _question(place, "What is written here?", (gold,), gold)
    return Case(question=question, golds=(gold,), response=response, form=form)


_MAKERS: dict[str, Callable[[random.Random, int], Case]] = {
    "relaxed": _relaxed,
    "anls": _anls,
    "vqa": _vqa,
    "choice": _choice,
    "yes_no": _yes_no,
    "exact": _exact,
}
RULES = tuple(_MAKERS)
