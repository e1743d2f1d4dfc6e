"""What a report calls a difference, on folders of finished stages written by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from masters.artifacts import RunInfo, StageInfo
from masters.data.tables import ANSWERS, REWARDS, shard_name, write_shard
from masters.evaluation.changes import sample
from masters.evaluation.paired import SIGN_FLIPS, mcnemar
from masters.evaluation.report import write_report
from masters.evaluation.statistics import mean_score

EVIL = "</td></table><script>alert(1)</script><img src=x onerror=alert(2)>\u202e\x07"
Scores = Sequence[float | None]


def evaluated(
    root: Path,
    name: str,
    scores: Scores,
    *,
    kinds: Sequence[str] = ("a",),
    texts: Mapping[int, str] | None = None,
    level: str = "low",
    label: str = "label",
) -> StageInfo:
    """An evaluate stage whose question i has scores[i] and the kind i modulo their number."""
    folder = root / name
    rows: list[dict[str, Any]] = []
    for i, score in enumerate(scores):
        said = (texts or {}).get(i, f"{name} says {i}")
        rows.append(
            {"question_id": f"q{i}", "ratio": 0, "text": said, "correct": score == 1}
            | {"score": score, "kind": kinds[i % len(kinds)], "label": f"{label} {i}"}
            | {"fields": json.dumps({"level": level if i % 3 else "high"}), "finish": "stop"}
        )
    rows[-1]["finish"] = "length"
    write_shard(folder / "answers" / shard_name(0), rows, ANSWERS)
    graded = any(score not in (0, 1, None) for score in scores)
    results = []
    for kind in ("all", *kinds):
        known = [r["score"] for r in rows if kind in ("all", r["kind"]) and r["score"] is not None]
        value, low, high = mean_score(known)
        about = {"benchmark": "b", "kind": kind, "metric": "score" if graded else "accuracy"}
        results.append(
            {**about, "ratio": 0, "value": value, "low": low, "high": high, "n": len(known)}
        )
    (folder / "results.json").write_text(json.dumps({"rows": results, "parameters": 1000}))
    return finished(folder, "evaluate", {"data": {"kind": "jsonl", "path": "gone.jsonl"}})


def finished(folder: Path, kind: str, spec: Mapping[str, object]) -> StageInfo:
    content = {"kind": kind, "spec": spec, "metrics": {}, "seconds": 1.0, "inputs": {}}
    (folder / "record.json").write_text(json.dumps({**content, "fingerprint": str(folder)}))
    return StageInfo(kind=kind, folder=folder, seconds=1.0)


def run_of(
    name: str,
    start: StageInfo,
    student: StageInfo,
    more: Mapping[str, StageInfo] | None = None,
    seed: int = 0,
) -> RunInfo:
    named = {"evaluate/start": start, "evaluate/student": student, **(more or {})}
    text = "evaluation: {by: [level]}\n"
    return RunInfo(name=name, seed=seed, recipe_yaml=text, stages=named)


def flipped(gained: int, lost: int, n: int = 100) -> tuple[list[float], list[float]]:
    """Right and wrong of two models: the second gains and loses so many of n questions."""
    before = [0.0] * gained + [1.0] * lost + [1.0] * (n - gained - lost)
    after = [1.0] * gained + [0.0] * lost + [1.0] * (n - gained - lost)
    return before, after


def reported(
    tmp_path: Path, before: Scores, after: Mapping[str, Scores], **more: Any
) -> tuple[dict[str, Any], str]:
    """report.json and the page of runs that share a start and a perfect teacher."""
    start = evaluated(tmp_path / "s", "start", before, **more)
    whole: list[float | None] = [1.0 if score is not None else None for score in before]
    teacher = evaluated(tmp_path / "s", "teacher", whole, **more)
    runs = [
        run_of(name, start, evaluated(tmp_path / "s", name, scores, **more),
               {"evaluate/teacher-large": teacher})
        for name, scores in after.items()
    ]  # fmt: skip
    report = write_report(tmp_path / "report", runs)
    return report, (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


def row_of(page: str, run: str, section: str) -> str:
    """A table's row in the page's section with that anchor."""
    part = page[page.index(f'<section id="{section}">') :]
    part = part[: part.index("</section>")]
    found = re.search(rf'<th scope="row">{run}</th>(.*?)</tr>', part, flags=re.DOTALL)
    assert found, part
    return found.group(1)


@pytest.mark.parametrize(
    ("gained", "lost", "verdict"),
    [
        (6, 0, "higher"),  # 2 / 2^6 = 0.031
        (5, 0, "not told apart"),  # 2 / 2^5 = 0.063, though Tango's interval has no room for 0
        (0, 6, "lower"),
        (20, 10, "not told apart"),  # 0.099
        (22, 8, "higher"),  # 0.016
        (9, 9, "not told apart"),
    ],
)
def test_a_mark_stands_where_mcnemars_test_says_so(tmp_path, gained, lost, verdict):
    before, after = flipped(gained, lost)
    report, page = reported(tmp_path, before, {"masters": after})
    [row] = report["summary"]["differences"]
    assert row["p"] == row["adjusted"] == mcnemar(gained, lost)
    assert (row["gained"], row["lost"], row["verdict"]) == (gained, lost, verdict)
    cells = row_of(page, "masters", "runs")
    assert ("mark higher" in cells, "mark lower" in cells) == (
        verdict == "higher",
        verdict == "lower",
    )
    for other in ("start", "teacher"):
        assert "class=" not in row_of(page, other, "runs").replace('class="n"', "").replace(
            'class="bar"', ""
        )
    assert ("not told apart from the start" in page) == (verdict == "not told apart")


def test_several_runs_are_one_family(tmp_path):
    one, other = flipped(6, 0)[1], flipped(3, 3)[1]
    before = flipped(6, 0)[0]
    alone, _ = reported(tmp_path / "1", before, {"masters": one})
    assert alone["summary"]["differences"][0]["verdict"] == "higher"
    report, page = reported(tmp_path / "2", before, {"distill": other, "masters": one})
    rows = {row["run"]: row for row in report["summary"]["differences"]}
    assert rows["masters"]["p"] == 0.03125 and rows["masters"]["adjusted"] == 0.0625
    assert rows["masters"]["verdict"] == "not told apart"
    assert "mark higher" not in row_of(page, "masters", "runs")


def test_the_papers_table_corrects_over_its_cells_and_averages_columns(tmp_path):
    # Two kinds by turns: 10 questions of "a" gained, none of "b".
    before = [0.0 if i % 2 == 0 and i < 20 else 1.0 for i in range(200)]
    report, page = reported(tmp_path, before, {"masters": [1.0] * 200}, kinds=("a", "b"))
    by_kind, by_level = report["tables"]
    assert (by_kind["by"], by_kind["columns"]) == ("kind", ["a", "b"])
    assert by_level["columns"] == ["high", "low"]
    start, masters, teacher = by_kind["rows"]
    assert [start["run"], masters["run"], teacher["run"]] == ["start", "masters", "teacher"]
    assert start["cells"]["a"]["value"] == pytest.approx(0.9)
    assert start["average"]["value"] == pytest.approx((0.9 + 1.0) / 2)
    assert start["cells"]["a"]["difference"] is None is teacher["average"]["difference"]
    cell = masters["cells"]["a"]["difference"]
    assert cell["p"] == mcnemar(10, 0) and cell["verdict"] == "higher"
    assert masters["cells"]["b"]["difference"]["verdict"] == "not told apart"
    tested = [c["difference"] for t in report["tables"] for r in t["rows"] if r["run"] == "masters"
              for c in (*r["cells"].values(), r["average"])]  # fmt: skip
    assert len(tested) == 6 and cell["adjusted"] > cell["p"]
    assert masters["average"]["difference"]["test"] == SIGN_FLIPS
    first = row_of(page, "masters", "kinds")
    assert first.count("mark higher") == 3  # a, the mean, all; not b
    assert "for all 6 differences" in page


def test_graded_scores_are_tested_by_sign_flips_and_called_scores(tmp_path):
    before = [0.5] * 30
    report, page = reported(tmp_path, before, {"masters": [0.75] * 8 + [0.5] * 22})
    [row] = report["summary"]["differences"]
    assert row["test"] == SIGN_FLIPS and row["p"] == pytest.approx(2 / 2**8, abs=0.004)
    assert row["verdict"] == "higher" and row["gained"] == 8
    assert "Scores more than at the start" in page and "Mean score" in page
    assert "75 % of full marks" in page and "Wrong at the start" not in page


def test_over_seeds_both_seeds_and_questions_must_agree(tmp_path):
    before, after = flipped(30, 0)
    start = evaluated(tmp_path, "start", before)
    steady = [after, [*after[:29], 0.0, *after[30:]], [*after[:28], 0.0, 0.0, *after[30:]]]
    mixed = [after, before, [1.0 - score for score in after]]
    for name, per_seed, verdict in (
        ("steady", steady, "higher"), ("mixed", mixed, "not told apart"),
    ):  # fmt: skip
        runs = [
            run_of(name, start, evaluated(tmp_path, f"{name}-{seed}", scores), seed=seed)
            for seed, scores in enumerate(per_seed)
        ]  # fmt: skip
        report = write_report(tmp_path / f"report-{name}", runs)
        rows = {row["seed"]: row for row in report["summary"]["differences"]}
        assert rows[None]["verdict"] == verdict and rows[None]["n"] == 3
        assert rows[0]["verdict"] == "higher"


def test_two_rules_are_not_compared(tmp_path):
    before, after = flipped(30, 0)
    start, student = (evaluated(tmp_path, n, s) for n, s in (("start", before), ("own", after)))
    finished(student.folder, "evaluate", {"data": {}, "rule": {"rule": "numeric"}})
    report = write_report(tmp_path / "report", [run_of("own", start, student)])
    assert report["summary"]["differences"] == [] == report["changes"]


def test_both_ways_are_counted_and_shown(tmp_path):
    before, after = flipped(20, 3)
    report, page = reported(tmp_path, before, {"masters": after})
    [row] = report["changes"]
    assert (row["better"], row["worse"], row["same"], row["no_verdict"]) == (20, 3, 77, 0)
    assert set(row["examples"]["worse"]) == {"q20", "q21", "q22"}
    assert row["examples"]["better"] == sample([f"q{i}" for i in reversed(range(20))], 12)
    assert len(set(row["examples"]["better"])) == 12
    part = page[page.index('<h3 id="masters-better">') : page.index('<h3 id="masters-worse">')]
    assert part.count('<article class="example">') == 12 and "12 of 20, out of 100" in part
    for card in part.split("<article")[1:]:
        key = int(re.findall(r"<code>q(\d+)</code>", card)[0])
        assert f"label {key}" in card and key < 20
        wrong, right = card.index(f"start says {key}"), card.index(f"masters says {key}")
        assert card.index("✗") < wrong < card.index("✓") < right
    assert 'href="#masters-better"' in page and 'href="#masters-worse"' in page
    assert "All of them, out of 100" in page


def test_missing_verdicts_are_shown_and_never_count_as_wrong(tmp_path):
    before, after = flipped(10, 0)
    scores: list[float | None] = [*after[:-4], None, None, None, None]
    report, page = reported(tmp_path, before, {"masters": scores})
    said = {row["run"]: row for row in report["verdicts"]["evaluated"]}
    assert said["masters"] == {
        "run": "masters", "seed": 0, "answers": 100, "missing": 4, "share": 0.04, "cut": 1,
    }  # fmt: skip
    assert said["start"]["missing"] == 0
    assert report["changes"][0]["no_verdict"] == 4 and report["changes"][0]["same"] == 86
    assert report["summary"]["differences"][0]["n"] == 96
    part = page[page.index("<h3>Missing verdicts</h3>") :]
    assert "4 of 0 responses and 300 answers have no verdict" in part and "4.00 %" in part
    last = page[page.index('<section id="changes">') :]
    assert last.count("no verdict") >= 1


def test_missing_verdicts_of_a_judge_stage_with_their_reasons(tmp_path):
    before, after = flipped(10, 0)
    judged = tmp_path / "judged"
    rows = [
        {"question_id": f"q{i}", "source": "teacher", "ratio": 0, "round": 0, "sample": 0}
        | {
            "reward": None if i < 3 else 1.0,
            "reason": ("unreadable", "unreadable", EVIL, "")[i % 4],
        }
        | {"judge": "server:<b>"}
        for i in range(40)
    ]
    write_shard(judged / "rewards" / shard_name(0), rows, REWARDS)
    run = run_of(
        "masters",
        evaluated(tmp_path, "start", before),
        evaluated(tmp_path, "masters", after),
        {"judge/0-large/teacher": finished(judged, "judge", {})},
    )
    report = write_report(tmp_path / "report", [run])
    [row] = report["verdicts"]["judged"]
    assert (row["stage"], row["missing"], row["responses"]) == ("0-large/teacher", 3, 40)
    assert row["share"] == 3 / 40 and row["reasons"] == {"unreadable": 2, EVIL: 1}
    assert row["judges"] == {"server:<b>": 40}
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "7.50 %" in page and "unreadable: 2" in page and "server:&lt;b&gt;" in page
    assert "<script" not in page and "<img src=x" not in page


def test_hostile_answers_stay_text(tmp_path):
    before, after = flipped(3, 3, n=12)
    evil = dict.fromkeys(range(12), EVIL)
    _, page = reported(
        tmp_path, before, {"<u>m": after}, texts=evil, kinds=("<i>a", "</table>b"), level="&lt;",
        label="<s>label",
    )  # fmt: skip
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 12
    for forbidden in (
        "<script",
        "<img src=x",
        "<i>a",
        "</table>b",
        "<s>",
        "<u>m",
        "\u202e",
        "\x07",
    ):
        assert forbidden not in page
    assert 'href="#-u-m-better"' in page and 'id="-u-m-better"' in page
    assert "&amp;lt;" in page  # a category that looks like an entity stays what it is
    assert page.count("<table") == page.count("</table>")
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", page)


def test_each_phase_is_a_row_between_the_start_and_the_end(tmp_path):
    before, after = flipped(20, 0)
    half, same = [*after[:9], *before[9:]], flipped(0, 0)[1]
    stages = {
        "train/0-mid": tmp_path, "train/1-large": tmp_path, "train/10-mid": tmp_path,
    }  # fmt: skip
    trained = {name: StageInfo(kind="train", folder=f, seconds=0.0) for name, f in stages.items()}
    finished(tmp_path, "train", {})
    run = RunInfo(
        name="ladder",
        seed=0,
        recipe_yaml="",
        stages={
            **trained,
            "evaluate/start": evaluated(tmp_path, "start", before),
            "evaluate/student@0": evaluated(tmp_path, "first", half),
            "evaluate/student@1": evaluated(tmp_path, "second", after),
            "evaluate/student": evaluated(tmp_path, "end", [*after[:15], *before[15:]]),
            "evaluate/teacher-large": evaluated(tmp_path, "teacher", same),
        },
    )
    report = write_report(tmp_path / "report", [run])
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    rows = [line["run"] for line in report["summary"]["runs"]]
    assert rows == ["start", "ladder/0-mid", "ladder/1-large", "ladder", "teacher"]
    verdicts = {row["run"]: row for row in report["summary"]["differences"]}
    assert {run: row["gained"] for run, row in verdicts.items()} == {
        "ladder/0-mid": 9, "ladder/1-large": 20, "ladder": 15,
    }  # fmt: skip
    assert "mark higher" in row_of(page, "ladder/0-mid", "runs")
    # What the recipe leaves is the result, though a phase before it scored more.
    assert [row["run"] for row in report["changes"]] == ["ladder"]
    assert "the student, after ladder<" in page and "The highest of" not in page
