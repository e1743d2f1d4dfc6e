"""What is judged, how, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from masters.data.questions import Question


@dataclass(frozen=True, kw_only=True)
class JudgeItem:
    """One response to one question that has a label."""

    question: Question
    response: str


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """How responses are judged; everything but ``retries`` and ``max_missing`` can move a verdict.

    Args:
        prompt: the version of the prompts, a folder of ``prompts/``.
        max_tokens: the longest reply to the first call, in the judge's tokens.
        retries: how often a verdict that cannot be read is asked for again, from the first call.
        rules_first: exact rules settle what they can settle exactly, the judge the rest; False
            sends every response that says anything to the judge.
        max_missing: the largest share of verdicts that may be missing, in [0, 1].
    """

    prompt: str = "v1"
    max_tokens: int = 384
    retries: int = 2
    rules_first: bool = False
    max_missing: float = 0.05


@dataclass(frozen=True, kw_only=True)
class JudgeVerdict:
    """What a response is worth.

    Args:
        reward: 1.0 for the label's answer, 0.0 otherwise; None where there is no verdict: missing.
        reason: a few words, the same for the same cause, so that they can be counted.
        explanation: the judge's own words; empty where no judge was asked.
        by: "judge", or "rule" where no judge was asked.
    """

    reward: float | None
    reason: str
    explanation: str = ""
    by: Literal["judge", "rule"] = "judge"
