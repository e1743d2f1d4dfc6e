"""The stages as Ray Data jobs on a local Ray: the files of one process, also when an actor is lost.

Ray is no part of what the tests need: ``pip install 'ray[data]'`` and they run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from masters.artifacts import StageContext
from masters.dispatch import dispatch_stage
from masters.plan import Plan, make_plan, stage_is_done
from masters.recipe import load_recipe
from masters.run import run_plan
from masters.specs import AnySpec, GenerateSpec
from tests.invariant import killing
from tests.invariant.killing import Moment, differences
from tests.running import SMALL, environment

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[data]'")

from masters.errors import ModelError, StageError  # noqa: E402
from masters.ray_job import Pool, run_on_ray  # noqa: E402

pytestmark = pytest.mark.slow
READY = ("model/student", "model/teacher", "mask/teacher")
SHARED = tuple(
    f"{kind}/0-teacher/{side}"
    for kind in ("generate", "judge", "score")
    for side in ("teacher", "student")
)
POOL = Pool(workers=2, cpus=0.5)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    root = Path(__file__).parents[2]
    paths = os.pathsep.join((str(root), environment()["PYTHONPATH"]))
    path = os.pathsep.join(str(Path(part).resolve()) for part in paths.split(os.pathsep))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        ray.init(
            num_cpus=2, include_dashboard=False, log_to_driver=False,
            object_store_memory=100 * 2**20, logging_level="ERROR",
        )  # fmt: skip
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
        ray.shutdown()


def plan_in(out: Path, whole: Path) -> Plan:
    """The run of ``whole`` with its models made, in shards small enough for several."""
    plan = make_plan(load_recipe("masters", "tiny", SMALL), out)
    made = make_plan(plan.recipe, whole)
    for name in READY:
        if not plan.stage(name).folder.exists():
            shutil.copytree(made.stage(name).folder, plan.stage(name).folder)
    stages = tuple(
        replace(stage, spec=stage.spec.model_copy(update={"shard_questions": 12}))
        if isinstance(stage.spec, GenerateSpec)
        else stage
        for stage in plan.stages
    )
    return replace(plan, stages=stages)


@pytest.fixture(scope="module")
def one_process(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    plan = plan_in(tmp_path_factory.mktemp("one"), whole)
    run_plan(plan, until=SHARED, jobs=1)
    return plan


def loses_an_actor(spec: AnySpec, context: StageContext) -> Mapping[str, Any]:
    """The first time, the second worker's process is killed in its second shard of responses."""
    marker = context.folder / "lost"
    if spec.kind == "generate" and context.part.share.index == 1 and not marker.exists():
        marker.touch()
        killing._arm(Moment(event="shard", call=2, torn=True), Counter())
    return dispatch_stage(spec, context)


def refuses(spec: AnySpec, context: StageContext) -> Mapping[str, Any]:
    raise ModelError("the model has no eyes")


def test_an_actor_is_lost_and_nothing_else(one_process: Plan, whole: Path, tmp_path: Path) -> None:
    plan = plan_in(tmp_path, whole)
    told: list[str] = []
    run_on_ray(plan, POOL, until=SHARED, dispatch=loses_an_actor, told=told.append)
    assert sorted(told) == sorted(f"{name}: done by 2 workers" for name in SHARED)
    for name in SHARED:
        folder = plan.stage(name).folder
        assert stage_is_done(plan.stage(name))
        assert len(list(folder.rglob("shard-*.parquet"))) >= 8
        lost = ["only one has lost"] if name.startswith("generate") else []
        assert differences(folder, one_process.stage(name).folder) == lost
    run_on_ray(plan, POOL, until=SHARED, dispatch=refuses, told=told.append)
    assert len(told) == len(SHARED), "what is done is not done again"


def test_a_stage_that_fails_says_why(whole: Path, tmp_path: Path) -> None:
    plan = plan_in(tmp_path, whole)
    with pytest.raises(
        StageError, match=r"generate/0-teacher/\w+ failed: worker 0 of 2: the model"
    ):
        run_on_ray(plan, POOL, until=SHARED[:2], dispatch=refuses)


def test_the_command(whole: Path, tmp_path: Path) -> None:
    plan = plan_in(tmp_path, whole)
    sets = [word for value in SMALL for word in ("--set", value)]
    words = ["masters", "--profile", "tiny", "--out", str(tmp_path), "--until", "judge", *sets]
    done = subprocess.run(
        [sys.executable, "-m", "masters.ray_job", *words, "--workers", "2", "--cpus", "0.5"],
        env=environment() | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "judge/0-teacher/teacher: done by 2 workers" in done.stdout
    assert stage_is_done(plan.stage("judge/0-teacher/teacher"))
