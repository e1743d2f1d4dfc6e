"""What a report shows beside its runs: public benchmarks and speed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from masters.evaluation.beside import read_beside, stamp
from masters.evaluation.page_results import speed_points
from masters.evaluation.report import write_report
from masters.evaluation.speed import SPEED, Speed, Speeds, Spread

from .test_report_marks import evaluated, flipped, run_of

SAMPLE = Path(__file__).parents[1] / "samples" / "lmms_eval"


def speed(model: str, role: str, size: int, batch: int, rate: float) -> Speed:
    same = Spread.of([rate, 0.9 * rate, 1.1 * rate])
    return Speed(
        model=model, role=role, parameters=size, batch=batch, prompt_tokens=27, new_tokens=64,
        encode=same, first=same, decode=same, answer=same, peak_bytes=None,
    )  # fmt: skip


def speeds() -> Speeds:
    return Speeds(
        command="masters speed <x>",
        machine={"device": "cpu", "name": "<b>cpu", "precision": "fp32", "threads": 1},
        settings={"new_tokens": 64, "repeats": 3},
        rows=(
            speed("small", "student", 1_000, 1, 900.0),
            speed("mid", "teacher", 5_000, 1, 500.0),
            speed("large", "teacher", 9_000, 1, 100.0),
            speed("small", "student", 1_000, 8, 7_000.0),
        ),
    )


def reported(out: Path) -> tuple[dict[str, Any], str]:
    before, after = flipped(10, 0)
    run = run_of(
        "masters",
        evaluated(out / "s", "start", before),
        evaluated(out / "s", "masters", after),
        {"evaluate/teacher-large": evaluated(out / "s", "teacher", [1.0] * 100)},
    )
    report = write_report(out / "report", [run], around=out)
    return report, (out / "report" / "report.html").read_text(encoding="utf-8")


def test_without_them_nothing_is_said(tmp_path):
    report, page = reported(tmp_path)
    assert report["benchmarks"] is None is report["speed"] and report["unread"] == []
    assert "Public benchmarks" not in page and '"#speed"' not in page and "Not shown" not in page


def test_benchmarks_in_the_papers_order_with_marks(tmp_path):
    for name in ("teacher", "masters", "mid", "start"):
        shutil.copytree(SAMPLE / name, tmp_path / "benchmarks" / name)
    report, page = reported(tmp_path)
    rows = report["benchmarks"]["rows"]
    assert [row["label"] for row in rows] == ["start", "mid", "masters", "teacher"]
    assert len(report["benchmarks"]["averaged"]) == 13
    part = page[page.index('<section id="benchmarks">') :]
    part = part[: part.index("</section>")]
    assert "mean of 13" in part and part.count("mark higher") == 2
    assert "MM-Vet, mid: the judge gave no verdict on 1 of 14 questions" in part
    json.dumps(report, allow_nan=False)


def test_what_cannot_be_read_is_named_and_the_report_stands(tmp_path):
    shutil.copytree(SAMPLE / "start", tmp_path / "benchmarks" / "start")
    (tmp_path / "benchmarks" / "<b>broken").mkdir()
    (tmp_path / SPEED).write_text("{")
    report, page = reported(tmp_path)
    assert [row["label"] for row in report["benchmarks"]["rows"]] == ["start"]
    assert len(report["unread"]) == 2 and "<b>broken" in report["unread"][0]
    assert "Not shown" in page and "&lt;b&gt;broken" in page and "<b>broken" not in page


def test_speed_is_drawn_against_accuracy(tmp_path):
    (tmp_path / SPEED).write_text(json.dumps(speeds().as_json()))
    report, page = reported(tmp_path)
    assert report["speed"]["rows"][0]["decode"]["median"] == 900.0
    part = page[page.index('<section id="speed">') :]
    part = part[: part.index("</section>")]
    assert part.count("<img") == 2 and "8 questions at a time" in part
    assert "&lt;b&gt;cpu" in part and "masters speed &lt;x&gt;" in part
    assert (tmp_path / "report" / "speed-1.png").stat().st_size > 5_000


def test_every_model_takes_the_speed_that_is_its_own():
    lines = [{"run": run} for run in ("start", "masters", "teacher-mid", "teacher", "teacher-x")]
    points = speed_points(lines, speeds(), 1, "student")
    assert {point["run"]: point["speed"].decode.median for point in points} == {
        "start": 900.0, "masters": 900.0, "teacher-mid": 500.0, "teacher": 100.0,
    }  # fmt: skip
    assert [p["run"] for p in speed_points(lines, speeds(), 8, "student")] == ["start", "masters"]


def test_the_stamp_follows_what_is_read(tmp_path):
    seen = {stamp(tmp_path)}
    (tmp_path / SPEED).write_text("{}")
    seen.add(stamp(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "benchmark.json").write_text("{}")
    (tmp_path / "benchmarks").mkdir()
    seen.add(stamp(tmp_path))  # an empty folder says nothing
    (tmp_path / "benchmarks" / "start").symlink_to(elsewhere)
    seen.add(stamp(tmp_path))
    os.utime(elsewhere / "benchmark.json", ns=(1, 1))
    seen.add(stamp(tmp_path))
    assert len(seen) == 4 and stamp(tmp_path) in seen
    shown = read_beside(tmp_path, ["start"])
    assert shown.benchmarks is None and len(shown.unread) == 2
