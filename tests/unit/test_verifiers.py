"""Rule verifiers: what counts as the label's answer and what does not, case by case."""

from __future__ import annotations

from typing import get_args

import pytest

from masters.data.questions import Question
from masters.errors import DataError
from masters.rewards.verifiers import Rule, rule_for, verify
from masters.rewards.wording import is_number, normalise, numbers

_OPTIONS = ("cat", "dog", "a red bus", "bus")


def _question(label: str | None, **fields: object) -> Question:
    return Question(id="q1", text="?", label=label, **fields)  # type: ignore[arg-type]


def _verdict(rule: Rule, response: str, label: str, **fields: object) -> tuple[float, str]:
    verdict = verify(rule, response, _question(label, **fields))
    return verdict.reward, verdict.reason


@pytest.mark.parametrize("rule", get_args(Rule))
@pytest.mark.parametrize("response", ["", "  \n"])
def test_empty_is_never_right(rule: Rule, response: str) -> None:
    assert _verdict(rule, response, "dog", choices=_OPTIONS) == (0.0, "empty")


@pytest.mark.parametrize("rule", get_args(Rule))
def test_no_label_is_an_error(rule: Rule) -> None:
    with pytest.raises(DataError, match=r"question 'q1': has no label; expected one .* Add"):
        verify(rule, "dog", _question(None))


def test_exact() -> None:
    assert _verdict("exact", " red\n", "red") == (1.0, "match")
    assert _verdict("exact", "Red", "red") == (0.0, "mismatch")
    assert _verdict("exact", "red.", "red") == (0.0, "mismatch")


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Red, Shape!", "red shape"),
        ("twenty-one", "21"),
        ("Two", "2"),
        ("twenty five", "25"),
        ("one two", "1 2"),
        ("twenty ten", "20 10"),
        ("1,234", "1234"),
        ("1,23", "1 23"),
        ("3.50", "3.50"),
        ("-5", "-5"),
        ("\u22125", "-5"),
        ("T-shirt", "t shirt"),
        ("U.S.A.", "usa"),
        ("it isn\u2019t", "it isnt"),
        ("\uff11\uff12", "12"),
        ("$5", "5"),
        ("45%", "45 percent"),
        ("a", "a"),
        ("The", "the"),
        ("?!", "?!"),
        ("c++", "c++"),
        ("caf\u0065\u0301", "caf\u00e9"),
        ("", ""),
    ],
)
def test_normalise(text: str, normal: str) -> None:
    assert normalise(text) == normal
    assert normalise(normal) == normal


def test_normalised() -> None:
    assert _verdict("normalised", "The dog.", "dog") == (1.0, "match")
    assert _verdict("normalised", "three", "3") == (1.0, "match")
    assert _verdict("normalised", "it is a dog", "dog") == (0.0, "mismatch")
    # Nothing but articles or punctuation must not match something else by becoming empty.
    assert _verdict("normalised", "the", "a") == (0.0, "mismatch")
    assert _verdict("normalised", "...", "a") == (0.0, "mismatch")


def test_gold_answers_change_nothing_for_the_rules_of_one_label() -> None:
    several = {"meta": {"answers": ["dog", "cat", "2"]}}
    for rule in ("exact", "normalised", "numeric", "content", "auto"):
        assert _verdict(rule, "cat", "dog", **several)[0] == 0.0
        assert _verdict(rule, "dog", "dog", **several) == (1.0, "match")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,234.5 km", [(1234.5, False)]),
        ("3 000", [(3000.0, False)]),
        ("3,5", [(3.5, False)]),
        ("1,2,3", [(1.0, False), (2.0, False), (3.0, False)]),
        ("12%", [(12.0, True)]),
        ("ten percent", [(10.0, True)]),
        ("2 million", [(2e6, False)]),
        ("three hundred thousand", [(3e5, False)]),
        ("\u20ac40", [(40.0, False)]),
        ("-.5", [(-0.5, False)]),
        ("1e3", [(1000.0, False)]),
        ("forty-two", [(42.0, False)]),
        ("CO2", []),
        ("v1.2.3", []),
        ("nan inf", []),
    ],
)
def test_numbers(text: str, values: list[tuple[float, bool]]) -> None:
    assert numbers(text) == values


@pytest.mark.parametrize(
    ("text", "expected"),
    [("12", True), ("-3.5 %", True), ("two", True), ("2 million", True), ("the one", True)]
    + [("2 dogs", False), ("dog", False), ("1 2", False), ("", False), ("?", False)],
)
def test_is_number(text: str, expected: bool) -> None:
    assert is_number(text) is expected


@pytest.mark.parametrize(
    ("response", "label", "verdict"),
    [
        ("105", "100", (1.0, "match")),
        ("95", "100", (1.0, "match")),
        ("105.1", "100", (0.0, "mismatch")),
        ("-100", "100", (0.0, "mismatch")),
        ("-104", "-100", (1.0, "match")),
        ("0.0", "0", (1.0, "match")),
        ("0.001", "0", (0.0, "mismatch")),
        ("There are two.", "2", (1.0, "match")),
        ("1200", "1,200", (1.0, "match")),
        ("45 %", "45", (1.0, "match")),
        ("45%", "0.45", (1.0, "match")),
        ("0.45", "45%", (1.0, "match")),
        ("0.45", "45", (0.0, "mismatch")),
        ("2 or 3", "2", (0.0, "several numbers")),
        ("2, that is two", "2", (1.0, "match")),
        ("many", "2", (0.0, "no number")),
        ("1e999", "3", (0.0, "mismatch")),
        ("The dog", "dog", (1.0, "match")),
        ("7", "dog", (0.0, "mismatch")),
    ],
)
def test_numeric(response: str, label: str, verdict: tuple[float, str]) -> None:
    assert _verdict("numeric", response, label) == verdict


@pytest.mark.parametrize(
    "response",
    ["B", "b", "(B)", "b)", "B.", "**B**", "(B) because it barks", "B because it barks", "dog"]
    + ["The answer is B", "Answer: (b)", "A dog", "I think it is a dog.", "B. dog", "dog (B)"]
    + ["B, because C is wrong", "Option B is right"],
)
def test_choice_right(response: str) -> None:
    for label in ("dog", "B", "The Dog", "(b)"):
        assert _verdict("choice", response, label, choices=_OPTIONS) == (1.0, "match")


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("A", "mismatch"),
        ("a", "mismatch"),
        ("A. cat", "mismatch"),
        ("The answer is A", "mismatch"),
        ("a red bus", "mismatch"),
        ("the bus", "mismatch"),
        ("A or B", "several options"),
        ("B, C", "several options"),
        ("(b) and (c)", "several options"),
        ("(B) cat", "several options"),
        ("cat or dog", "several options"),
        ("The answer is B. The answer is C", "several options"),
        ("horse", "no option"),
        ("E", "no option"),
        ("dogma", "no option"),
    ],
)
def test_choice_wrong(response: str, reason: str) -> None:
    assert _verdict("choice", response, "dog", choices=_OPTIONS) == (0.0, reason)


def test_choice_texts_win_over_letters() -> None:
    # Choices that are letters themselves, in another order.
    assert _verdict("choice", "B", "B", choices=("B", "A")) == (1.0, "match")
    assert _verdict("choice", "A", "B", choices=("B", "A")) == (0.0, "mismatch")


def test_choice_longer_text_hides_its_part() -> None:
    assert _verdict("choice", "it is a red bus", "a red bus", choices=_OPTIONS) == (1.0, "match")
    assert _verdict("choice", "it is a red bus", "bus", choices=_OPTIONS) == (0.0, "mismatch")


def test_choice_label_must_be_a_choice() -> None:
    with pytest.raises(DataError, match=r"label 'horse' is none of its choices \['cat'"):
        verify("choice", "B", _question("horse", choices=_OPTIONS))
    with pytest.raises(DataError, match="label 'E'"):
        verify("choice", "B", _question("E", choices=_OPTIONS))


_COLOURS = {"alternatives": ("red", "green", "light blue")}


@pytest.mark.parametrize(
    ("response", "label", "verdict"),
    [
        ("it is Red.", "red", (1.0, "match")),
        ("the shape at the top left is red", "red", (1.0, "match")),
        ("red, red", "red", (1.0, "match")),
        ("reddish", "red", (0.0, "mismatch")),
        ("blue", "red", (0.0, "mismatch")),
        ("red or green", "red", (0.0, "competing answer")),
        ("red or light blue", "red", (0.0, "competing answer")),
        ("it is light blue", "light blue", (1.0, "match")),
        ("it is light", "light blue", (0.0, "mismatch")),
        ("it is not red", "red", (0.0, "negated")),
        ("it isn't red", "red", (0.0, "negated")),
        ("it isn\u2019t red", "red", (0.0, "negated")),
        ("no, it is not", "no", (1.0, "match")),
        ("yes and no", "no", (0.0, "competing answer")),
        ("there are two circles", "two", (1.0, "match")),
        ("there are 2 circles", "two", (1.0, "match")),
        ("two or three", "two", (0.0, "competing answer")),
        ("red " * 25, "red", (0.0, "too long")),
    ],
)
def test_content(response: str, label: str, verdict: tuple[float, str]) -> None:
    assert _verdict("content", response, label, meta=_COLOURS) == verdict


def test_auto_picks_the_first_rule_that_fits() -> None:
    assert rule_for(_question("dog", choices=_OPTIONS)) == "choice"
    assert rule_for(_question("2", training_label="there are two")) == "content"
    assert rule_for(_question("2", training_label="2")) == "content"
    assert rule_for(_question("1,200")) == "numeric"
    assert rule_for(_question("two")) == "numeric"
    assert rule_for(_question("a dog")) == "normalised"
    assert _verdict("auto", "103", "100") == (1.0, "match")
    assert _verdict("auto", "The dog", "dog") == (1.0, "match")
    assert _verdict("auto", "b", "dog", choices=_OPTIONS) == (1.0, "match")
