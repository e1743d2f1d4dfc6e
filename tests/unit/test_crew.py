"""Several ranks run a plan as one: what each does, and how all end when one of them does.

The stages are stand-ins; `end_to_end/test_torchrun.py` has real ones.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from masters.artifacts import is_done, read_record
from masters.errors import MastersError
from masters.execution import in_shards
from masters.plan import Plan, make_plan
from masters.recipe import load_recipe
from masters.run import run_plan
from masters.shares import WHOLE
from tests.unit import fake_stages

#: A loaded machine takes its time to import torch twice.
PATIENCE = 300


def plan_of(out: Path, *sets: str) -> Plan:
    return make_plan(load_recipe("masters", "tiny", ["runtime.engine=fsdp2", *sets]), out)


def rank(number: int, port: int, out: Path, dispatch: Callable[..., Any], ends: str) -> None:
    """One rank's process; what it fails with is written down."""
    os.environ.update(
        RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), RANK_ENDS=ends, OMP_NUM_THREADS="1",
    )  # fmt: skip
    plan = plan_of(out)
    try:
        run_plan(
            plan, until=list(plan.by_name), dispatch=dispatch, console=Console(file=io.StringIO())
        )
    except MastersError as error:
        (out / f"error-{number}").write_text(str(error))
        raise SystemExit(1) from error


class Ranks:
    """Two processes that run the plan of a folder."""

    def __init__(
        self, out: Path, dispatch: Callable[..., Any] = fake_stages.by_ranks, ends: str = ""
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out = out
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        spawn = multiprocessing.get_context("spawn")
        self.processes = [
            spawn.Process(target=rank, args=(n, self.port, out, dispatch, ends)) for n in range(2)
        ]

    def start(self) -> None:
        for process in self.processes:
            process.start()

    def codes(self, within: float = PATIENCE) -> list[int | None]:
        """How both ended, which they must by then."""
        end = time.monotonic() + within
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        return [process.exitcode for process in self.processes]

    def said(self, number: int) -> str:
        return (self.out / f"error-{number}").read_text()

    def kill(self) -> None:
        for process in self.processes:
            if process.pid is not None:
                process.kill()
                process.join()


@pytest.fixture
def started() -> Iterator[Callable[..., Ranks]]:
    found: list[Ranks] = []

    def start(*args: Any, **options: Any) -> Ranks:
        found.append(Ranks(*args, **options))
        found[-1].start()
        return found[-1]

    yield start
    for one in found:
        one.kill()


def wait_for(path: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < end, f"{path} does not come"
        time.sleep(0.05)


def test_ranks_train_together_and_share_what_is_in_shards(
    started: Callable[..., Ranks], tmp_path: Path
) -> None:
    two = started(tmp_path / "out")
    assert two.codes() == [0, 0]
    pids = [process.pid for process in two.processes]
    plan = plan_of(tmp_path / "out")
    assert all(is_done(stage.folder) for stage in plan.stages)
    for stage in plan.stages:
        metrics = read_record(stage.folder)["metrics"]
        if stage.kind == "train":
            assert metrics["pids"] == pids
        elif in_shards(stage.spec):
            # Each shard is made once (`fake_stages.shares`), and each rank has made its own.
            rows = sorted((stage.folder / "rows").glob("shard-*"))
            assert [int(row.read_text()) for row in rows] == [pids[n % 2] for n in range(5)]
            assert metrics == {"shards": 5, "workers": 2}
        else:
            assert (stage.folder / "ran").read_text().split()[0] == str(pids[0])
        assert not list(stage.folder.glob(".claims"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["train", "generate"])
@pytest.mark.parametrize("how", ["raises", "killed"])
def test_one_that_ends_ends_the_other(
    started: Callable[..., Ranks], tmp_path: Path, kind: str, how: str
) -> None:
    """Both are gone in time; who is left names rank and stage; nothing is taken for done."""
    out = tmp_path / "out"
    two = started(out, ends=f"{kind}:{how}")
    assert two.codes() == [1, 1 if how == "raises" else -9]
    # Which of two models or two sides comes first is the plan's business.
    stage = next(one.name for one in plan_of(out).stages if one.name in two.said(0))
    assert plan_of(out).stage(stage).kind == kind
    if how == "raises":
        assert f"rank 1 failed in {stage}: " in two.said(1)
        assert "ZeroDivisionError: division by zero" in two.said(1)
        assert f"in {stage}: rank 1 failed: " in two.said(0)
        assert (
            "ZeroDivisionError"
            in (plan_of(out).stage(stage).folder / "error-worker-1.log").read_text()
        )
    else:
        assert f"in {stage}: rank 1 says nothing any more" in two.said(0)
    assert "Run the same command again" in two.said(0)
    assert not is_done(plan_of(out).stage(stage).folder)
    again = started(out)
    assert again.codes() == [0, 0]
    assert all(is_done(found.folder) for found in plan_of(out).stages)


def test_what_rank_0_fails_at_alone_ends_the_other(
    started: Callable[..., Ranks], tmp_path: Path
) -> None:
    two = started(tmp_path / "out", dispatch=fake_stages.mask_fails)
    assert two.codes() == [1, 1]
    assert "mask/teacher failed: the teacher has no layer to mask" in two.said(0)
    assert "rank 0 gave up, so rank 1 ends: mask/teacher failed" in two.said(1)


def test_a_store_that_disappears_ends_both(
    started: Callable[..., Ranks], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun keeps the ranks' store in a process of its own, which may be killed."""
    import torch.distributed as dist

    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    two = Ranks(tmp_path / "out", dispatch=fake_stages.waits)
    keep: Any = getattr(dist, "TCPStore")  # noqa: B009 (torch does not export it)
    store = keep("127.0.0.1", two.port, is_master=True, wait_for_workers=False)
    try:
        two.start()
        folder = plan_of(two.out).stage("mask/teacher").folder
        wait_for(folder / "waits")
        del store
        (folder / "go on").touch()
        assert two.codes() == [1, 1]
    finally:
        two.kill()
    assert "the store that the ranks meet at is gone" in two.said(0)
    assert "rank 1: the store that the ranks meet at is gone" in two.said(1)
    assert is_done(folder), "what rank 0 had begun is finished"


def test_one_of_so_many_workers_is_no_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--workers 1` is one process, whatever launched it; it waits for no other."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    plan = plan_of(tmp_path)
    quiet = Console(file=io.StringIO())
    run_plan(plan, until="mask/teacher", dispatch=fake_stages.works, console=quiet, share=WHOLE)
    assert is_done(plan.stage("mask/teacher").folder)
    with pytest.raises(MastersError, match=r"rank 0 did not find all 2 ranks[\s\S]*MASTER_PORT"):
        run_plan(plan, dispatch=fake_stages.works, console=quiet)


def test_vllm_and_servers_are_asked_by_one_rank(tmp_path: Path) -> None:
    vllm = "runtime.vllm.python=/opt/vllm/bin/python"
    asked = plan_of(tmp_path, "method.responses.engine=vllm", vllm)
    judge = "method.rewards.accuracy={kind: judge, judge: {model: server, name: big}}"
    judged = plan_of(tmp_path, judge, "runtime.server.url=http://localhost:1/v1")
    own = "method.rewards.accuracy={kind: judge, judge: {model: teacher}}"

    def shared(plan: Plan) -> set[str]:
        return {stage.kind for stage in plan.stages if in_shards(stage.spec)}

    assert shared(asked) == {"judge", "score", "evaluate"}
    assert shared(judged) == {"generate", "score", "evaluate"}
    assert shared(plan_of(tmp_path, own)) == {"generate", "judge", "score", "evaluate"}
