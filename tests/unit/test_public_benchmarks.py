"""Public benchmarks read back: made-up output folders give the table, broken ones clear errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from masters.errors import DataError, StageError
from masters.evaluation.benchmarks.catalogue import BENCHMARKS, chosen
from masters.evaluation.benchmarks.harness import LMMS_EVAL, VLMEVALKIT
from masters.evaluation.benchmarks.kit_output import read_kit_output
from masters.evaluation.benchmarks.lmms_output import read_lmms_output
from masters.evaluation.benchmarks.reading import read_row
from masters.evaluation.benchmarks.scores import difference_of
from masters.evaluation.benchmarks.table import html_table, markdown_table, notes, table_json
from masters.evaluation.statistics import paired_share_difference, wilson

SAMPLE = Path(__file__).parents[1] / "samples" / "lmms_eval"
ROWS = ("start", "mid", "masters", "teacher")
STAMP = "20260101_120000"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The folder that holds the start's results, to break."""
    return Path(shutil.copytree(SAMPLE / "start", tmp_path / "start")) / "made-up__model"


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / f"{STAMP}_results.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def reported(model: str) -> dict[str, Any]:
    path = SAMPLE / model / "made-up__model" / f"{STAMP}_results.json"
    return json.loads(path.read_text())["results"]


@pytest.mark.parametrize("model", ROWS)
def test_every_benchmark_is_read_as_it_is_reported(model: str) -> None:
    scores = read_lmms_output(SAMPLE / model)
    results = reported(model)
    assert list(scores) == [benchmark.name for benchmark in BENCHMARKS]
    assert len(scores) == 13
    for name, task, metric, full in (
        ("ai2d", "ai2d", "exact_match,flexible-extract", 1),
        ("mathvista", "mathvista_testmini_format", "llm_as_judge_eval,none", 100),
        ("mmbench", "mmbench_en_dev", "gpt_eval_score,none", 100),
        ("mmstar", "mmstar", "average,none", 1),
        ("blink", "blink", "blink_acc,none", 1),  # the group, which is not what is read
        ("seed", "seedbench", "seed_image,none", 1),
    ):
        assert scores[name].value == pytest.approx(results[task][metric] / full, abs=1e-9)
    both = [results[f"mmmu_pro_{one}"]["mmmu_acc,none"] for one in ("standard", "vision")]
    assert scores["mmmu_pro"].value == pytest.approx(sum(both) / 2)
    # Rotations of MMBench and videos of SEED-Bench are no questions.
    counts = {name: score.n for name, score in scores.items()}
    assert counts == dict.fromkeys(counts, 14) | {"blink": 42}
    for score in scores.values():
        assert score.low is not None and score.high is not None
        assert 0 <= score.low <= score.value <= score.high <= 1


def test_intervals_by_what_is_counted() -> None:
    scores = read_lmms_output(SAMPLE / "start")
    share = scores["chartqa"]
    assert (share.low, share.high) == wilson(8, 14)[1:]
    # MM-Vet: t over 14 scores; worked out from the log apart from the code under test.
    path = SAMPLE / "start" / "made-up__model" / f"{STAMP}_samples_mmvet.jsonl"
    found = [json.loads(line)["gpt_eval_score"]["score"] for line in path.open()]
    mean = sum(found) / 14
    deviation = (sum((x - mean) ** 2 for x in found) / 13) ** 0.5
    assert scores["mmvet"].high == pytest.approx(mean + 2.160369 * deviation / 14**0.5, abs=1e-6)
    # MMMU-Pro asks a question twice, so the interval is wider than that of 28 answers.
    pro = scores["mmmu_pro"]
    assert pro.low is not None and pro.low < wilson(15, 28).low


def test_only_verdicts_are_compared() -> None:
    start, mid = read_lmms_output(SAMPLE / "start"), read_lmms_output(SAMPLE / "mid")
    assert {name: s.judge_failed for name, s in mid.items() if s.benchmark.judge} == {
        "mathvista": 1, "mmbench": None, "mmbench_cn": None, "mmvet": 1,
    }  # fmt: skip
    assert sum(s.judge_failed or 0 for s in start.values()) == 0
    pairs = [
        (one.score, start["mathvista"].questions[key].score)
        for key, one in mid["mathvista"].questions.items()
        if not one.judge_failed
    ]
    assert len(pairs) == 13
    gained, lost = (sum(a > b for a, b in pairs), sum(a < b for a, b in pairs))  # type: ignore[operator]
    expected = paired_share_difference(gained, lost, 13)
    assert difference_of(mid["mathvista"], start["mathvista"]) == expected
    # Right and wrong is not in MMBench's log, and MMMU's does not tell of its open questions.
    assert difference_of(mid["mmbench"], start["mmbench"]) is None
    assert [key for key, one in mid["mmmu"].questions.items() if one.score is None] == ["7"]


def test_a_group_counts_as_much_as_another() -> None:
    start, teacher = (read_lmms_output(SAMPLE / one)["mmstar"] for one in ("start", "teacher"))
    difference = difference_of(teacher, start)
    assert difference is not None
    assert difference.value == pytest.approx(teacher.value - start.value)
    assert difference.low < difference.value < difference.high


def test_two_data_sets_are_not_compared(copy: Path) -> None:
    log = copy / f"{STAMP}_samples_ai2d.jsonl"
    log.write_text(log.read_text().replace('"target": "C"', '"target": "D"'))
    with pytest.raises(DataError, match="question 2 of ai2d has the labels.*run both again"):
        difference_of(read_lmms_output(SAMPLE / "mid")["ai2d"], read_lmms_output(copy)["ai2d"])


def test_results_cut_while_writing(copy: Path) -> None:
    path = copy / f"{STAMP}_results.json"
    path.write_text(path.read_text()[:1000])
    with pytest.raises(DataError, match=r"results\.json: is no whole JSON.*Run it again"):
        read_lmms_output(copy)


def test_unknown_metric(copy: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["results"]["ai2d"]["exact_match,none"] = content["results"]["ai2d"].pop(
            "exact_match,flexible-extract"
        )

    edit(copy, change)
    with pytest.raises(DataError, match="no metric 'exact_match,flexible-extract' but exact_match"):
        read_lmms_output(copy)


@pytest.mark.parametrize("value", [None, "N/A", True, float("nan"), 57.1, -0.1])
def test_a_metric_that_is_no_share(copy: Path, value: object) -> None:
    edit(copy, lambda content: content["results"]["ai2d"].update(
        {"exact_match,flexible-extract": value}
    ))  # fmt: skip
    with pytest.raises(DataError, match="exact_match,flexible-extract of ai2d is"):
        read_lmms_output(copy)


def test_mathvista_reports_nothing_where_nothing_is_right(copy: Path) -> None:
    edit(copy, lambda content: content["results"]["mathvista_testmini_format"].update(
        {"llm_as_judge_eval,none": None}
    ))  # fmt: skip
    with pytest.raises(DataError, match="is None; expected a number"):
        read_lmms_output(copy)
    log = copy / f"{STAMP}_samples_mathvista_testmini_format.jsonl"
    log.write_text(log.read_text().replace('"true_false": true', '"true_false": false'))
    assert read_lmms_output(copy)["mathvista"].value == 0


def test_a_task_is_missing(copy: Path) -> None:
    edit(copy, lambda content: content["results"].pop("blink_jigsaw"))
    with pytest.raises(DataError, match="blink has 13 of its 14 tasks; blink_jigsaw missing"):
        read_lmms_output(copy)


def test_a_benchmark_is_missing(copy: Path) -> None:
    edit(copy, lambda content: content["results"].pop("mmstar"))
    assert "mmstar" not in read_row(str(copy)).scores
    with pytest.raises(DataError, match="holds no mmstar; it has ai2d, chartqa"):
        read_row(f"start={copy}", BENCHMARKS)
    assert list(read_row(str(copy), chosen("seed,ai2d")).scores) == ["ai2d", "seed"]


def test_two_runs_of_one_task(copy: Path) -> None:
    shutil.copy(copy / f"{STAMP}_results.json", copy / "20260102_080000_results.json")
    with pytest.raises(DataError, match="two runs of ai2d.*20260101.*20260102.*Name the folder"):
        read_lmms_output(copy)


def test_two_runs_in_one_log(copy: Path) -> None:
    log = copy / f"{STAMP}_samples_chartqa.jsonl"
    lines = log.read_text().splitlines()
    assert '"relaxed_overall": 0.0' in "".join(lines)
    turned = [line.replace(": 0.0", ": 1.0") for line in lines]
    log.write_text("\n".join([*lines, *turned]) + "\n")
    with pytest.raises(DataError, match="chartqa is reported as 57.14.*questions give 100.00"):
        read_lmms_output(copy)


def test_a_cut_log(copy: Path) -> None:
    log = copy / f"{STAMP}_samples_ai2d.jsonl"
    whole = log.read_text()
    log.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match="logs 13 questions.*says that 14 were asked"):
        read_lmms_output(copy)
    log.write_text(whole[:-30])
    with pytest.raises(DataError, match=r"samples_ai2d\.jsonl:14: is no logged question"):
        read_lmms_output(copy)
    log.unlink()  # no log at all: the number stands, with nothing to tell its interval
    score = read_lmms_output(copy)["ai2d"]
    assert (score.n, score.low, score.questions) == (None, None, {})


def test_an_open_question_bounds_what_mmmu_can_be(copy: Path) -> None:
    before = reported("start")["mmmu_val"]["mmmu_acc,none"]
    for shift, fits in ((0, True), (1 / 14, True), (2 / 14, False), (-1 / 14, False)):
        edit(copy, lambda content, shift=shift: content["results"]["mmmu_val"].update(
            {"mmmu_acc,none": before + shift}
        ))  # fmt: skip
        if fits:
            read_lmms_output(copy)
        else:
            with pytest.raises(DataError, match=r"mmmu is reported as .* give 42\.86 to 50\.00"):
                read_lmms_output(copy)


def test_other_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no results of lmms-eval"):
        read_row(str(tmp_path))
    with pytest.raises(DataError, match="no such folder"):
        read_row(f"start={tmp_path / 'gone'}")
    (tmp_path / f"{STAMP}_results.json").write_text('{"ai2d": 0.5}')
    with pytest.raises(DataError, match='has no "results" of tasks'):
        read_row(str(tmp_path))


def test_the_table_has_the_papers_layout() -> None:
    content = table_json([read_row(f"{name}={SAMPLE / name}") for name in ROWS])
    assert [row["label"] for row in content["rows"]] == list(ROWS)
    assert [b["title"] for b in content["benchmarks"]] == [
        "AI2D", "ChartQA", "MathVista", "MMB", "MMB-CN", "MM-Vet", "MMMU", "MMMU-Pro", "MMStar",
        "BLINK", "SEED", "SEED2+", "RWQA",
    ]  # fmt: skip
    start, _, masters, _ = content["rows"]
    values = [start["scores"][b.name]["value"] for b in BENCHMARKS]
    assert start["average"]["value"] == pytest.approx(sum(values) / 13)
    assert start["differences"] == {}
    better = {name for name, d in masters["differences"].items() if d["low"] > 0}
    assert "blink" in better and "chartqa" not in better and "mmbench" not in masters["differences"]
    lines = markdown_table(content).splitlines()
    assert lines[0].startswith("| model | AI2D | ChartQA |")
    assert lines[0].endswith("| RWQA | mean of 13 |")
    assert [line.split(" | ")[0] for line in lines[2:6]] == [f"| {name}" for name in ROWS]
    assert lines[4].count("▲") == len(better)
    page = html_table(content)
    assert page.count("<tr>") == 5 and page.count("<td>") == 4 * 14
    json.dumps(content, allow_nan=False)
    said = notes(content)
    assert "MathVista: judge not recorded" in said
    assert any(
        note.startswith("MM-Vet, mid: the judge gave no verdict on 1 of 14") for note in said
    )


def test_labels_are_escaped_and_differ(copy: Path) -> None:
    row = read_row(f"<b>={copy}")
    assert "&lt;b&gt;" in html_table(table_json([row])) and "<b>" not in html_table(
        table_json([row])
    )
    with pytest.raises(DataError, match="two rows share a label"):
        table_json([row, row])


def test_a_limited_run_is_marked_and_out_of_the_mean(copy: Path) -> None:
    edit(copy, lambda content: content["n-samples"]["ai2d"].update({"original": 3088}))
    content = table_json([read_row(f"start={copy}"), read_row(f"masters={SAMPLE / 'masters'}")])
    assert "ai2d" not in content["averaged"] and len(content["averaged"]) == 12
    text = markdown_table(content)
    assert "57.1 (32.6 to 78.6)* |" in text
    assert "- AI2D, start: * only 14 questions were asked" in text


def test_names_of_benchmarks() -> None:
    assert chosen("all") == BENCHMARKS
    assert [b.name for b in chosen("RealWorldQA, ai2d")] == ["ai2d", "realworldqa"]
    for wrong, words in (
        ("ai2d,textvqa", "no benchmark textvqa; expected all"),
        (" ,", "names none"),
    ):
        with pytest.raises(StageError, match=words):
            chosen(wrong)


def kit(folder: Path, **datasets: dict[str, Any]) -> Path:
    """A made-up status.json in VLMEvalKit's layout, with the link that it leaves above."""
    run = folder / "model" / "T20260101_G00000000"
    run.mkdir(parents=True)
    status = {"schema_version": "1.0", "commit": "e8e78f05", "datasets": datasets}
    (run / "status.json").write_text(json.dumps(status))
    (folder / "model" / "status.json").symlink_to(run / "status.json")
    return folder


def done(key: str, value: object, **more: object) -> dict[str, Any]:
    return {"status": "done", "judge_model": "made-up-judge", "metrics": {key: value}, **more}


def test_vlmevalkit_is_read(tmp_path: Path) -> None:
    kit(
        tmp_path,
        AI2D_TEST=done("split=none|Overall", 0.75),
        MathVista_MINI=done("Task&Skill=Overall|acc", 61.5),
        MMMU_Pro_10c=done("split=none|Overall", 0.5),
        MMMU_Pro_V=done("split=none|Overall", 0.3),
    )
    row = read_row(f"start={tmp_path}")
    values = {name: score.value for name, score in row.scores.items()}
    assert values == pytest.approx({"ai2d": 0.75, "mathvista": 0.615, "mmmu_pro": 0.4})
    assert row.scores["mathvista"].judge == "made-up-judge"
    content = table_json([row, read_row(f"masters={SAMPLE / 'masters'}")])
    assert "harnesses or versions differ: these rows are not comparable" in notes(content)
    assert "75.0 |" in markdown_table(content)  # no interval, and none is invented


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (done("split=none|Overall", 0.7, error_message="no disk"), "was not scored: no disk"),
        (done("split=none|Overall", 0.7) | {"status": "infer"}, "is at 'infer'"),
        (done("split=test|Overall", 0.7), "no number 'split=none|Overall' but split=test"),
        (done("split=none|Overall", 70.0), "is 70.0; expected 0 to 1"),
    ],
)
def test_vlmevalkit_broken(tmp_path: Path, status: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words.replace("|", r"\|")):
        read_kit_output(kit(tmp_path, RealWorldQA=status))


def test_vlmevalkit_half_a_benchmark(tmp_path: Path) -> None:
    kit(tmp_path, MMMU_Pro_V=done("split=none|Overall", 0.3))
    with pytest.raises(DataError, match="mmmu_pro has MMMU_Pro_V but not MMMU_Pro_10c"):
        read_kit_output(tmp_path)


def test_the_documents_table_is_that_of_the_sample() -> None:
    page = (SAMPLE.parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    table = markdown_table(table_json([read_row(f"{name}={SAMPLE / name}") for name in ROWS]))
    assert table in page
    assert "**The table below is a made-up sample. No model was run" in page
    for benchmark in BENCHMARKS:
        assert f"--benchmarks {benchmark.name} --" in page  # a command for each
    assert f"lmms-eval=={LMMS_EVAL}" in page and VLMEVALKIT in page
