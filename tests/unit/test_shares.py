"""Which worker a process is, which shards it takes, and who finishes a stage."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from masters.errors import StageError
from masters.shares import WHOLE, Part, ShardsMissingError, Share, neighbour, share_from

ARRAY = {
    "SLURM_ARRAY_TASK_ID": "7",
    "SLURM_ARRAY_TASK_MIN": "5",
    "SLURM_ARRAY_TASK_MAX": "8",
    "SLURM_ARRAY_TASK_COUNT": "4",
    "SLURM_ARRAY_TASK_STEP": "1",
}
ALONE = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}


def share(index: int, count: int) -> Share:
    return Share(index=index, count=count)


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, WHOLE),
        ({"RANK": "3", "WORLD_SIZE": "8"}, share(3, 8)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, WHOLE),
        ({"RANK": "3"}, WHOLE),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "16"}, share(5, 16)),
        ({"SLURM_PROCID": "0"}, WHOLE),
        (ARRAY, share(2, 4)),
        (ARRAY | ALONE, share(2, 4)),
        (ARRAY | {"RANK": "0", "WORLD_SIZE": "1"}, share(2, 4)),
        (ARRAY | {"SLURM_PROCID": "1", "SLURM_NTASKS": "8"}, share(17, 32)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_MIN": "0",
                "SLURM_ARRAY_TASK_MAX": "6", "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            share(2, 4),
        ),
        # torchrun, started by srun once a node.
        ({"RANK": "9", "WORLD_SIZE": "16", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, share(9, 16)),
    ],
)  # fmt: skip
def test_the_launcher_says_which_worker(environment: Mapping[str, str], found: Share) -> None:
    assert share_from(environment) == found
    assert share_from(environment, workers=1) == WHOLE, "--workers 1 is one process, come what may"
    assert share_from(environment, 1, 3) == share(1, 3), "what is said comes first"


@pytest.mark.parametrize(
    ("environment", "workers", "found"),
    [
        ({"JOB_COMPLETION_INDEX": "3"}, 8, share(3, 8)),
        # One of an array of 8, started again by itself.
        (ARRAY | {"SLURM_ARRAY_TASK_MIN": "7", "SLURM_ARRAY_TASK_COUNT": "1"}, 8, share(7, 8)),
        (ARRAY, 8, share(7, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, 8, share(0, 8)),
    ],
)
def test_a_launchers_number_of_so_many(
    environment: Mapping[str, str], workers: int, found: Share
) -> None:
    assert share_from(environment, workers=workers) == found


@pytest.mark.parametrize(
    ("environment", "worker", "workers", "says"),
    [
        ({}, 2, None, "--worker 2 of how many"),
        ({}, 4, 4, "no worker 4 of 4; expected a number from 0 to 3"),
        ({}, None, 4, "nothing which of them this is; expected --worker I \\(0 to 3\\)"),
        ({"JOB_COMPLETION_INDEX": "3"}, None, None, "nothing of how many; expected --workers N"),
        ({"RANK": "one", "WORLD_SIZE": "4"}, None, None, "RANK is 'one' .* whole number"),
        (ARRAY, None, 4, "no worker 7 of 4"),
        (ARRAY | {"SLURM_ARRAY_TASK_MAX": "9"}, None, None, "have gaps.*--workers N"),
        (ARRAY | {"RANK": "1", "WORLD_SIZE": "8"}, None, None, "which part is meant"),
        (ARRAY | {"SLURM_PROCID": "1", "SLURM_NTASKS": "8"}, None, 32, "which part is meant"),
    ],
)
def test_what_cannot_be_told_is_said(
    environment: Mapping[str, str], worker: int | None, workers: int | None, says: str
) -> None:
    with pytest.raises(StageError, match=says):
        share_from(environment, worker, workers)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_every_shard_is_one_workers(count: int) -> None:
    for number in range(100):
        assert sum(share(index, count).mine(number) for index in range(count)) == 1


# --------------------------------------------------------------------------------------- claims


def paths_of(folder: Path, count: int = 8) -> list[Path]:
    (folder / "rows").mkdir(exist_ok=True)
    return [folder / "rows" / f"shard-{n}" for n in range(count)]


def taken_elsewhere(folder: Path, own: Share, paths: list[Path]) -> list[int]:
    """What another process with this share takes now."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        with Part(own, folder) as part:
            os.write(sender, ",".join(map(str, part.take(paths))).encode())
        os._exit(0)
    os.close(sender)
    os.waitpid(child, 0)
    with os.fdopen(receiver, "rb") as pipe:
        return [int(number) for number in pipe.read().split(b",") if number]


def test_what_one_claims_no_other_process_takes(tmp_path: Path) -> None:
    paths = paths_of(tmp_path)
    paths[2].touch()
    with Part(share(0, 2), tmp_path) as part:
        assert part.take(paths) == [0, 4, 6]
        assert taken_elsewhere(tmp_path, share(0, 2), paths) == []
        assert taken_elsewhere(tmp_path, share(1, 2), paths) == [1, 3, 5, 7]
        assert taken_elsewhere(tmp_path, share(0, 3), paths) == [3]
        with pytest.raises(ShardsMissingError) as missing:
            part.finish(paths)
    assert taken_elsewhere(tmp_path, share(0, 2), paths) == [0, 4, 6], "freed with its owner"
    assert "7 shards are still to be made, 3 of them by another" in str(missing.value)
    assert missing.value.paths == tuple(path for path in paths if path != paths[2])


def test_one_alone_takes_everything_and_claims_nothing(tmp_path: Path) -> None:
    paths = paths_of(tmp_path)
    with Part(WHOLE, tmp_path) as part:
        assert part.take(paths) == list(range(8))
        for path in paths:
            path.touch()
        part.finish(paths)
    assert not (tmp_path / ".claims").exists()


def test_a_disk_without_locks_is_said_and_worked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    paths = paths_of(tmp_path)
    with (
        Part(share(1, 2), tmp_path) as part,
        pytest.warns(UserWarning, match=r"no locks on this file system.*start each worker once"),
    ):
        assert part.take(paths) == [1, 3, 5, 7]


def test_a_failing_disk_is_no_lack_of_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "lockf", broken)
    with Part(share(1, 2), tmp_path) as part, pytest.raises(OSError, match="Input/output"):
        part.take(paths_of(tmp_path))


def test_temporary_names_are_never_equal(tmp_path: Path) -> None:
    """Process ids are equal in containers; what is drawn is not."""
    names = {neighbour(tmp_path / "a", "tmp").name for _ in range(100)}
    assert len(names) == 100 and all(name.startswith(".a.") for name in names)
