"""What a method's objective asks for: a teacher, a comparison with it, verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from masters.recipe import Jsd, Method, SkewKl, Term

#: Terms that compare the student with its teacher, token by token.
DIVERGENCES = frozenset({"jsd", "skew_kl"})


def compared_by(objective: Sequence[Term]) -> Jsd | SkewKl | None:
    """The divergence of teacher and student; None without one (a reward then takes the default)."""
    return next((t for t in objective if t.kind == "jsd" or t.kind == "skew_kl"), None)


def compares(method: Method) -> bool:
    """Whether training compares the student with its teacher, token by token."""
    kinds = {term.kind for term in method.objective}
    return bool(kinds & DIVERGENCES) or (
        "grpo" in kinds and method.rewards.distillation is not None
    )


def judges(method: Method) -> bool:
    """Whether training reads accuracy rewards: to reward with them, or to keep what is right."""
    policy = any(term.kind == "grpo" for term in method.objective)
    picks = any(term.kind == "nll" and term.keep == "correct" for term in method.objective)
    return (policy or picks) and method.rewards.accuracy is not None


def teacher_needed_by(method: Method) -> str | None:
    """The first thing in the method that asks a teacher, or None."""
    for index, term in enumerate(method.objective):
        where = f"method.objective[{index}] ({term.kind})"
        if term.kind in DIVERGENCES:
            return where
        if term.kind == "grpo" and method.rewards.distillation is not None:
            return f"the distillation reward of {where}"
        if term.on == "responses" and method.responses.teacher > 0:
            return f"method.responses.teacher ({method.responses.teacher})"
    return None
