"""Two evaluations compared, on folders that look like finished evaluate stages."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from masters.data.questions import Question
from masters.data.tables import ANSWERS, shard_name, write_shard
from masters.errors import RecipeError, StageError
from masters.evaluation.categories import categories, category_fields, score_tables
from masters.evaluation.comparison import Comparison, compare
from masters.evaluation.comparison_view import comparison_sheet, evaluation_sheet
from masters.evaluation.located import Located, evaluated_in, locate
from masters.evaluation.paired import mcnemar, paired_bootstrap, sign_flip
from masters.evaluation.readings import read_answers
from masters.evaluation.statistics import mean_score, paired_share_difference, wilson
from masters.measuring.output import are_evaluations, form_of

SPEC = {"prompt": {"suffix": None}, "rule": {"rule": "auto"}, "max_new_tokens": 8}


def answer(key: str, score: float | None, **changed: Any) -> dict[str, Any]:
    row = {"question_id": key, "ratio": 0, "text": "a", "correct": score == 1, "score": score}
    return {**row, "kind": "all", "label": "a", "fields": "{}", "finish": "stop", **changed}


def evaluation(
    folder: Path, rows: Sequence[Mapping[str, object]], spec: Mapping[str, object] = SPEC
) -> Located:
    write_shard(folder / "answers" / shard_name(0), rows, ANSWERS)
    results = {"rows": [], "parameters": 1000}
    (folder / "results.json").write_text(json.dumps(results))
    record = {"kind": "evaluate", "fingerprint": folder.name, "spec": spec, "inputs": {}}
    (folder / "record.json").write_text(json.dumps(record))
    return Located(name=folder.name, folder=folder)


def compared(
    root: Path, first: Sequence[float | None], second: Sequence[float | None], **options: Any
) -> Comparison:
    """Scores of the same questions, whose field ``topic`` is their place modulo 4."""

    def rows(scores: Sequence[float | None]) -> list[dict[str, Any]]:
        fields = [json.dumps({"topic": f"t{i % 4}"}) for i in range(len(scores))]
        return [answer(f"q{i}", s, fields=fields[i]) for i, s in enumerate(scores)]

    one, two = evaluation(root / "one", rows(first)), evaluation(root / "two", rows(second))
    return compare(one, two, **options)


# ------------------------------------------------------------------------------ the comparison


def test_right_and_wrong_by_hand(tmp_path: Path) -> None:
    # 20 questions: both right on 5, both wrong on 4, the second alone on 9, the first alone on 2.
    first = [1.0] * 5 + [0.0] * 4 + [0.0] * 9 + [1.0] * 2
    second = [1.0] * 5 + [0.0] * 4 + [1.0] * 9 + [0.0] * 2
    found = compared(tmp_path, first, second)
    (line,) = found.lines
    assert (line.n, line.gained, line.lost) == (20, 9, 2)
    assert line.first == wilson(7, 20) and line.second == wilson(14, 20)
    assert line.difference == paired_share_difference(9, 2, 20)
    # 2 (C(11, 0) + C(11, 1) + C(11, 2)) / 2^11
    assert line.p == line.adjusted == pytest.approx(2 * 67 / 2048)
    assert line.verdict == "not told apart", "7 of 20 more, and yet 0.065"
    assert found.test == "McNemar's exact test"
    turned = compared(tmp_path / "turned", second, first).lines[0]
    assert turned.difference.value == -line.difference.value
    assert (turned.p, turned.gained) == (line.p, line.lost)


def test_a_difference_is_called_with_its_direction(tmp_path: Path) -> None:
    first, second = [0.0] * 6 + [1.0] * 4, [1.0] * 10
    up = compared(tmp_path / "up", first, second).lines[0]
    assert (up.p, up.verdict) == (pytest.approx(2 / 64), "B higher")
    assert compared(tmp_path / "down", second, first).lines[0].verdict == "A higher"
    near = compared(tmp_path / "near", [0.0] * 5 + [1.0] * 5, second).lines[0]
    assert (near.p, near.verdict) == (pytest.approx(2 / 32), "not told apart")


def test_categories_are_corrected_together_and_the_whole_is_not(tmp_path: Path) -> None:
    # In t0 the second gains 6 of 6: p = 1/32 by itself, times 4 categories 1/8.
    first = [0.0 if i % 4 == 0 else 1.0 for i in range(24)]
    found = compared(tmp_path, first, [1.0] * 24, fields=["topic"])
    whole, *parts = found.lines
    assert [(line.by, line.category) for line in parts] == [("topic", f"t{i}") for i in range(4)]
    assert (whole.p, whole.adjusted, whole.verdict) == (mcnemar(6, 0), 1 / 32, "B higher")
    assert parts[0].p == pytest.approx(1 / 32) and parts[0].adjusted == pytest.approx(1 / 8)
    assert parts[0].verdict == "not told apart"
    assert all(line.adjusted == 1 for line in parts[1:])


def test_graded_scores(tmp_path: Path) -> None:
    draw = random.Random(0)
    first = [draw.choice([0.0, 0.3, 0.6, 1.0]) for _ in range(60)]
    second = [min(1.0, score + draw.choice([0.0, 0.0, 0.3])) for score in first]
    found = compared(tmp_path, first, second)
    (line,) = found.lines
    differences = [b - a for a, b in zip(first, second, strict=True)]
    assert found.graded and "sign flips" in found.test
    assert line.difference == paired_bootstrap(differences)
    assert line.p == sign_flip(differences)
    assert line.first == mean_score(first)
    assert line.gained == sum(d > 0 for d in differences) and line.lost == 0
    assert line.verdict == "B higher"
    single = compared(tmp_path / "single", [0.3], [0.6])
    assert single.lines[0].verdict == "not told apart"
    assert (
        json.loads(json.dumps(single.as_json(), allow_nan=False))["rows"][0]["difference_low"]
        is None
    )


def test_equal_models_are_rarely_told_apart_in_any_of_many_categories(tmp_path: Path) -> None:
    draw = random.Random(3)
    called = 0
    for turn in range(60):
        first, second = ([float(draw.random() < 0.5) for _ in range(80)] for _ in range(2))
        found = compared(tmp_path / str(turn), first, second, fields=["topic"])
        called += any(line.verdict != "not told apart" for line in found.lines[1:])
    # At most 3 of 60 are expected; more than 8 has a probability below 0.5 %.
    assert called <= 8


# ------------------------------------------------------------------------- the same questions


def test_questions_that_are_not_the_same_are_named(tmp_path: Path) -> None:
    first = [answer(f"q{i}", 1.0) for i in range(10)]
    second = [answer(f"q{i}", float(i % 2)) for i in range(2, 12)]
    second[0]["label"] = "b"
    second[1]["score"] = None
    one, two = evaluation(tmp_path / "one", first), evaluation(tmp_path / "two", second)
    with pytest.raises(StageError) as error:
        compare(one, two)
    said = str(error.value)
    assert "2 only in one: q0, q1;" in said and "2 only in two: q10, q11;" in said
    assert "1 with another label: q2;" in said and "1 without a verdict: q3" in said
    assert "on the 6 that they share with --shared" in said
    found = compare(one, two, shared_only=True)
    assert found.pairing.shared == ("q4", "q5", "q6", "q7", "q8", "q9")
    assert found.lines[0].n == 6 and found.lines[0].lost == 3
    notes = "\n".join(comparison_sheet(found).notes)
    assert "2 questions that only A was asked" in notes and "1 questions that have no ver" in notes
    other = evaluation(tmp_path / "other", [answer("x", 1.0)])
    with pytest.raises(StageError, match="none in common"):
        compare(one, other, shared_only=True)


def test_missing_verdicts_alone_are_left_out_and_said(tmp_path: Path) -> None:
    found = compared(tmp_path, [1.0, None, 0.0, 1.0], [1.0, 1.0, None, 0.0])
    assert found.pairing.no_verdict == ("q1", "q2") and found.lines[0].n == 2
    rows = score_tables(read_answers(tmp_path / "one"))
    assert (rows[0]["n"], rows[0]["missing"], rows[0]["value"]) == (3, 1, 2 / 3)
    assert "1 answers have no verdict" in "".join(evaluation_sheet({"one": rows}).notes)


def test_other_settings_are_said(tmp_path: Path) -> None:
    rows = [answer("q", 1.0)]
    one = evaluation(tmp_path / "one", rows, {**SPEC, "model": {"path": "a"}})
    changed = {**SPEC, "prompt": {"suffix": "Answer."}, "model": {"path": "b"}}
    found = compare(one, evaluation(tmp_path / "two", rows, changed))
    assert found.settings == {"prompt.suffix": (None, "Answer.")}
    assert "prompt.suffix is None for A, 'Answer.' for B" in comparison_sheet(found).notes[-1]


def test_a_judge_against_a_rule_is_one_note_and_what_moves_nothing_is_none(tmp_path: Path) -> None:
    rows, judge = [answer("q", 1.0)], {"model": "server", "name": "j", "max_missing": 0.05}
    specs = [
        {**SPEC, "rule": {"kind": "judge", "judge": judge}},
        {**SPEC, "rule": {"kind": "judge", "judge": {**judge, "max_missing": 1.0}}},
        {**SPEC, "rule": {"kind": "judge", "judge": None}},
    ]
    one, two, three = (evaluation(tmp_path / str(n), rows, spec) for n, spec in enumerate(specs))
    assert compare(one, two).settings == {}
    assert compare(one, three).settings == {"rule.judge": (judge, None)}


def test_a_field_of_one_recipe_that_the_data_lacks_stops_no_comparison(tmp_path: Path) -> None:
    rows = [answer("q", 1.0, fields='{"level": "1"}')]
    one, two = evaluation(tmp_path / "one", rows), evaluation(tmp_path / "two", rows)
    two = replace(two, by=("topic", "level"))
    assert [line.by for line in compare(one, two).lines] == ["all", "level"]
    with pytest.raises(StageError, match="--by topic"):
        compare(one, two, ["topic"])


# --------------------------------------------------------------------------------- categories


def test_fields_of_a_question_that_can_be_categories() -> None:
    meta: dict[str, object] = {
        "topic": "maps", "level": 3, "hard": True, "empty": "", "tags": ["a"],
        "explanation": "x" * 101, "none": None,
    }  # fmt: skip
    kept = json.loads(category_fields(Question(id="1", text="?", meta=meta)))
    assert kept == {"topic": "maps", "level": "3", "hard": "True"}


def test_categories_of_kind_and_fields() -> None:
    answers = {
        "a": answer("a", 1.0, kind="colour", fields='{"topic": "x"}'),
        "b": answer("b", 0.5, kind="shape", fields='{"topic": "y"}'),
        "c": answer("c", 0.0, kind="shape"),
    }
    assert categories(answers, "kind") == {"colour": ["a"], "shape": ["b", "c"]}
    assert categories(answers, "topic") == {"(none)": ["c"], "x": ["a"], "y": ["b"]}
    with pytest.raises(StageError, match="--by topics: .* expected one of kind, topic"):
        categories(answers, "topics")
    rows = score_tables(answers, ["topic"])
    assert [(row["by"], row["category"], row["n"]) for row in rows] == [
        ("all", "all", 3), ("kind", "colour", 1), ("kind", "shape", 2),
        ("topic", "(none)", 1), ("topic", "x", 1), ("topic", "y", 1),
    ]  # fmt: skip
    assert rows[2]["value"] == 0.25
    with pytest.raises(StageError, match="none of the answers has a verdict"):
        score_tables({"a": answer("a", None)})


# ------------------------------------------------------------------------------------ finding


def plan(out: Path, name: str, seed: int, stages: Mapping[str, Located]) -> None:
    content = {
        "recipe": name, "seed": seed, "yaml": "evaluation: {by: [topic]}",
        "stages": {
            stage: {"kind": "evaluate", "folder": str(found.folder.relative_to(out))}
            for stage, found in stages.items()
        },
    }  # fmt: skip
    (out / f"{name}-{seed}.plan.json").write_text(json.dumps(content))


def test_an_evaluation_is_found_by_folder_and_by_name(tmp_path: Path) -> None:
    row = [answer("q", 1.0)]
    found = {
        name: evaluation(tmp_path / "stages" / f"evaluate-{name}", row)
        for name in ("start", "sft", "masters", "masters1", "free")
    }
    plan(tmp_path, "sft", 0, {"evaluate/start": found["start"], "evaluate/student": found["sft"]})
    out = str(tmp_path)
    assert locate(out).folder == found["sft"].folder, "the only student"
    for seed, name in enumerate(("masters", "masters1")):
        stages = {"evaluate/start": found["start"], "evaluate/student": found[name]}
        plan(tmp_path, "masters", seed, stages)
    names = {name: item.folder for name, item in evaluated_in(tmp_path).items()}
    assert names == {
        "start": found["start"].folder, "sft": found["sft"].folder,
        "masters@0": found["masters"].folder, "masters@1": found["masters1"].folder,
    }  # fmt: skip
    assert locate(f"{out}:masters@1").by == ("topic",)
    assert locate(str(found["sft"].folder)).folder == found["sft"].folder
    with pytest.raises(StageError, match=r"which model\? Expected one of .*:start, .*:masters@1"):
        locate(out)
    (tmp_path / "evaluated").mkdir()
    noted = {"folder": "stages/evaluate-free", "by": ["level"], "model": "x"}
    (tmp_path / "evaluated" / "free.json").write_text(json.dumps(noted))
    assert locate(f"{out}:free") == Located(
        name=f"{out}:free", folder=found["free"].folder, by=("level",)
    )


def test_what_is_no_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="nothing: no such folder"):
        locate("nothing")
    with pytest.raises(StageError, match="holds no finished evaluation"):
        locate(str(tmp_path))
    (tmp_path / "record.json").write_text('{"kind": "train", "fingerprint": "x"}')
    with pytest.raises(StageError, match="of kind train; expected one of kind evaluate"):
        locate(str(tmp_path))
    (tmp_path / "record.json").unlink()
    (tmp_path / "a.plan.json").write_text("[1")
    with pytest.raises(StageError, match="a.plan.json is damaged"):
        locate(str(tmp_path))


def test_recipes_and_evaluations_are_told_apart_by_their_words() -> None:
    assert not are_evaluations(["masters", "sft", "own.yaml"])
    assert are_evaluations(["runs/a", "runs/b:masters"])
    for words in (["masters", "runs/a"], ["runs/a"], ["a", "b", "c"]):
        with pytest.raises(RecipeError, match="expected"):
            are_evaluations(words)
    assert form_of(as_json=False, markdown=True) == "markdown"
    with pytest.raises(RecipeError, match="expected one of them"):
        form_of(as_json=True, markdown=True)


# ------------------------------------------------------------------------------------- sheets


def test_sheets(tmp_path: Path) -> None:
    first = [answer(f"q{i}", float(i % 3 > 0), kind=("a|b", "c")[i % 2]) for i in range(30)]
    second = [{**row, "score": 1.0, "correct": True} for row in first]
    found = compare(evaluation(tmp_path / "1", first), evaluation(tmp_path / "2", second))
    sheet = comparison_sheet(found)
    lines = sheet.markdown().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table[3].startswith("| a\\|b | 15 |"), "a bar in a name breaks no table"
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    _, low, high = paired_share_difference(10, 0, 30)
    bounds = f"+{100 * low:.1f} to +{100 * high:.1f}"
    assert (
        table[2] == f"| all | 30 | 66.7 | 100.0 | +33.3 | {bounds} | 10 | 0 | 0.0020 | B higher |"
    )
    assert "corrected for 2 of them (Holm)" in lines[-2]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(sheet.terminal())
    assert "B higher" in console.export_text()
