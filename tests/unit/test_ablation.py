"""A whole suite over stand-in stages: tuning, failures, what is missing, pages, the summary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from masters.ablation import command
from masters.ablation.arms import EVERYTHING, Selection
from masters.artifacts import StageContext
from masters.errors import MastersError, ModelError, NonFiniteLossError, StageError
from masters.plan import read_plan
from masters.recipe_file import layers_of_file
from masters.specs import AnySpec, EvaluateSpec, TinyInit, TrainSpec

SUITES = Path(__file__).parents[1] / "suites"
DIVERGES_ABOVE = 0.002
SCENES = 4 * 2
"""Arms x seeds: the runs on one data set."""


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


class Stages:
    """Stands in for the stages; what a run scores follows from its rate, objective and seed.

    Labels gain 10 points over a start of 50, distillation 12 and a point more for each seed;
    0.001 is the best rate; above `DIVERGES_ABOVE` distillation diverges.
    """

    def __init__(self, fails: Sequence[tuple[str, int]] = ()) -> None:
        self.ran: list[str] = []
        self.fails = fails

    def __call__(self, spec: AnySpec, context: StageContext) -> Mapping[str, Any]:
        self.ran.append(context.folder.name)
        if isinstance(spec, TrainSpec):
            self._train(spec, context.folder)
        elif isinstance(spec, EvaluateSpec):
            model = float((context.inputs["model"] / "scores").read_text())
            rows = [
                {"kind": "all", "metric": "accuracy", "value": model, "low": model - 0.02,
                 "high": model + 0.02, "n": 100, "ratio": ratio, "benchmark": "held_out"}
                for ratio in spec.ratios
            ]  # fmt: skip
            (context.folder / "results.json").write_text(json.dumps({"rows": rows}))
        return {}

    def _train(self, spec: TrainSpec, folder: Path) -> None:
        kind = spec.objective[0].kind
        if (kind, spec.seed) in self.fails:
            raise ModelError("the student cannot be opened")
        if isinstance(spec.init, TinyInit):
            score = 0.5
        elif kind == "jsd" and spec.optimiser.lr > DIVERGES_ABOVE:
            raise NonFiniteLossError("the loss is nan")
        else:
            best = 0.1 if kind == "nll" else 0.12 + 0.01 * spec.seed
            score = 0.5 + best - abs(spec.optimiser.lr - 0.001)
        (folder / "scores").write_text(str(score))
        checks = [{"step": step, "accuracy": score - 0.1 / (step + 1)} for step in (0, 3, 6)]
        (folder / "validation.jsonl").write_text("".join(json.dumps(c) + "\n" for c in checks))
        steps = [
            {"step": step, "tokens": 40, "time/step_seconds": 0.5, "mask/ratio": 0.0,
             "grad_norm/total": 1.0 + step}
            for step in range(6)
        ]  # fmt: skip
        (folder / "metrics.jsonl").write_text("".join(json.dumps(s) + "\n" for s in steps))


def ablate(
    folder: Path,
    stages: Stages | None = None,
    selection: Selection = EVERYTHING,
    suite: Path = SUITES / "small.yaml",
) -> tuple[Stages, dict[str, Any]]:
    """The stages that ran, and the suite's results."""
    stages = stages or Stages()
    command.ablate(
        suite, out=folder / "out", results=folder / "results", selection=selection,
        dispatch=stages, console=Console(quiet=True),
    )  # fmt: skip
    return stages, json.loads((folder / "results" / f"{suite.stem}.json").read_text())


def changed(folder: Path, name: str, **change: Any) -> Path:
    content = layers_of_file(SUITES / "small.yaml").merged | change
    (folder / "seconds.yaml").write_text((SUITES / "seconds.yaml").read_text())
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def summary(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    rows = json.loads((folder / "results" / "summary.json").read_text())
    return {(row["claim"].partition(":")[0], row["data"]): row for row in rows}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_from_suite_to_verdicts(tmp_path: Path) -> None:
    """Labels gain 10 points, distillation 12 and 13: by hand 2.5 points, t(1) x 0.5 about it."""
    _, results = ablate(tmp_path)
    rows = summary(tmp_path)
    assert list(rows) == [
        ("both", "scenes"), ("softness", "scenes"), ("teacher", "scenes"), ("teacher", "worded"),
    ]  # fmt: skip
    assert set(rows["teacher", "scenes"]) == {
        "claim", "source", "data", "held", "difference", "low", "high", "seeds", "command",
    }  # fmt: skip
    teacher = rows["teacher", "scenes"]
    assert (teacher["difference"], teacher["low"], teacher["high"]) == (2.5, -3.853, 8.853)
    assert (teacher["held"], teacher["seeds"]) == ("unclear", 2)
    # Softer distillation is distillation here, so nothing differs, within a point.
    assert (rows["softness", "scenes"]["difference"], rows["softness", "scenes"]["held"]) == (
        0.0, "yes",
    )  # fmt: skip
    # (softer - masked) - (distill - labels) = 0 - 2.5.
    assert rows["both", "scenes"]["difference"] == -2.5
    assert results["missing"] == [] and len(results["runs"]) == 2 * SCENES
    run = next(r for r in results["runs"] if (r["arm"], r["seed"]) == ("distill", 1))
    assert run["accuracy"] == pytest.approx(0.63) and run["start"] == 0.5
    assert run["teachers"] == {"teacher": {"0": 0.5, "0.2": 0.5}}
    assert (run["steps"], run["questions"], run["tokens"], run["seconds"]) == (6, 96, 240, 3.0)
    assert run["validation"] == pytest.approx(0.63 - 0.1 / 7)


def test_every_arm_is_tuned_on_validation_with_the_same_tries(tmp_path: Path) -> None:
    _, results = ablate(tmp_path)
    by_arm = {(row["data"], row["arm"]): row for row in results["tuned"]}
    assert {arm for _, arm in by_arm} == {"labels", "distill", "masked"}  # softer is distill's
    for row in by_arm.values():
        assert [one["value"] for one in row["tries"]] == [0.0003, 0.001, 0.003]
        assert (row["value"], row["edge"]) == (0.001, False)
    assert by_arm["scenes", "distill"]["tries"][2]["accuracy"] is None
    assert by_arm["scenes", "labels"]["tries"][2]["accuracy"] is not None
    kept = json.loads((tmp_path / "out" / "tuned.json").read_text())["small"]
    assert kept["chosen"] == results["tuned"] and len(kept["diverged"]) == 4
    for arm in ("distill", "softer"):
        plan = read_plan(tmp_path / "out" / f"small.scenes.{arm}.seed1.plan.json")
        assert plan.recipe.method.optimiser.lr == 0.001
    one_try = read_plan(tmp_path / "out" / "small.scenes.distill.seed7.0.001.plan.json").recipe
    student = one_try.models.student.sft
    assert student is not None and (one_try.method.seed, student.seed) == (7, 1)  # models of seed 0
    page = (tmp_path / "results" / "claim_softness.md").read_text()
    assert "0.001 (that of distill; 0.003 diverged)" in page


def test_a_choice_at_the_edge_of_the_grid_is_flagged(tmp_path: Path) -> None:
    tune = {"key": "method.optimiser.lr", "values": [0.0003, 0.0005, 0.001], "seed": 7}
    ablate(tmp_path, suite=changed(tmp_path, "edge", tune=tune))
    assert "0.001 (at the edge)" in (tmp_path / "results" / "claim_teacher.md").read_text()


def test_again_nothing_is_done_and_every_byte_is_the_same(tmp_path: Path) -> None:
    first, _ = ablate(tmp_path)
    assert len(set(first.ran)) == len(first.ran)  # what is shared ran once
    before = contents(tmp_path / "results")
    again, _ = ablate(tmp_path)
    assert again.ran == []  # nor are diverged tries tried again
    assert contents(tmp_path / "results") == before


def test_parts_are_run_now_and_the_pages_say_what_is_missing(tmp_path: Path) -> None:
    few = Selection(data=("scenes",), arms=("labels", "distill"), seeds=(1,))
    _, results = ablate(tmp_path, selection=few)
    assert {(run["arm"], run["seed"]) for run in results["runs"]} == {("labels", 1), ("distill", 1)}
    rows = summary(tmp_path)
    assert (rows["teacher", "scenes"]["seeds"], rows["teacher", "scenes"]["held"]) == (1, "unclear")
    page = (tmp_path / "results" / "claim_teacher.md").read_text()
    assert "| scenes | +3.0 | - | 1 of 2 | **unclear** |" in page
    assert "**Missing**: labels, seed 0 (not done); distill, seed 0 (not done)" in page
    assert "labels, seed 0 (not tuned yet)" in page  # worded
    rest, results = ablate(tmp_path)
    assert not results["missing"] and len(rest.ran) > 0
    assert summary(tmp_path)["teacher", "scenes"]["difference"] == 2.5


def test_a_failure_spares_what_does_not_need_it(tmp_path: Path) -> None:
    """Distillation fails under seed 1; labels and seed 0 are complete, and pages are written."""
    with pytest.raises(StageError) as error:
        ablate(tmp_path, Stages(fails=[("jsd", 1)]))
    said = str(error.value)
    assert "train/0-teacher" in said and "the student cannot be opened" in said
    assert "scenes, distill, seed 1: train/0-teacher failed" in said
    results = json.loads((tmp_path / "results" / "small.json").read_text())
    done = {(run["arm"], run["seed"]) for run in results["runs"]}
    assert done == {("labels", 0), ("labels", 1), ("distill", 0), ("softer", 0), ("masked", 0)}
    rows = summary(tmp_path)
    assert rows["teacher", "scenes"]["seeds"] == 1
    page = (tmp_path / "results" / "claim_teacher.md").read_text()
    assert "distill, seed 1 (train/0-teacher failed)" in page
    mended, results = ablate(tmp_path)
    assert not results["missing"]
    assert all(name.startswith(("train", "evaluate", "generate", "mask")) for name in mended.ran)


def test_an_arm_whose_tries_all_diverge_is_missing_and_others_are_not(tmp_path: Path) -> None:
    tune = {"key": "method.optimiser.lr", "values": [0.003, 0.01], "seed": 7}
    suite = changed(tmp_path, "wild", tune=tune)
    with pytest.raises(StageError, match="every value that was tried diverged"):
        ablate(tmp_path, suite=suite)
    results = json.loads((tmp_path / "results" / "wild.json").read_text())
    assert {run["arm"] for run in results["runs"]} == {"labels"}


def test_a_failed_try_is_no_divergence(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="labels, seed 0: not tuned yet"):
        ablate(tmp_path, Stages(fails=[("nll", 7)]))
    kept = json.loads((tmp_path / "out" / "tuned.json").read_text())["small"]
    assert {row["arm"]: row["value"] for row in kept["chosen"]}["labels"] is None
    assert all("loss is nan" in said for said in kept["diverged"].values())
    _, results = ablate(tmp_path)
    assert not results["missing"]


def test_a_try_that_diverges_before_its_last_phase_diverged(tmp_path: Path) -> None:
    half = {"teacher": "teacher", "epochs": "0.5"}
    ladder = {"recipe": "mask_progressive", "set": {"method": {"phases": [half, half]}}}
    suite = changed(tmp_path, "ladder", arms={"ladder": ladder}, claims=[])
    _, results = ablate(tmp_path, suite=suite, selection=Selection(data=("scenes",)))
    tries = results["tuned"][0]["tries"]
    assert [one["accuracy"] is None for one in tries] == [False, False, True]
    again, _ = ablate(tmp_path, suite=suite, selection=Selection(data=("scenes",)))
    assert again.ran == []


def test_suites_in_one_folder_share_stages_and_keep_their_own_tries(tmp_path: Path) -> None:
    few = Selection(data=("scenes",))
    first, _ = ablate(tmp_path, selection=few)
    other = changed(tmp_path, "other", claims=[])
    second, results = ablate(tmp_path, selection=few, suite=other)
    # All but the tries that diverge, of which the other suite does not know yet.
    assert set(second.ran) < set(first.ran) and len(second.ran) == 2
    assert results["tuned"][0]["value"] == 0.001
    again, _ = ablate(tmp_path, selection=few)
    assert again.ran == []


def test_pages_of_several_suites_meet_and_leave_a_readme_alone(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    mine = {"README.md": "By hand.\n", "other.json": '{"schema": 1}', "claim_own.md": "Mine.\n"}
    for name, text in mine.items():
        (tmp_path / "results" / name).write_text(text)
    ablate(tmp_path, selection=Selection(data=("scenes",)))
    claims = [{"id": "teacher", "says": "Otherwise put.", "expects": "up", "first": "labels",
               "second": "masked", "data": ["scenes"], "reading": "Read and written."}]  # fmt: skip
    again = changed(tmp_path, "again", claims=claims)
    ablate(tmp_path, selection=Selection(data=("scenes",)), suite=again)
    page = (tmp_path / "results" / "claim_teacher.md").read_text()
    assert page.index("## scenes (again)") < page.index("## scenes (small)")
    assert "Read and written." in page and "Here: A teacher's distribution" in page
    assert [row["data"] for row in json.loads(
        (tmp_path / "results" / "summary.json").read_text())].count("scenes") == 4  # fmt: skip
    assert {n: (tmp_path / "results" / n).read_text() for n in mine} == mine


def test_what_a_page_says(tmp_path: Path) -> None:
    ablate(tmp_path)
    page = (tmp_path / "results" / "claim_teacher.md").read_text()
    for part in (
        "# teacher: A teacher's distribution beats its labels.",
        "Claimed in: nowhere. Expected: `distill` against `labels`, is higher.",
        "![Differences by seed, their mean and its interval](claim_teacher.png)",
        "| scenes | +2.5 | -3.9 to +8.9 | 2 | **unclear** |",
        "A seed changes both the run and the models",
        "(seed 7, the models of seed 0); the last validation decided.",
        "| labels | 60.0 | 60.0 to 60.0 | +10.0 (10.0 to 10.0) | 0.001 | 58.6 | 6 | 96 | 240 | 3 |",
        "| distill | 62.5 | 56.1 to 68.9 | +12.5 (6.1 to 18.9) |",
        "| 1 | 60.0 | 63.0 | +3.0 |",
        "Start: 50.0 %. Teacher teacher: 50.0 % at ratio 0, 50.0 % at ratio 0.2.",
        "| `grad_norm/total` | distill | 3.5 | 1.5 | 3.5 | 5.5 | 6 |",
        "*Nobody has written down yet what this means.*",
    ):
        assert part in page, part
    assert (
        "Two sentences. Written by hand."
        in (tmp_path / "results" / "claim_softness.md").read_text()
    )
    table = (tmp_path / "results" / "table.md").read_text()
    assert "| [softness](claim_softness.md): Softness moves it by no more than a point. |" in table
    for name in ("teacher", "softness", "both"):
        assert (tmp_path / "results" / f"claim_{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_pages_again_with_other_words_and_no_run(tmp_path: Path) -> None:
    ablate(tmp_path)
    content = layers_of_file(SUITES / "small.yaml").merged
    content["claims"][0]["reading"] = "It was looked at."
    del content["claims"][2]
    suite = changed(tmp_path, "small", claims=content["claims"])
    settings: dict[str, Any] = {
        "out": tmp_path / "gone", "results": tmp_path / "results", "console": Console(quiet=True),
    }  # fmt: skip
    command.rewrite_pages(suite, **settings)
    page = (tmp_path / "results" / "claim_teacher.md").read_text()
    assert "It was looked at." in page and "| 1 | 60.0 | 63.0 | +3.0 |" in page
    assert not list((tmp_path / "results").glob("claim_both.*"))  # asked by no suite any more
    content["claims"][0]["second"] = "novel"
    arms = content["arms"] | {"novel": {"recipe": "sft"}}
    suite = changed(tmp_path, "small", claims=content["claims"], arms=arms)
    with pytest.raises(StageError, match="knows nothing of novel"):
        command.rewrite_pages(suite, **settings)


def test_results_take_no_other_files_place(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "scenes.json").write_text('{"runs": []}')
    for name in ("scenes", "summary"):
        stages = Stages()
        with pytest.raises(StageError, match="Give the suite's file another name"):
            ablate(tmp_path, stages, suite=changed(tmp_path, name))
        assert stages.ran == []


def test_models_that_no_seed_can_change_are_said(tmp_path: Path) -> None:
    _, _ = ablate(tmp_path, suite=changed(tmp_path, "fixed", vary=["run"]))
    page = (tmp_path / "results" / "claim_teacher.md").read_text()
    assert "Only the run's seed varies: the models are the same under every seed." in page


def test_the_plan_says_what_is_to_do_and_does_nothing(tmp_path: Path) -> None:
    console = Console(record=True, width=200)
    show: dict[str, Any] = {"out": tmp_path / "out", "console": console}
    command.show_plan(SUITES / "small.yaml", **show)
    assert not (tmp_path / "out").exists()
    assert "16 runs; to do, shared stages once" in console.export_text()
    ablate(tmp_path)
    command.show_plan(SUITES / "small.yaml", **show)
    printed = " ".join(console.export_text().split())
    assert "0 stages for 0 tries of the tuned key, then 0 for the runs" in printed


def test_several_ranks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MastersError, match="without torchrun"):
        ablate(tmp_path)
