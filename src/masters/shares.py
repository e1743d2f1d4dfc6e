"""A stage's shards made by several workers at once, without a coordinator.

Worker I of N makes the shards whose number leaves I when divided by N, so that no two workers are
given the same one; I and N come from the command line or from what launched the process. What a
shard holds follows from the plan alone: whoever makes it, and however often, it is the same.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from masters.errors import StageError

CLAIMS = ".claims"
_FINISH = 1 << 40  # a byte behind those of all shards
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Worker ``index`` (from 0) of ``count``.

    Raises:
        StageError: there is no such worker.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise StageError(
                f"there is no worker {self.index} of {self.count}; expected a number from 0 to "
                f"{max(0, self.count - 1)} and at least one worker"
            )

    def __str__(self) -> str:
        return f"worker {self.index} of {self.count}"

    @property
    def whole(self) -> bool:
        """Whether one process does everything."""
        return self.count == 1

    def mine(self, number: int) -> bool:
        """Whether this worker is to make the shard."""
        return number % self.count == self.index


WHOLE = Share()


class ShardsMissingError(StageError):
    """This worker has made its part of a stage, and shards of others are not there yet.

    Args:
        paths: what is missing.
        elsewhere: how many of these another process with the same number is making.
    """

    def __init__(self, share: Share, paths: Sequence[Path], elsewhere: int) -> None:
        self.paths = tuple(paths)
        others = len(paths) - elsewhere
        also = f", {elsewhere} of them by another process with this number" if elsewhere else ""
        missing = f"{len(paths)} shard{'s' if len(paths) > 1 else ''}"
        whose = "of others " if others == len(paths) else ""
        verb = "is" if len(paths) == 1 else "are"
        super().__init__(
            f"{share} has done its part; {missing} {whose}{verb} still to be made{also}"
        )


# ---------------------------------------------------------------------------------- which worker


def share_from(
    environment: Mapping[str, str], worker: int | None = None, workers: int | None = None
) -> Share:
    """Which worker this process is.

    ``worker`` and ``workers`` come first. With ``workers`` alone the number is the launcher's own
    (SLURM_ARRAY_TASK_ID as it is), so that one of an array can be started again by itself. Else
    torchrun's RANK, a SLURM array's place, that of ``srun``'s process within it.

    Args:
        environment: of the process.
        worker: ``--worker``, from 0.
        workers: ``--workers``.

    Raises:
        StageError: it cannot be told, or is no worker of so many.
    """
    if worker is not None:
        if workers is None:
            raise StageError(f"--worker {worker} of how many? Expected --workers N beside it")
        return Share(index=worker, count=workers)
    if workers == 1:
        return WHOLE
    found = _launched(environment, counted=workers is None)
    if workers is None:
        return found or WHOLE
    if found is None:
        raise StageError(
            f"--workers {workers} says how many there are, and nothing which of them this is; "
            f"expected --worker I (0 to {workers - 1}), or a launcher that sets RANK, "
            "SLURM_ARRAY_TASK_ID, SLURM_PROCID or JOB_COMPLETION_INDEX"
        )
    return Share(index=found.index, count=workers)


def _launched(environment: Mapping[str, str], *, counted: bool) -> Share | None:
    """What launched the process says; the number as it stands, unless it is to be ``counted``."""
    array = _array(environment, counted=counted)
    rank, world = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    process, tasks = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_NTASKS")
    inner, name = (rank, world), "RANK"
    if rank is None or world is None:
        inner, name = (process, tasks), "SLURM_PROCID"
    within = None
    if inner[0] is not None and inner[1] is not None and inner[1] > 1:
        within = Share(index=inner[0], count=inner[1])
    if array is None or array.whole:
        if within is not None or array is not None:
            return within or array
        return _pod(environment, counted=counted)
    if within is None:
        return array
    if name == "RANK" or not counted:
        raise StageError(
            f"{name}={within.index} is one of {within.count}, in one of several jobs of a SLURM "
            "array: which part is meant? Expected --worker I --workers N"
        )
    # srun within an array: each job of the array is so many workers.
    count = within.count
    return Share(index=array.index * count + within.index, count=array.count * count)


def _array(environment: Mapping[str, str], *, counted: bool) -> Share | None:
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN")
    task, count, first = (_number(environment, name) for name in names)
    if task is None or count is None:
        return None
    if not counted:
        return Share(index=task, count=max(count, task + 1))
    step = _number(environment, "SLURM_ARRAY_TASK_STEP") or 1
    last = _number(environment, "SLURM_ARRAY_TASK_MAX")
    first = first or 0
    if last is not None and (last - first) // step + 1 != count:
        raise StageError(
            f"the numbers of this SLURM array ({count} from {first} to {last}) have gaps, so which "
            "worker this is cannot be told from them; expected --workers N, as in the whole array, "
            "or an array like 0-7"
        )
    return Share(index=(task - first) // step, count=count)


def _pod(environment: Mapping[str, str], *, counted: bool) -> Share | None:
    index = _number(environment, "JOB_COMPLETION_INDEX")
    if index is None:
        return None
    if counted:
        raise StageError(
            f"JOB_COMPLETION_INDEX={index} says which worker this is, and nothing of how many; "
            "expected --workers N, the Job's completions"
        )
    return Share(index=index, count=index + 1)


def _number(environment: Mapping[str, str], name: str) -> int | None:
    value = environment.get(name, "")
    if not value:
        return None
    if not value.isdigit():
        raise StageError(f"{name} is {value!r} in the environment; expected a whole number")
    return int(value)


# ----------------------------------------------------------------------------- one worker's part


class Part:
    """One worker's part of a stage, while it is at work in the stage's folder.

    Where several are at work, each shard is claimed by a lock on its byte of one file. The system
    frees it when its owner ends, however that ends. Where the file system knows no locks between
    machines, or none at all, the shares alone keep workers apart; then each number must be started
    once.

    Args:
        share: which worker it is; one alone holds the folder, and claims nothing.
        folder: the stage's own.
    """

    def __init__(self, share: Share = WHOLE, folder: Path | None = None) -> None:
        self.share = share
        self._file: IO[bytes] | None = None
        if folder is not None and not share.whole:
            self._file = open(folder / CLAIMS, "a+b", buffering=0)  # noqa: SIM115

    def take(self, paths: Sequence[Path]) -> list[int]:
        """The numbers of the shards that this worker makes now.

        They are not there, are this worker's, and no other process is making them.

        Args:
            paths: of all the stage's shards, in order.
        """
        own = [n for n in lacking(paths) if self.share.mine(n)]
        claimed = [n for n in own if self._claim(n)]
        # One that another process finished between the look and the claim is there now.
        return [n for n in claimed if not paths[n].exists()]

    def finish(self, paths: Sequence[Path]) -> None:
        """Returns if all shards are there; then this worker alone finishes the stage.

        Raises:
            ShardsMissingError: some are not.
        """
        if self._file is not None:
            _lock_byte(self._file, _FINISH, wait=True)
        if missing := lacking(paths):
            elsewhere = sum(self.share.mine(n) for n in missing)
            raise ShardsMissingError(self.share, [paths[n] for n in missing], elsewhere)

    def close(self) -> None:
        """Gives back what was claimed."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _claim(self, number: int) -> bool:
        return self._file is None or _lock_byte(self._file, number, wait=False)


def lacking(paths: Sequence[Path]) -> list[int]:
    """The numbers of the shards that are not there, by one listing of each folder.

    A listing sees what other machines wrote; looking for a name may be answered from memory.
    """
    there = {
        path
        for folder in {path.parent for path in paths}
        if folder.is_dir()
        for path in folder.iterdir()
    }
    return [n for n, path in enumerate(paths) if path not in there]


def _lock_byte(file: IO[bytes], number: int, *, wait: bool) -> bool:
    """Locks one byte for this process; False where another has it."""
    # POSIX record locks: of all locks, the ones that network file systems know best.
    how = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
    try:
        fcntl.lockf(file, how, 1, number, os.SEEK_SET)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"{file.name}: no locks on this file system ({error.strerror}); start each worker once",
            stacklevel=2,
        )
    return True


def neighbour(path: Path, ending: str) -> Path:
    """A name beside the path that no other process uses, on whatever machine; hidden."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.{ending}")
