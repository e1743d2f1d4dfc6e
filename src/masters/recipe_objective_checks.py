"""What must hold of a recipe's objective: each term has what it reads, and none is idle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from masters.recipe_errors import wrong
from masters.recipe_needs import DIVERGENCES, compares

if TYPE_CHECKING:
    from masters.recipe import Method


def terms_fed(method: Method) -> None:
    """Every term is there once and has what it reads, and all mean the same divergence."""
    _one_divergence(method)
    group = method.responses.teacher + method.responses.student
    kinds = [(term.kind, term.on) for term in method.objective]
    for index, term in enumerate(method.objective):
        at = ("method", "objective", index)
        if kinds.index((term.kind, term.on)) != index:
            raise wrong(at, f"is a second {term.kind} on {term.on}; expected one with its weight")
        if term.on == "responses" and group == 0:
            raise wrong(
                (*at, "on"),
                "is 'responses', but method.responses asks for none; expected teacher or student "
                "to be at least 1",
            )
        if term.kind == "grpo" and group < 2:
            raise wrong(
                at,
                f"is grpo with {group} response a question; expected method.responses.teacher + "
                f"student to be at least 2",
            )
        if term.kind == "grpo" and not (method.rewards.accuracy or method.rewards.distillation):
            raise wrong(
                at,
                "is grpo without a reward; expected method.rewards.accuracy or "
                "method.rewards.distillation",
            )
        if term.kind == "nll" and term.keep == "correct" and term.on == "labels":
            raise wrong(
                (*at, "keep"),
                "is 'correct' on labels, which are all taken for right; expected on: responses, or "
                "keep: all",
            )
        if term.kind == "nll" and term.keep == "correct" and method.rewards.accuracy is None:
            raise wrong(
                (*at, "keep"),
                "is 'correct', but nothing says what is right; expected method.rewards.accuracy",
            )
    if all(term.weight == 0 for term in method.objective):
        raise wrong(("method", "objective"), "has only weights of 0; expected one above 0")
    _earned(method)


def _one_divergence(method: Method) -> None:
    divergences = {_divergence(t) for t in method.objective if t.kind in DIVERGENCES}
    if len({kind for kind, *_ in divergences}) > 1:
        raise wrong(
            ("method", "objective"),
            "has both jsd and skew_kl, and a token has one divergence; expected one of the kinds",
        )
    if len(divergences) > 1:
        jsd = any(term.kind == "jsd" for term in method.objective)
        keys = (
            "jsd terms of different beta" if jsd else "skew_kl terms of different direction, alpha"
        )
        raise wrong(
            ("method", "objective"),
            f"has {keys} or temperature; expected the same for all",
        )


def _earned(method: Method) -> None:
    """What only right answers earn needs to know which are right."""
    distillation = method.rewards.distillation
    if distillation is None or distillation.earned_by == "all":
        return
    if method.rewards.accuracy is None or not distillation.normalise:
        raise wrong(
            ("method", "rewards", "distillation", "earned_by"),
            "is 'right', but nothing says what is right, or -D itself is the reward; expected "
            "method.rewards.accuracy, and normalise: true",
        )


def _divergence(term: Any) -> tuple[object, ...]:
    """All that says which divergence a term means."""
    keys = {"kind", "beta", "direction", "alpha", "temperature"}
    return tuple(term.model_dump(include=keys).values())


def signal_storable(method: Method) -> None:
    """A stored signal is of responses, and something is compared with it."""
    if method.signal == "live":
        return
    for term in method.objective:
        if term.on == "labels":
            raise wrong(
                ("method", "signal"),
                f"is {method.signal!r}, which is stored for responses only, but {term.kind} is on "
                "labels; expected 'live', or every term on responses",
            )
    if method.signal == "topk" and any(t.kind == "skew_kl" for t in method.objective):
        raise wrong(
            ("method", "signal"),
            "is 'topk', which bounds what a jsd lacks and no skew_kl; expected 'hidden' or 'live'",
        )
    if not compares(method):
        raise wrong(
            ("method", "signal"),
            f"is {method.signal!r}, but no divergence and no distillation reward reads it; "
            "expected 'live'",
        )
