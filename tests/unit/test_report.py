"""The report over folders that look like finished stages, made up on the spot."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from rich.console import Console

from masters.artifacts import RunInfo, StageInfo
from masters.data.sources import Source, open_questions
from masters.data.tables import ANSWERS, REWARDS, shard_name, write_shard
from masters.errors import MastersError
from masters.evaluation.examples import choose_examples
from masters.evaluation.headline import model_names
from masters.evaluation.markup import answer, duration, parameters
from masters.evaluation.readings import last_third_gain, training_curve
from masters.evaluation.report import terminal_table, write_report
from masters.evaluation.statistics import t_interval

QUESTIONS = 120
SCENES = {"kind": "scenes", "count": QUESTIONS, "seed": 7, "wording": "word", "image": 48}
HOSTILE = '<script>alert(1)</script>\x00\u202e & "red"'
TRUE = {"start": 0.58, "sft": 0.63, "distill": 0.64, "masters": 0.67, "teacher": 0.88}
RECIPE = """models:
  student: {name: student, tiny: qwen3_vl_240k}
  teachers: [{name: large, tiny: qwen3_vl_1m}]
"""


def record(folder: Path, kind: str, spec: Mapping[str, object], seconds: float) -> StageInfo:
    """Marks a made-up stage as done."""
    content = {"kind": kind, "spec": spec, "metrics": {}, "seconds": seconds, "inputs": {}}
    content["fingerprint"] = folder.name
    (folder / "record.json").write_text(json.dumps(content))
    return StageInfo(kind=kind, folder=folder, seconds=seconds)


def lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def wilson_like(value: float, n: int) -> dict[str, float]:
    half = 1.96 * (max(value * (1 - value), 0.01) / n) ** 0.5
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half), "n": n}


def evaluated(
    root: Path, name: str, share: float, parameters: int, masks: Mapping[int, float] | None = None
) -> StageInfo:
    """An evaluate stage whose answers are right with probability ``share``."""
    folder = root / name
    folder.mkdir(parents=True)
    draw = random.Random(name)
    questions = open_questions(cast("Source", SimpleNamespace(**SCENES)))
    answers, rows = [], []
    for ratio, factor in {0: 1.0, **(masks or {})}.items():
        right: dict[str, list[bool]] = {}
        for index, question in enumerate(questions):
            correct = draw.random() < share * factor
            text = str(question.label) if correct else draw.choice(["blue", "two", "a circle"])
            text = HOSTILE if index == 0 else text
            finish = "length" if index == 1 else "stop"
            answers.append(
                {"question_id": question.id, "ratio": ratio, "text": text, "correct": correct}
                | {"score": float(correct)}
                | {"kind": question.kind, "label": str(question.label), "finish": finish}
                | {"score": float(correct), "fields": "{}"}
            )
            right.setdefault("all", []).append(correct)
            right.setdefault(question.kind, []).append(correct)
        for kind, hits in right.items():
            row = {"benchmark": "held_out", "kind": kind, "metric": "accuracy"}
            row |= wilson_like(sum(hits) / len(hits), len(hits))
            zeros = None if masks is None else 0.83 * ratio / 10_000
            rows.append(row | {"ratio": ratio if masks else None, "zeros": zeros})
    write_shard(folder / "answers" / shard_name(0), answers, ANSWERS)
    (folder / "results.json").write_text(json.dumps({"rows": rows, "parameters": parameters}))
    return record(folder, "evaluate", {"data": SCENES}, 8.4)


def trained(root: Path, name: str, recipe: str, steps: int = 100) -> StageInfo:
    """A train stage with metrics as that recipe would log them."""
    folder = root / name
    folder.mkdir(parents=True)
    draw = random.Random(name)
    rewarded = recipe.startswith("masters")
    rows = []
    for step in range(steps):
        fade = 0.3 + 0.7 * 0.97**step
        row: dict[str, float] = {"step": step, "mask/ratio": 0.0, "lr": 1e-3}
        terms = {"nll": 2.0} if recipe == "sft" else {"jsd": 0.12}
        if rewarded:
            terms |= {"grpo": 0.01 * (1 - fade), "kl": 0.05 * (1 - fade), "policy": 0.0}
            row["mask/ratio"] = 0.6 - 0.15 * (step * 5 // steps)
            for source, level in (("teacher", 0.7), ("student", 0.5)):
                row[f"reward/accuracy/{source}"] = level + draw.gauss(0, 0.05)
                row[f"reward/distillation/{source}"] = level - 0.1 + draw.gauss(0, 0.03)
        for term, level in terms.items():
            row[f"loss/{term}"] = level * fade * draw.uniform(0.8, 1.2)
            if term in ("jsd", "nll", "grpo"):
                row[f"grad_norm/{term}"] = (1 if term == "grpo" else 0.1) * draw.uniform(0.5, 1.5)
        row["loss/total"] = sum(row[f"loss/{term}"] for term in terms if term in ("jsd", "grpo"))
        row["loss/total"] = row["loss/total"] or row.get("loss/nll", 0.0)
        rows.append(row)
    lines(folder / "metrics.jsonl", rows)
    checks = [{"step": s, **accuracy(0.58 + 0.0008 * s, 400)} for s in range(0, steps + 1, 20)]
    lines(folder / "validation.jsonl", checks)
    return record(folder, "train", {"data": SCENES}, 95.0)


def accuracy(value: float, n: int) -> dict[str, float]:
    row = wilson_like(value, n)
    return {"n": n, "accuracy": row["value"], "low": row["low"], "high": row["high"]}


def taught(root: Path, name: str, top: float) -> StageInfo:
    """A tiny model's own supervised training."""
    folder = root / name
    folder.mkdir(parents=True)
    curve = [{"step": s, **accuracy(top * (1 - 0.992**s), 500)} for s in range(0, 1001, 50)]
    lines(folder / "validation.jsonl", curve)
    return record(folder, "train", {"data": SCENES}, 240.0)


def judged(root: Path, name: str, source: str, share: float) -> StageInfo:
    folder = root / name
    folder.mkdir(parents=True)
    draw = random.Random(name)
    rows = [
        {"question_id": f"q{index}", "source": source, "ratio": 0, "round": 0, "sample": 0}
        | {"reward": None if index % 40 == 0 else float(draw.random() < share)}
        | {"reason": "", "judge": "rule"}
        for index in range(200)
    ]
    write_shard(folder / "rewards" / shard_name(0), rows, REWARDS)
    return record(folder, "judge", {"data": SCENES}, 1.2)


def make_runs(
    root: Path, recipes: Sequence[str] = ("sft", "distill", "masters"), seeds: Sequence[int] = (0,)
) -> list[RunInfo]:
    """Finished runs that share their models, their start and their teacher, as `compare` makes."""
    masks = {1500: 1.0, 3000: 0.98, 4500: 0.95, 6000: 0.85}
    shared = {
        "model/large": taught(root, "m-large", 0.88),
        "model/student": taught(root, "m-student", 0.58),
        "evaluate/start": evaluated(root, "e-start", TRUE["start"], 243_392),
        "evaluate/teacher-large": evaluated(root, "e-large", TRUE["teacher"], 942_080, masks),
    }
    judges = {
        "judge/0-large/teacher": judged(root, "j-teacher", "teacher", 0.8),
        "judge/0-large/student/1": judged(root, "j-student", "student", 0.5),
    }
    runs = []
    for seed in seeds:
        for name in recipes:
            own = {
                "train/0-large": trained(root, f"t-{name}-{seed}", name),
                "evaluate/student": evaluated(root, f"e-{name}-{seed}", TRUE[name], 243_392),
            }
            stages = {**shared, **(judges if name == "masters" else {}), **own}
            runs.append(RunInfo(name=name, seed=seed, recipe_yaml=RECIPE, stages=stages))
    return runs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object], list[RunInfo]]:
    root = tmp_path_factory.mktemp("runs")
    runs = make_runs(root / "stages")
    return root / "report", write_report(root / "report", runs), runs


def test_report_json_has_the_agreed_shape(made):
    out, report, _ = made
    assert json.loads((out / "report.json").read_text()) == report
    assert report["schema"] == 1 and report["seed"] == 0
    assert report["models"] == {
        "student": {"parameters": 243392},
        "teacher": {"parameters": 942080},
    }
    keys = ["run", "model", "seed", "benchmark", "kind", "metric", "value", "low", "high", "n"]
    assert all(list(row) == keys for row in report["results"])
    head = {row["run"]: row for row in report["results"] if row["kind"] == "all"}
    assert list(head) == ["start", "sft", "distill", "masters", "teacher"]
    assert {row["benchmark"] for row in head.values()} == {"held_out"}
    assert [row["ratio"] for row in report["masking"]] == [0.0, 0.15, 0.3, 0.45, 0.6]
    assert set(report["masking"][0]) == {"ratio", "zeros", "accuracy"}
    assert report["masking"][0]["accuracy"] == head["teacher"]["value"]


def test_stages_shared_by_runs_are_listed_once_and_names_are_unique(made):
    _, report, _ = made
    names = [stage["name"] for stage in report["stages"]]
    assert len(set(names)) == len(names)
    assert names.count("model/large") == 1 and "masters/train/0-large" in names
    assert len(report["inputs"]) == len(names)


def test_gap_closed_and_differences_follow_from_the_answers(made):
    _, report, _ = made
    lines_ = {line["run"]: line for line in report["summary"]["runs"]}
    start, end, best = (lines_[name]["value"] for name in ("start", "teacher", "masters"))
    assert lines_["masters"]["gap_closed"] == pytest.approx((best - start) / (end - start))
    pairs = {(row["run"], row["against"]): row for row in report["summary"]["differences"]}
    assert set(pairs) == {
        ("sft", "start"),
        ("distill", "start"),
        ("distill", "sft"),
        ("masters", "start"),
        ("masters", "sft"),
    }
    row = pairs["masters", "start"]
    assert row["difference"] == pytest.approx(best - start)
    assert row["low"] <= row["difference"] <= row["high"] and row["n"] == QUESTIONS


def test_page_is_self_contained_and_escapes_what_models_wrote(made):
    out, _, _ = made
    page = (out / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "\x00" not in page
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", page)
    assert "http" not in re.sub(r"http-equiv", "", page)
    assert page.count('<article class="example">') == 10
    assert page.count('class="tiny" src="data:image/png;base64,') == 10
    assert {path.name for path in out.glob("*.png")} >= {"masters-losses.png", "models.png"}
    assert not list(out.glob(".*"))


def test_one_plain_run_leaves_sections_out_with_a_sentence(tmp_path):
    [run] = make_runs(tmp_path / "stages", recipes=["sft"])
    few = {
        "evaluate/student": run.stages["evaluate/student"],
        "train/0": run.stages["train/0-large"],
    }
    bare = RunInfo(name="sft", seed=0, recipe_yaml=RECIPE, stages=few)
    report = write_report(tmp_path / "report", [bare])
    page = (tmp_path / "report" / "report.html").read_text()
    assert report["masking"] == [] and report["summary"]["differences"] == []
    assert "No responses were judged" in page and "it is not rewarded" in page
    assert "No masked teacher was evaluated" in page
    assert "nothing to tell apart" not in page


def test_lost_test_data_costs_the_images_not_the_report(tmp_path):
    [run] = make_runs(tmp_path / "stages", recipes=["masters"])
    for stage in run.stages.values():
        path = stage.folder / "record.json"
        content = json.loads(path.read_text())
        content["spec"] = {"data": {"kind": "jsonl", "path": str(tmp_path / "gone.jsonl")}}
        path.write_text(json.dumps(content))
    write_report(tmp_path / "report", [run])
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count('<article class="example">') == 10 and "could not be opened" in page


def test_several_seeds_add_rows_over_seeds(tmp_path):
    runs = make_runs(tmp_path / "stages", recipes=["sft", "masters"], seeds=[0, 1, 2])
    report = write_report(tmp_path / "report", runs)
    rows = [r for r in report["results"] if r["run"] == "masters" and r["kind"] == "all"]
    per_seed = [row["value"] for row in rows if row["seed"] is not None]
    [over] = [row for row in rows if row["seed"] is None]
    assert len(per_seed) == 3 and over["n"] == 3
    mean, low, high = t_interval(per_seed)
    assert (over["value"], over["low"], over["high"]) == (mean, max(0.0, low), min(1.0, high))
    [start] = [
        row
        for row in report["results"]
        if (row["run"], row["kind"], row["seed"]) == ("start", "all", None)
    ]
    assert start["n"] == QUESTIONS
    assert {row["seed"] for row in report["summary"]["differences"]} == {0, 1, 2, None}


def test_terminal_table_lists_every_run_with_its_gain(made):
    _, report, _ = made
    console = Console(width=100)
    with console.capture() as capture:
        console.print(terminal_table(report))
    shown = capture.get()
    for name in ("start", "sft", "distill", "masters", "teacher", "over sft", "gap closed"):
        assert name in shown


def test_without_test_data_the_page_says_so(tmp_path):
    [run] = make_runs(tmp_path / "stages", recipes=["sft"])
    only = RunInfo(
        name="sft", seed=0, recipe_yaml="", stages={"train/0": run.stages["train/0-large"]}
    )
    report = write_report(tmp_path / "report", [only])
    assert report["results"] == [] and report["models"] == {}
    assert "No model was evaluated" in (tmp_path / "report" / "report.html").read_text()
    terminal_table(report)


def test_no_runs_and_damaged_folders_are_refused_clearly(tmp_path):
    [run] = make_runs(tmp_path / "stages", recipes=["sft"])
    with pytest.raises(MastersError, match="no runs"):
        write_report(tmp_path / "report", [])
    (run.stages["evaluate/student"].folder / "results.json").write_text("{")
    with pytest.raises(MastersError, match=r"results\.json.*again"):
        write_report(tmp_path / "report", [run])
    assert not (tmp_path / "report").exists()


def test_one_teacher_evaluated_at_different_ratios_is_one_teacher(tmp_path):
    sft, masters = make_runs(tmp_path / "stages", recipes=["sft", "masters"])
    whole = evaluated(tmp_path / "stages", "e-large-whole", TRUE["teacher"], 942_080)
    sft = RunInfo(
        name="sft",
        seed=0,
        recipe_yaml=RECIPE,
        stages={**sft.stages, "evaluate/teacher-large": whole},
    )
    report = write_report(tmp_path / "report", [sft, masters])
    names = {row["run"] for row in report["results"]}
    assert names == {"start", "sft", "masters", "teacher"} and len(report["masking"]) == 5


def test_last_third_gain_interpolates_between_validations():
    rows = [{"step": 0, "accuracy": 0.0}, {"step": 50, "accuracy": 0.5}]
    assert last_third_gain(rows) is None
    rows += [{"step": 75, "accuracy": 0.8}, {"step": 90, "accuracy": 0.9}]
    assert last_third_gain(rows) == pytest.approx(0.9 - (0.5 + 0.3 * 10 / 25))


def test_training_stages_are_laid_end_to_end(tmp_path):
    stages = {f"train/{i}": trained(tmp_path, f"t{i}", "masters", steps=10) for i in range(2)}
    run = RunInfo(name="masters", seed=0, recipe_yaml="", stages=stages)
    curve = training_curve(run)
    assert [row["step"] for row in curve.rows] == list(range(20))
    assert curve.phases == [("0", 0), ("1", 10)]


def test_examples_prefer_disagreement_and_keep_the_order():
    order = [f"q{index:02d}" for index in range(30)]
    one = {key: {"correct": True} for key in order}
    two = {key: {"correct": key not in ("q05", "q20")} for key in order}
    chosen = choose_examples({"one": one, "two": two}, order)
    assert chosen == [*order[:9], "q20"]
    assert choose_examples({"one": one, "two": {}}, order) == []


def test_words_for_numbers_and_answers():
    assert [parameters(n) for n in (900, 243_392, 942_080, 2_127_532_032)] == [
        "0.90 k",
        "0.24 M",
        "0.94 M",
        "2.1 B",
    ]
    assert [duration(s) for s in (0.44, 42, 200, 7500)] == [
        "0.4 s",
        "42 s",
        "3 min 20 s",
        "2 h 5 min",
    ]
    assert "nothing" in answer("  ") and "(500 characters)" in answer("x" * 500)
    assert model_names(RECIPE) == ("qwen3_vl_240k", ["qwen3_vl_1m"])
    assert model_names(": not [yaml") == (None, [])
