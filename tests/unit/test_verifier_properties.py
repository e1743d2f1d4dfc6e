"""What holds for every rule, and twins of the graded ones written from their definitions alone."""

from __future__ import annotations

import random
from fractions import Fraction
from functools import cache
from itertools import combinations
from typing import get_args

import numpy as np
import pytest

from masters.data.questions import Question
from masters.rewards.rules.anls import anls, levenshtein
from masters.rewards.rules.vqa import vqa_accuracy
from masters.rewards.rules.vqa_wording import vqa_wording
from masters.rewards.verifiers import GRADED, Rule, verify

_RULES: tuple[Rule, ...] = get_args(Rule)
_WORDS = (
    "yes no Y N A (B) C. I a the dog cat bus not 5 cm 50 mm $5 45% 0.45 1,200 1200 2019 -3 3,5 "
    "two twenty-one 1/2 and , ; . ... \uff22 \u221245 \u00bd 10\u00b3 isn't or None nan 1e999 "
    "\u00df \U0001f600 \u0130 [ ] { \" ' ** \\boxed{A} \u200b"
).split(" ")
_CHOICES = ("dog", "cat", "a red bus", "5 cm")


def _texts(count: int) -> list[str]:
    rng = random.Random(7)
    return [
        rng.choice((" ", " ", "", "\n")).join(rng.choices(_WORDS, k=rng.randint(1, 6)))
        for _ in range(count)
    ]


def _question(rule: Rule) -> Question:
    label = {"choice": "dog", "yes_no": "yes", "quantity": "5 cm", "numeric": "5"}.get(rule, "two")
    choices = _CHOICES if rule == "choice" else ()
    golds = [label, "5", "dog and cat", "45%"] if rule != "vqa" else [label] * 3 + ["dog"] * 7
    return Question(id="q", text="?", label=label, choices=choices, meta={"answers": golds})


@pytest.mark.parametrize("rule", _RULES)
def test_rewards_stay_within_bounds(rule: Rule) -> None:
    question = _question(rule)
    rewards = {verify(rule, text, question).reward for text in _texts(1500)}
    assert all(0 <= reward <= 1 for reward in rewards)
    if rule not in GRADED:
        assert rewards <= {0.0, 1.0}
    assert max(rewards) == 1.0 or rule in ("content", "exact")


@pytest.mark.parametrize("rule", _RULES)
def test_space_around_a_response_changes_no_verdict(rule: Rule) -> None:
    question = _question(rule)
    for text in _texts(400):
        plain = verify(rule, text.strip(), question)
        assert verify(rule, f" \n\t{text.strip()} \n", question) == plain, text


@pytest.mark.parametrize("rule", [rule for rule in _RULES if rule != "exact"])
def test_case_changes_no_verdict(rule: Rule) -> None:
    # Of letters that options or units go by, case counts: those words are left out.
    question = _question(rule)
    plain = [word for word in _WORDS if word.isascii() and len(word) > 2 and "boxed" not in word]
    rng = random.Random(3)
    for _ in range(300):
        text = " ".join(rng.choices(plain, k=rng.randint(1, 4)))
        assert verify(rule, text.upper(), question) == verify(rule, text.lower(), question), text


@pytest.mark.parametrize("rule", _RULES)
def test_the_label_itself_is_right(rule: Rule) -> None:
    question = _question(rule)
    if rule == "vqa":
        assert verify(rule, "two", question).reward == pytest.approx(0.9)
    else:
        assert verify(rule, question.label or "", question).reward == 1.0


@pytest.mark.parametrize("rule", _RULES)
def test_long_responses_end_soon(rule: Rule) -> None:
    # Fifty thousand characters of what the patterns look for; a backtracking one would not return.
    for text in (
        "A, B or " * 7_000,
        "no yes " * 8_000,
        "1,000 " * 9_000,
        " " * 50_000 + "x",
        "(" * 50_000,
    ):
        assert 0 <= verify(rule, text, _question(rule)).reward <= 1


# ------------------------------------------------------------------------------------------ twins


def test_levenshtein_is_the_recursive_definition() -> None:
    @cache
    def distance(one: str, other: str) -> int:
        if not one or not other:
            return len(one) + len(other)
        if one[-1] == other[-1]:
            return distance(one[:-1], other[:-1])
        return 1 + min(
            distance(one[:-1], other), distance(one, other[:-1]), distance(one[:-1], other[:-1])
        )

    rng = random.Random(1)
    for _ in range(300):
        one, other = ("".join(rng.choices("abc", k=rng.randint(0, 7))) for _ in range(2))
        assert levenshtein(one, other) == distance(one, other)


def _anls_twin(response: str, golds: list[str]) -> float:
    """With numpy over a whole table of distances."""
    scores = []
    for gold in golds:
        a = [*" ".join(response.casefold().split())]
        b = [*" ".join(gold.casefold().split())]
        table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
        table[:, 0], table[0, :] = np.arange(len(a) + 1), np.arange(len(b) + 1)
        for i in range(1, len(a) + 1):
            for j in range(1, len(b) + 1):
                substituted = table[i - 1, j - 1] + int(a[i - 1] != b[j - 1])
                table[i, j] = min(substituted, table[i - 1, j] + 1, table[i, j - 1] + 1)
        similarity = 1 - Fraction(int(table[-1, -1]), max(len(a), len(b)))
        scores.append(similarity if similarity >= Fraction(1, 2) else Fraction(0))
    return float(max(scores))


def test_anls_is_its_twin() -> None:
    rng = random.Random(2)
    between = half = 0
    for _ in range(600):
        gold = "".join(rng.choices("abcd ", k=rng.randint(1, 9))) + "e"
        response = "".join(rng.choice("abcz") if rng.random() < 0.3 else c for c in gold.upper())
        golds = [gold, "".join(rng.choices("abcd", k=4))]
        assert anls(response, golds) == pytest.approx(_anls_twin(response, golds), abs=1e-12)
        between += 0 < anls(response, golds) < 1
        half += anls(response, golds) == 0.5
    assert between > 100 and half > 5


def test_vqa_is_the_mean_over_all_sets_of_the_others() -> None:
    rng = random.Random(4)
    seen = set()
    for _ in range(400):
        golds = rng.choices(
            ["Red", "a red", "blue", "2", "two", "dont", "don't"], k=rng.choice((4, 7, 10))
        )
        response = rng.choice(["red.", "Blue", "TWO", "don't", "green"])
        said = vqa_wording(response)
        scores = [
            min(Fraction(sum(vqa_wording(gold) == said for gold in others), 3), Fraction(1))
            for others in combinations(golds, len(golds) - 1)
        ]
        expected = float(sum(scores) / len(scores))
        assert vqa_accuracy(response, golds) == pytest.approx(expected, abs=1e-12)
        seen.add(round(expected, 6))
    assert len(seen) > 8


def test_wordings_of_vqa_are_settled() -> None:
    # "somebody'd" is theirs to change twice; whatever else is normalised stays as it is.
    for text in _texts(500):
        once = vqa_wording(text)
        assert vqa_wording(vqa_wording(once)) == vqa_wording(once)
