"""torchrun on the whole command line: two ranks train, are killed, and one process goes on."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from tests.running import (
    SMALL,
    cli,
    command,
    environment,
    fails,
    folders,
    lines,
    read,
    succeeds,
)

STAGE = "train/0-teacher"
WORDS = ("masters", "--profile", "tiny", "--until", STAGE)
SPREAD = (*SMALL, "runtime.engine=fsdp2")
#: Loaded machines take their time to start two interpreters.
PATIENCE = 300
HAS_DEEPSPEED = find_spec("deepspeed") is not None


def without_train(whole: Path, to: Path) -> Path:
    """A copy of the finished run whose last train stage is to be done again."""
    shutil.copytree(whole, to)
    shutil.rmtree(to / folders(whole)[STAGE].relative_to(whole))
    return folders(to)[STAGE]


def torchrun(out: Path, sets: Sequence[str] = SPREAD, words: Sequence[str] = WORDS) -> list[str]:
    masters = command("run", *words, "--out", str(out), sets=sets)[1:]
    launcher = "torch.distributed.run"
    return [sys.executable, "-m", launcher, "--standalone", "--nproc-per-node", "2", *masters]


def check_same(found: Path, expected: Path) -> None:
    ours, theirs = (load_file(f / "model" / "model.safetensors") for f in (found, expected))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert (weight - theirs[name]).abs().max() < 2e-5, name
    pairs = zip(lines(found / "metrics.jsonl"), lines(expected / "metrics.jsonl"), strict=True)
    for mine, other in pairs:
        for name in ("step", "loss/total", "grad_norm/total", "groups/dropped", "tokens"):
            assert mine[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name
    assert lines(found / "validation.jsonl") == lines(expected / "validation.jsonl")


def wait_for(path: Path, run: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not path.exists():
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < end, f"{path} does not come"
        time.sleep(0.01)


@pytest.mark.slow
def test_two_ranks_killed_then_one_process_goes_on(whole: Path, tmp_path: Path) -> None:
    expected = folders(whole)[STAGE]
    stage = killed(whole, tmp_path / "run", SPREAD)
    succeeds("run", *WORDS, "--out", str(tmp_path / "run"), sets=SMALL)
    check_same(stage, expected)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_DEEPSPEED, reason="the extra deepspeed; make test-deepspeed")
def test_two_ranks_of_deepspeed_killed_then_two_go_on(whole: Path, tmp_path: Path) -> None:
    sets = (*SMALL, "runtime.engine=deepspeed")
    stage = killed(whole, tmp_path / "run", sets)
    done = subprocess.run(
        torchrun(tmp_path / "run", sets), env=environment(), capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check_same(stage, folders(whole)[STAGE])


@pytest.mark.skipif(HAS_DEEPSPEED, reason="deepspeed is installed")
def test_deepspeed_that_is_not_installed_is_said_before_anything_is_run(tmp_path: Path) -> None:
    out, sets = ("--out", str(tmp_path)), (*SMALL, "runtime.engine=deepspeed")
    said = fails("run", "masters", "--profile", "tiny", *out, sets=sets)
    assert "DS_BUILD_OPS=0 pip install 'masters[deepspeed]'" in said
    assert not (tmp_path / "stages").exists()


def killed(whole: Path, out: Path, sets: Sequence[str]) -> Path:
    """The folder of the stage that both ranks were training when SIGKILL ended them."""
    stage = without_train(whole, out)
    run = subprocess.Popen(
        torchrun(out, sets), env=environment(), start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    wait_for(stage / "checkpoints" / "step-00000002" / "shards", run)
    for process in (run.pid, *ranks_of(run.pid)):
        os.kill(process, signal.SIGKILL)
    run.communicate()
    assert not (stage / "record.json").exists()
    return stage


def ranks_of(launcher: int) -> list[int]:
    """torchrun starts each rank in a session of its own."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text()
    return [int(pid) for pid in children.split()]


@pytest.mark.slow
def test_two_ranks_from_start_to_report(whole: Path, tmp_path: Path) -> None:
    """Rank 0 alone writes and prints; the rest of the plan is as it ever was."""
    stage = without_train(whole, tmp_path / "run")
    done = subprocess.run(
        torchrun(tmp_path / "run"), env=environment(), capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"{STAGE}: done") == 1
    check_same(stage, folders(whole)[STAGE])
    said = succeeds(
        "run", "masters", "--profile", "tiny", "--out", str(tmp_path / "run"), sets=SMALL
    )
    assert "Accuracy on" in said


def tables(out: Path, recipe: str = "masters") -> dict[str, pa.Table]:
    """Every shard of the plan that was run last, by stage and name."""
    return {
        f"{stage}/{path.name}": pq.read_table(path)
        for stage, folder in folders(out, recipe).items()
        for path in folder.rglob("shard-*.parquet")
    }


@pytest.mark.slow
def test_ranks_share_shards_one_is_killed_and_they_go_on(tmp_path: Path) -> None:
    """Rows are those of one process; what a killed rank leaves is made by the next run."""
    words = ("masters", "--profile", "tiny")
    more = "data.train.count=300"  # two shards of responses; evaluations have one a ratio
    succeeds("run", *words, "--out", str(tmp_path / "one"), sets=(*SMALL, more))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shutil.rmtree(tmp_path / "two" / "report")
    for name, folder in folders(tmp_path / "two").items():
        if not name.startswith(("model/", "mask/")):  # two ranks train models alike to rounding
            shutil.rmtree(folder)
    run = subprocess.Popen(
        torchrun(tmp_path / "two", (*SPREAD, more), words), env=environment(), text=True,
        start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    stage = folders(tmp_path / "one")["generate/0-teacher/teacher"].name
    wait_for(tmp_path / "two" / "stages" / stage / ".claims", run)
    os.kill(ranks_of(run.pid)[1], signal.SIGKILL)
    printed, _ = run.communicate(timeout=60)
    assert run.returncode != 0 and "exitcode  : -9" in printed, printed
    assert not (tmp_path / "two" / "stages" / stage / "record.json").exists()
    done = subprocess.run(
        torchrun(tmp_path / "two", (*SPREAD, more), words), env=environment(), text=True,
        capture_output=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, expected = folders(tmp_path / "two"), folders(tmp_path / "one")
    ours, theirs = tables(tmp_path / "two"), tables(tmp_path / "one")
    assert sum(name.startswith("generate/") for name in theirs) == 4
    trained = [name for name in theirs if name.startswith("evaluate/student")]
    assert trained and ours.keys() == theirs.keys()
    # The trained students differ by rounding.
    same = {name: ours[name].equals(theirs[name]) for name in sorted(theirs.keys() - set(trained))}
    assert all(same.values()), same
    for name in found:
        record = read(found[name] / "record.json")
        assert record["fingerprint"] == read(expected[name] / "record.json")["fingerprint"]
        if name.startswith(("generate/", "judge/", "score/")):
            assert record["metrics"]["workers"] == 2, name
    check_same(found[STAGE], expected[STAGE])
    assert (tmp_path / "two" / "report" / "report.json").is_file()


def start_rank(rank: int, port: int, out: Path) -> subprocess.Popen[str]:
    """A rank without torchrun, which would end one when the other dies."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    return subprocess.Popen(
        command("run", *WORDS, "--out", str(out), sets=SPREAD),
        env={**environment(), **place}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_a_rank_left_alone_says_so(whole: Path, tmp_path: Path, dead: int) -> None:
    stage = without_train(whole, tmp_path / "run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runs = [start_rank(rank, port, tmp_path / "run") for rank in range(2)]
    wait_for(stage / "metrics.jsonl", runs[0])
    runs[dead].kill()
    runs[dead].communicate()
    printed, _ = runs[1 - dead].communicate(timeout=60)
    assert runs[1 - dead].returncode == 1, printed
    assert "error: " in printed and "another rank of this run ended" in printed, printed
    said = "the store that the ranks meet at is gone" if dead == 0 else "rank 1 says nothing"
    assert said in printed and STAGE in printed, printed
    assert "Run the same command again" in printed
    succeeds("run", *WORDS, "--out", str(tmp_path / "run"), sets=SMALL)
    check_same(stage, folders(whole)[STAGE])


def test_engines_that_cannot_are_refused(tmp_path: Path) -> None:
    out = ("--out", str(tmp_path))
    words = ("masters", "--profile", "tiny", *out)
    lora = (*SPREAD, "models.student.lora={rank: 4}")
    assert "no low-rank adapters" in fails("run", *words, sets=lora)
    moments = (*SPREAD, "method.optimiser.moments=8bit")
    assert "keeps Adam's moments in float32" in fails("run", *words, sets=moments)
    device = (*SPREAD, "runtime.teacher_device=cpu")
    assert "expected 'same' or 'offload'" in fails("run", *words, sets=device)
    offload = (*SMALL, "runtime.activation_offload=true", "runtime.gradient_checkpointing=false")
    assert "expected layers to be run again" in fails("run", *words, sets=offload)


def test_ranks_without_an_engine_for_them_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = cli("run", "masters", "--profile", "tiny", "--out", str(tmp_path), sets=SMALL)
    assert done.returncode == 1 and "set runtime.engine=fsdp2" in done.stderr, done.stderr


def test_a_worker_among_workers_joins_no_crew(whole: Path, tmp_path: Path) -> None:
    """Under torchrun's variables: nobody waits for ranks that are not there, whatever trains."""
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": "9"}  # fmt: skip
    shutil.copytree(whole, tmp_path / "run")
    words = ("masters", "--profile", "tiny", "--out", str(tmp_path / "run"))
    for given in (("--workers", "1"), ("--worker", "1", "--workers", "2"), ()):
        done = subprocess.run(
            command("score", *words, *given, sets=SPREAD), env={**environment(), **place},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_worker_trains_alone_what_later_stages_need(whole: Path, tmp_path: Path) -> None:
    """Its engine may be one for several ranks: then it is one rank."""
    stage = without_train(whole, tmp_path / "run")
    (folders(tmp_path / "run")["evaluate/student"] / "record.json").unlink()
    place = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": "9"}  # fmt: skip
    words = ("masters", "--profile", "tiny", "--out", str(tmp_path / "run"))
    given = ("--worker", "0", "--workers", "2")
    done = subprocess.run(
        command("evaluate", *words, *given, sets=SPREAD), env={**environment(), **place},
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check_same(stage, folders(whole)[STAGE])
