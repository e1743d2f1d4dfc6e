"""Running plans with stand-in stages: order, sharing, failures, kills, processes."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from masters.artifacts import StageContext, is_done, lock, read_record
from masters.errors import StageError
from masters.evaluation.beside import stamp
from masters.plan import Plan, make_plan
from masters.recipe import load_recipe
from masters.run import _task, report_is_done, run_infos, run_plan, run_plans
from masters.shares import WHOLE, Share
from masters.specs import AnySpec, ReportSpec
from masters.workers import execute
from tests.unit import fake_stages


@pytest.fixture(autouse=True)
def _without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("masters.execution.PRELOAD", ())


def plan_of(out: Path, *overrides: str, recipe: str = "masters", seed: int | None = None) -> Plan:
    overrides = ("runtime.jobs=1", "runtime.threads=null", *overrides)
    return make_plan(load_recipe(recipe, "tiny", overrides), out, seed=seed)


def quiet() -> Console:
    return Console(file=io.StringIO())


class Recorder:
    """Runs the stand-in and remembers which spec ran in which folder."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, Path]] = []
        self.reports: list[ReportSpec] = []

    def __call__(self, spec: AnySpec, context: StageContext) -> Mapping[str, Any]:
        if isinstance(spec, ReportSpec):
            self.reports.append(spec)
            prints = [
                read_record(stage.folder)["fingerprint"]
                for run in spec.runs
                for stage in run.stages.values()
            ]
            assert spec.out is not None
            content = {"inputs": prints, "beside": stamp(spec.out)}
            (context.folder / "report.json").write_text(json.dumps(content))
            return {}
        self.ran.append((spec.kind, context.folder))
        return fake_stages.works(spec, context)


def test_runs_everything_once_in_order(tmp_path: Path) -> None:
    recorder = Recorder()
    plan = plan_of(tmp_path)
    run_plan(plan, dispatch=recorder, console=quiet())
    assert len(recorder.ran) == len(plan.stages)
    assert [kind for kind, _ in recorder.ran[:2]] == ["train", "train"], "tiny models first"
    assert all(is_done(stage.folder) for stage in plan.stages)
    assert len(recorder.reports) == 1
    record = read_record(plan.stage("train/0-teacher").folder)
    assert record["metrics"] == {"kind": "train"}
    assert record["inputs"]["thresholds"] == plan.stage("mask/teacher").fingerprint
    assert record["runtime"]["jobs"] == 1
    run_plan(plan, dispatch=recorder, console=quiet())
    assert len(recorder.ran) == len(plan.stages)
    assert len(recorder.reports) == 1, "nothing changed, nothing is written again"
    (tmp_path / "speed.json").write_text("{}")
    run_plan(plan, only="report", dispatch=recorder, console=quiet())
    assert len(recorder.reports) == 2, "a speed was measured, which the report shows"
    run_plan(plan, only="report", dispatch=recorder, console=quiet())
    assert len(recorder.reports) == 2


def test_until_and_only(tmp_path: Path) -> None:
    recorder = Recorder()
    plan = plan_of(tmp_path)
    with pytest.raises(StageError, match=r"reads model/teacher \(teacher\), which is not done"):
        run_plan(plan, only="mask/teacher", dispatch=recorder, console=quiet())
    run_plan(plan, until="mask/teacher", dispatch=recorder, console=quiet())
    assert [kind for kind, _ in recorder.ran] == ["train", "mask"]
    run_plan(plan, only="model/student", dispatch=recorder, console=quiet())
    assert [kind for kind, _ in recorder.ran] == ["train", "mask", "train"]
    assert recorder.reports == []
    with pytest.raises(StageError, match=r"start is not done|student is not done"):
        run_plan(plan, only="report", dispatch=recorder, console=quiet())
    with pytest.raises(StageError, match="has no stage 'mask'"):
        run_plan(plan, until="mask", dispatch=recorder, console=quiet())


def test_shared_stages_run_once_and_one_report_speaks_of_all(tmp_path: Path) -> None:
    recorder = Recorder()
    plans = [
        plan_of(tmp_path, recipe=name, seed=seed) for name in ("sft", "masters") for seed in (0, 1)
    ]
    run_plans(plans, dispatch=recorder, console=quiet())
    distinct = {stage.folder for plan in plans for stage in plan.stages}
    assert len(recorder.ran) == len(distinct)
    (report,) = recorder.reports
    assert [(run.name, run.seed) for run in report.runs] == [
        ("sft", 0),
        ("sft", 1),
        ("masters", 0),
        ("masters", 1),
    ]
    infos = run_infos(plans)
    assert infos[0].stages["evaluate/start"].shared
    assert not infos[0].stages["train/0"].shared
    assert "kind: nll" in infos[0].recipe_yaml
    assert report_is_done(plans)
    assert report_is_done(plans[:1])
    assert not report_is_done([plan_of(tmp_path, recipe="distill")])
    assert {path.name for path in tmp_path.glob("*.plan.json")} == {
        "sft.plan.json",
        "sft-seed1.plan.json",
        "masters.plan.json",
        "masters-seed1.plan.json",
    }


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failing_stage(tmp_path: Path, jobs: int) -> None:
    plan = plan_of(tmp_path)
    with pytest.raises(StageError) as caught:
        run_plan(plan, jobs=jobs, dispatch=fake_stages.mask_fails, console=quiet())
    folder = plan.stage("mask/teacher").folder
    assert "mask/teacher failed: the teacher has no layer to mask" in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "ModelError" in (folder / "error.log").read_text()
    assert not is_done(folder)
    assert not plan.stage("train/0-teacher").folder.exists()
    begun = [stage for stage in plan.stages if stage.folder.exists() and stage.folder != folder]
    assert all(is_done(stage.folder) for stage in begun), "what ran beside it has finished"
    recorder = Recorder()
    run_plan(plan, dispatch=recorder, console=quiet())
    assert not (folder / "error.log").exists()
    assert len(recorder.ran) == len(plan.stages) - len(begun)


def test_other_errors_name_stage_and_folder(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    with pytest.raises(StageError, match="failed: ZeroDivisionError: division by zero"):
        run_plan(plan, dispatch=fake_stages.breaks, console=quiet())
    with pytest.raises(StageError, match=r"the disk is full \(\d+ MiB free\)"):
        run_plan(plan, dispatch=fake_stages.disk_fills, console=quiet())


def test_side_by_side_in_children(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "evaluation.masking_curve=false", recipe="sft")
    console = quiet()
    run_plan(plan, until=list(plan.by_name), jobs=2, dispatch=fake_stages.works, console=console)
    assert all(is_done(stage.folder) for stage in plan.stages)
    pids = {(stage.folder / "ran").read_text().split()[0] for stage in plan.stages}
    assert len(pids) == len(plan.stages)
    assert str(os.getpid()) not in pids
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "model/teacher: starts" in text
    assert f"({len(plan.stages)}/{len(plan.stages)})" in text


def test_a_killed_child_is_told_plainly(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    with pytest.raises(StageError, match=r"killed by SIGKILL.*Run the same command again"):
        run_plan(plan, jobs=2, dispatch=fake_stages.mask_is_killed, console=quiet())
    run_plan(plan, until=list(plan.by_name), dispatch=fake_stages.works, console=quiet())


def test_a_killed_parent_takes_its_children_along(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from tests.unit import fake_stages\n"
        "import masters.run as run, masters.workers\n"
        "from masters.plan import make_plan\n"
        "from masters.recipe import load_recipe\n"
        "if __name__ == '__main__':\n"
        "    run.PRELOAD = ()\n"
        "    sets = ['runtime.threads=null']\n"
        f"    plan = make_plan(load_recipe('masters', 'tiny', sets), {str(tmp_path)!r})\n"
        "    run.run_plan(plan, jobs=2, dispatch=fake_stages.never_ends)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    pids = wait_for_pids(tmp_path, 2)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)
    run_plan(plan_of(tmp_path), until="model/teacher", dispatch=fake_stages.works, console=quiet())


def wait_for_pids(out: Path, count: int) -> list[int]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        texts = [path.read_text() for path in out.glob("stages/*/pid")]
        if sum(bool(text) for text in texts) >= count:
            return [int(text) for text in texts]
        time.sleep(0.05)
    raise AssertionError("the children never started")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def worker(plan: Plan, index: int, count: int, *, wait: bool = False) -> tuple[str, ...]:
    return run_plan(
        plan, until=list(plan.by_name), dispatch=fake_stages.shares, console=quiet(),
        share=Share(index=index, count=count), wait=wait,
    )  # fmt: skip


def test_a_worker_does_its_part_and_says_what_is_left(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    left = worker(plan, 0, 2)
    first = [f"generate/0-teacher/{side}" for side in ("teacher", "student")]
    # The models, the masks and the untouched student's evaluation need no other worker's shards.
    assert set(first) < set(left) and "judge/0-teacher/teacher" in left
    assert is_done(plan.stage("mask/teacher").folder)
    assert not any(is_done(plan.stage(name).folder) for name in left)
    folder = plan.stage(first[0]).folder
    assert sorted(path.name for path in folder.glob("rows/*")) == ["shard-0", "shard-2", "shard-4"]
    assert worker(plan, 0, 2) == left, "nothing changes while the others are away"
    for turn in range(20):
        left = worker(plan, 1 - turn % 2, 2)
        if not left:
            break
    record = read_record(folder)
    assert not left and record["metrics"] == {"shards": 5, "workers": 2}
    assert not list(folder.glob(".claims"))


def test_workers_that_wait_for_one_another_do_everything(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    fork = multiprocessing.get_context("fork")
    crew = [fork.Process(target=worker, args=(plan, i, 3), kwargs={"wait": True}) for i in range(3)]
    for process in crew:
        process.start()
    for process in crew:
        process.join(60)
    assert [process.exitcode for process in crew] == [0, 0, 0]
    assert all(is_done(stage.folder) for stage in plan.stages)
    # One process did what has no shards, several the rest.
    assert len(list(plan.stage("train/0-teacher").folder.glob("ran"))) == 1
    rows = plan.stage("generate/0-teacher/teacher").folder.glob("rows/*")
    assert len({path.read_text() for path in rows}) == 3


def test_several_and_one_alone_keep_out_of_each_others_way(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    folder = plan.stage("model/teacher").folder
    task = _task(plan, plan.stage("generate/0-teacher/student"), "generate")
    task = replace(task, folder=folder, share=Share(index=0, count=2))
    with lock(folder), pytest.raises(StageError, match=r"is in use by process \d+"):
        execute(task, fake_stages.shares, lambda *_: None)
    with (
        lock(folder, together=True),
        lock(folder, together=True),
        pytest.raises(StageError, match=r"is in use by process \d+"),
    ):
        execute(replace(task, share=WHOLE), fake_stages.shares, lambda *_: None)


def test_a_workers_traceback_is_its_own(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    with pytest.raises(StageError, match=r"error-worker-1.log"):
        run_plan(
            plan, only="model/teacher", dispatch=fake_stages.breaks, console=quiet(),
            share=Share(index=1, count=2),
        )  # fmt: skip


def test_plans_without_files_are_not_run(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        f"data.train={tmp_path}/x.jsonl",
        "data.count=640",
        "models.student.sft.data={kind: scenes, count: 5}",
    )
    with pytest.raises(StageError, match="can be looked at, not run"):
        run_plan(plan, dispatch=fake_stages.works, console=quiet())
