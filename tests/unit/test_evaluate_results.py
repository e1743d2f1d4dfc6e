"""results.json of an evaluate stage: right and wrong, graded scores, missing verdicts."""

from __future__ import annotations

from typing import Any

import pytest

from masters.errors import StageError
from masters.evaluation.statistics import mean_score, wilson
from masters.recipe import AccuracyRule, Prompt
from masters.recipe_parts import ScenesSource
from masters.specs import EvaluateSpec, ModelRef
from masters.stages.evaluate import _results

SPEC = EvaluateSpec(
    model=ModelRef(path="x"), data=ScenesSource(count=1), prompt=Prompt(), benchmark="held_out",
    rule=AccuracyRule(), max_new_tokens=8, precision="fp32", ratios=(1000, 0),
)  # fmt: skip
ZEROS = {0: 0.0, 1000: 0.09}


def answers(ratio: int, kind: str, *scores: float | None) -> list[dict[str, Any]]:
    return [{"ratio": ratio, "kind": kind, "score": score} for score in scores]


def test_a_row_for_all_and_for_each_kind_at_each_ratio() -> None:
    given = [*answers(0, "colour", 1.0, 0.0, 1.0), *answers(0, "shape", 0.0, 1.0)]
    rows = _results(SPEC, [*given, *answers(1000, "shape", 0.0)], ZEROS)
    found = {(row["ratio"], row["kind"]): row for row in rows}
    assert list(found) == [(0, "all"), (0, "colour"), (0, "shape"), (1000, "all"), (1000, "shape")]
    assert {row["metric"] for row in rows} == {"accuracy"}
    for key, (right, n) in {
        (0, "all"): (3, 5),
        (0, "colour"): (2, 3),
        (1000, "all"): (0, 1),
    }.items():
        row = found[key]
        assert (row["value"], row["low"], row["high"]) == wilson(right, n)
        assert (row["n"], row["missing"], row["zeros"]) == (n, 0, ZEROS[key[0]])


def test_graded_scores_are_averaged_and_missing_verdicts_count_neither_way() -> None:
    given = [*answers(0, "text", 0.3, 1.0, None, 0.6), *answers(0, "lost", None)]
    whole, text = _results(SPEC, given, ZEROS)
    assert (whole["value"], whole["low"], whole["high"]) == mean_score([0.3, 1.0, 0.6])
    assert (whole["n"], whole["missing"]) == (3, 2)
    assert (text["kind"], text["n"], text["missing"]) == ("text", 3, 1), "no row without a verdict"
    with pytest.raises(StageError, match="none of 1 answers at ratio 0 has a verdict"):
        _results(SPEC, answers(0, "lost", None), ZEROS)
