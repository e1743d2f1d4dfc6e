"""Accuracy rewards by rule: does a response give the label's answer?

A rule says what a response is worth and why. Rules are strict where a loose reading could be gamed:
a response that names two numbers, two options or two colours has not answered. Each lies in a file
of ``rules``; ``verify`` chooses.
"""

from __future__ import annotations

from typing import Literal, assert_never

from masters.data.answers import gold_answers
from masters.data.questions import Question
from masters.errors import DataError
from masters.rewards.rules.anls import anls
from masters.rewards.rules.choice import choice
from masters.rewards.rules.content import content
from masters.rewards.rules.lists import several
from masters.rewards.rules.numeric import numeric
from masters.rewards.rules.quantity import quantity
from masters.rewards.rules.relaxed import relaxed
from masters.rewards.rules.verdicts import Verdict, graded, right_or, wrong
from masters.rewards.rules.vqa import FEWEST_ANSWERS, vqa_accuracy
from masters.rewards.rules.yes_no import yes_no
from masters.rewards.wording import is_number, normalise

Rule = Literal[
    "exact", "normalised", "numeric", "choice", "content", "relaxed", "anls", "vqa", "yes_no",
    "quantity", "list", "set", "auto",
]  # fmt: skip

GRADED: frozenset[Rule] = frozenset({"anls", "vqa"})
"""Rules with rewards between 0 and 1 too: their mean is a score, not a share of right ones."""


def verify(rule: Rule, response_text: str, question: Question) -> Verdict:
    """The verdict of a rule on a response.

    Against the label:
        "exact": the same text but for white space around it;
        "normalised": the same words, see ``wording.words``;
        "numeric": one number, anywhere, within 5 % of the label;
        "choice": one option by letter or text;
        "yes_no": the label's yes or no, said once;
        "content": a short answer that says the label and no competing one.

    Against every gold answer, the best one counting (``data.answers.gold_answers``):
        "relaxed": ChartQA's, the whole answer a number within 5 % or the same text;
        "anls": DocVQA's and InfoVQA's, graded;
        "quantity": a number with its unit;
        "list", "set": all items, in order or in any.

    "vqa", graded, is VQA v2's soft accuracy against all of its annotators' answers, and "auto"
    stands for the rule that fits the question, see ``rule_for``.

    Args:
        rule: its name.
        response_text: the decoded response, without special tokens.
        question: with its label.

    Raises:
        DataError: the question has no label, or one that the rule cannot compare with.
    """
    label = question.label
    if label is None:
        raise DataError(
            f"question {question.id!r}: has no label; expected one to judge responses against. "
            "Add its answer to the data."
        )
    if not response_text.strip():
        return wrong("empty")
    match rule:
        case "auto":
            return verify(rule_for(question), response_text, question)
        case "exact":
            return right_or("mismatch", response_text.strip() == label.strip())
        case "normalised":
            return right_or("mismatch", normalise(response_text) == normalise(label))
        case "numeric":
            return numeric(response_text, label)
        case "choice":
            return choice(response_text, question, label)
        case "content":
            return content(response_text, question, label)
        case "yes_no":
            return yes_no(response_text, question, label)
        case "relaxed" | "anls" | "vqa" | "quantity" | "list" | "set":
            return _against_all(rule, response_text, question)
        case _:
            assert_never(rule)


def _against_all(
    rule: Literal["relaxed", "anls", "vqa", "quantity", "list", "set"],
    response: str,
    question: Question,
) -> Verdict:
    golds = gold_answers(question)
    match rule:
        case "relaxed":
            return relaxed(response, golds, question.text)
        case "anls":
            return graded(anls(response, golds))
        case "vqa":
            if len(golds) < FEWEST_ANSWERS:
                raise DataError(
                    f"question {question.id!r}: has {len(golds)} gold answers; the rule 'vqa' "
                    f"expects those of {FEWEST_ANSWERS} annotators or more (VQA v2 has ten) as a "
                    "list `answers`. Add them to the data, or choose another rule."
                )
            return graded(vqa_accuracy(response, golds))
        case "quantity":
            return quantity(response, golds)
        case "list" | "set":
            return several(response, golds, ordered=rule == "list")
        case _:
            assert_never(rule)


def rule_for(question: Question) -> Rule:
    """The rule that "auto" stands for: the first that fits the question.

    "choice" with choices; "content" where labels are worded in several ways, also where this one
    is the bare answer: every valid wording is right, for all questions alike; "numeric" where the
    label is a number (in digits or words); "normalised" otherwise. A year is a number too: name
    "normalised" for data where 5 % is too kind.
    """
    if question.choices:
        return "choice"
    if question.training_label is not None:
        return "content"
    return "numeric" if is_number(question.label or "") else "normalised"
