"""What a rule says of a response: a reward from 0 to 1, and why."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a response is worth.

    Args:
        reward: 1.0 for the label's answer, 0.0 for another; in between under a graded rule.
        reason: a few words, the same for the same cause, so that they can be counted.
    """

    reward: float
    reason: str


MATCH = Verdict(reward=1.0, reason="match")


def wrong(reason: str) -> Verdict:
    """No reward, for this reason."""
    return Verdict(reward=0.0, reason=reason)


def right_or(reason: str, right: bool) -> Verdict:
    """Full reward where ``right``, else none for this reason."""
    return MATCH if right else wrong(reason)


def graded(score: float) -> Verdict:
    """The verdict of a score in 0..1."""
    if score <= 0:
        return wrong("mismatch")
    return MATCH if score >= 1 else Verdict(reward=score, reason="partly")
