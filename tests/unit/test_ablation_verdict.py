"""Pairing and verdicts, against values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from masters.ablation.diagnostics import diagnose
from masters.ablation.tuning import Try, choose
from masters.ablation.verdict import Finding, findings, paired, verdict
from masters.evaluation.statistics import Interval


@pytest.mark.parametrize(
    ("low", "high", "up", "down", "equal"),
    [
        (0.1, 3.0, "yes", "no", "no"),  # a sure gain
        (-3.0, -0.1, "no", "yes", "no"),  # a sure loss
        (0.1, 0.9, "yes", "no", "yes"),  # sure, and smaller than a point
        (-0.9, -0.1, "no", "yes", "yes"),
        (-0.5, 0.8, "no", "no", "yes"),  # none, within a point
        (-1.0, 1.0, "no", "no", "yes"),  # a bound at a point is within
        (-1.01, 1.0, "unclear", "unclear", "unclear"),
        (-2.0, 4.0, "unclear", "unclear", "unclear"),
        (0.0, 0.5, "no", "no", "yes"),  # a bound at 0 does not leave 0 out
        (0.0, 2.0, "unclear", "unclear", "unclear"),
        (0.0, 0.0, "no", "no", "yes"),
        (math.nan, math.nan, "unclear", "unclear", "unclear"),  # one seed
    ],
)
def test_verdicts(low: float, high: float, up: str, down: str, equal: str) -> None:
    interval = Interval((low + high) / 2, low, high)
    assert verdict(interval, "up") == up
    assert verdict(interval, "down") == down
    assert verdict(interval, "equal") == equal


ACCURACIES = {
    "a": {0: 0.50, 1: 0.52, 2: 0.60},
    "b": {0: 0.53, 1: 0.53},
    "c": {1: 0.40, 0: 0.41, 2: 0.9},
    "d": {0: 0.45, 1: 0.47, 2: 0.1},
}


def test_pairs_are_of_the_seeds_that_both_have() -> None:
    assert paired(ACCURACIES, ["a"], ["b"]) == {0: 3.0, 1: 1.0}
    assert paired(ACCURACIES, ["b"], ["a"]) == {0: -3.0, 1: -1.0}
    assert paired(ACCURACIES, ["a"], ["gone"]) == {}


def test_an_interaction_is_the_difference_of_differences() -> None:
    """Seed 0: (45 - 41) - (53 - 50) = 1; seed 1: (47 - 40) - (53 - 52) = 6; 2 has no b."""
    assert paired(ACCURACIES, ["a", "b"], ["c", "d"]) == {0: 1.0, 1: 6.0}


def results(expects: str = "up") -> dict[str, Any]:
    claim = {
        "id": "x", "says": "So.", "source": "there", "expects": expects, "first": ["a"],
        "second": ["b"], "data": ["scenes", "other"],
    }  # fmt: skip
    runs = [
        {"data": "scenes", "arm": arm, "seed": seed, "accuracy": accuracy}
        for arm, by_seed in ACCURACIES.items()
        for seed, accuracy in by_seed.items()
    ]
    return {"suite": "s", "command": "c", "claims": [claim], "seeds": [0, 1, 2], "runs": runs}


def test_a_finding_by_hand() -> None:
    """Differences 3 and 1: mean 2, sd sqrt 2, standard error 1, t(1) = 12.7062."""
    scenes, other = findings(results())
    assert (scenes.differences, scenes.lacking) == ({0: 3.0, 1: 1.0}, (2,))
    assert scenes.as_json() == {
        "claim": "x: So.", "source": "there", "data": "scenes", "held": "unclear",
        "difference": 2.0, "low": -10.706, "high": 14.706, "seeds": 2, "command": "c",
    }  # fmt: skip
    assert (other.interval, other.held, other.lacking) == (None, "unclear", (0, 1, 2))
    assert other.as_json()["difference"] is None


def test_one_seed_gives_a_difference_and_no_verdict() -> None:
    found = results()
    found["runs"] = [run for run in found["runs"] if run["seed"] == 0]
    only: Finding = findings(found)[0]
    row = only.as_json()
    assert (row["difference"], row["low"], row["seeds"], row["held"]) == (3.0, None, 1, "unclear")


@pytest.mark.parametrize(
    ("accuracies", "chosen"),
    [
        ((0.5, 0.7, 0.6), 2),
        ((0.5, 0.6, 0.7), 3),
        ((0.7, 0.7, 0.6), 2),  # the closer to the middle
        ((0.7, 0.6, 0.7), 1),  # as close: the smaller
        ((0.7, 0.7), 1),
        ((0.5, None, 0.4), 1),  # what diverged is the worst,
        ((0.0, None, 0.0), 1),  # even of a training that learnt nothing
        ((None, None, None), None),
    ],
)
def test_the_chosen_value(accuracies: tuple[float | None, ...], chosen: int | None) -> None:
    tries = [Try(value=i + 1, accuracy=accuracy) for i, accuracy in enumerate(accuracies)]
    assert choose(tries) == chosen


def test_diagnostics_by_hand() -> None:
    rows = [
        {"step": i, "kl/max": value, "time/step_seconds": 1.0, "mask/ratio": ratio}
        for i, (value, ratio) in enumerate(
            [(1.0, 0.2), (2.0, 0.2), (3.0, 0.1), (5.0, 0.1), (math.nan, 0.0), (10.0, 0.0)]
        )
    ]
    found = diagnose(rows)
    assert found == {
        "kl/max": {
            "mean": 4.2, "max": 10.0, "thirds": [1.5, 4.0, 10.0],
            "by_ratio": {"0.2": 1.5, "0.1": 4.0, "0": 10.0},
        }
    }  # fmt: skip
    assert "by_ratio" not in diagnose(rows[:2])["kl/max"]
    assert diagnose([]) == {}
