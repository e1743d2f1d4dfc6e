"""What a judge's replies say, read strictly: what is not plainly a verdict is none."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A score, or why there is none.

    Args:
        score: 0 or 1; None where the reply holds no verdict.
        problem: then the cause, in a few words that are the same for the same cause.
        explanation: what the first call said besides its tag.
    """

    score: int | None
    problem: str = ""
    explanation: str = ""


def read_explanation(reply: str, mark: str) -> Reading:
    """The score in the one tag that carries the call's mark.

    Tags of any other name are text: a fake one that the judge quotes out of a response cannot
    carry the mark. More than one tag with the mark is no verdict, even where they agree: then the
    reply does not follow its instructions, and nobody knows which one was meant.
    """
    name = f"answer-{re.escape(mark)}"
    tags = re.findall(rf"<[\s/]*{name}\s*>", reply, flags=re.IGNORECASE)
    match = re.search(rf"<{name}>([^<>]*)</{name}>", reply)
    if not tags:
        return Reading(score=None, problem="no answer tag")
    if len(tags) > 2:
        return Reading(score=None, problem="several answer tags")
    if match is None:
        return Reading(score=None, problem="broken answer tag")
    score = match[1].strip()
    if score not in ("0", "1"):
        return Reading(score=None, problem="tag holds neither 0 nor 1")
    explanation = (reply[: match.start()] + reply[match.end() :]).strip()
    return Reading(score=int(score), explanation=explanation)


def read_score(reply: str) -> Reading:
    """The one digit that the second call printed, with nothing but white space around it."""
    text = reply.strip()
    if text not in ("0", "1"):
        return Reading(score=None, problem="second call printed neither 0 nor 1")
    return Reading(score=int(text))
