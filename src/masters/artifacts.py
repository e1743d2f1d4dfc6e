"""A stage's folder: its fingerprint, its lock, its record, and what a stage is handed to run.

``record.json`` is written last and by rename: where it exists the stage is done.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from masters.errors import StageError
from masters.shares import CLAIMS, Part, neighbour

if TYPE_CHECKING:
    from masters.recipe import Runtime

RECORD = "record.json"
VERDICTS = "verdicts.sqlite"
"""In the output folder: what judges said, for all runs of it."""
_UNFINISHED_ONLY = ("checkpoints", "init")
_LEFTOVERS = (".*.tmp", ".*.partial", CLAIMS)
_POLL_S = 0.5
_PACKAGES = (
    "masters", "torch", "transformers", "numpy", "pyarrow", "pillow", "safetensors",
    "peft", "bitsandbytes", "flash-attn",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """What a stage is handed besides its spec.

    Args:
        folder: the stage's own folder; it exists and is locked.
        inputs: role -> folder of the input stage, which is done.
        runtime: the recipe's runtime block.
        progress: (done, total, note); cheap, may be called often.
        part: which of the stage's shards are to be made here.
    """

    folder: Path
    inputs: Mapping[str, Path]
    runtime: Runtime
    progress: Callable[[int, int, str], None]
    part: Part = field(default_factory=Part)


@dataclass(frozen=True, kw_only=True)
class StageInfo:
    """One finished stage as a report sees it; ``shared``: other runs of the report use it too."""

    kind: str
    folder: Path
    seconds: float
    shared: bool = False


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """One recipe at one seed as a report sees it: the stages by name."""

    name: str
    seed: int
    recipe_yaml: str
    stages: Mapping[str, StageInfo]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(value: Any) -> str:
    """SHA-256 hex digest of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Writes the file whole or not at all: a temporary neighbour, fsync, rename."""
    temporary = neighbour(path, "tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def atomic_write_text(path: Path, content: str) -> None:
    """`atomic_write_bytes` of the text in UTF-8."""
    atomic_write_bytes(path, content.encode())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def versions() -> dict[str, str]:
    """The installed versions a record keeps; nothing is imported for it."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_record(
    folder: Path,
    *,
    kind: str,
    spec: Mapping[str, Any],
    fingerprint: str,
    inputs: Mapping[str, str],
    runtime: Mapping[str, Any],
    start: float,
    end: float,
    metrics: Mapping[str, Any],
) -> None:
    """Marks the stage in ``folder`` as done.

    Args:
        spec: the resolved spec, as JSON values.
        inputs: role -> fingerprint of the input stage.
        start: Unix time in seconds; ``end`` likewise.
        metrics: what the stage's ``run`` returned.
    """
    record = {
        "kind": kind,
        "fingerprint": fingerprint,
        "spec": spec,
        "inputs": dict(inputs),
        "versions": versions(),
        "runtime": runtime,
        "start": start,
        "end": end,
        "seconds": round(end - start, 3),
        "metrics": dict(metrics),
    }
    text = json.dumps(record, indent=2, ensure_ascii=False, default=str)
    atomic_write_text(folder / RECORD, text + "\n")


def is_done(folder: Path) -> bool:
    """Whether the stage in ``folder`` has finished."""
    return (folder / RECORD).is_file()


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a finished stage.

    Raises:
        StageError: when there is none, or it is no whole JSON object.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(f"{folder}: the stage is not done; it has no {RECORD}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StageError(_torn(path, str(error))) from None
    if not isinstance(record, dict) or "fingerprint" not in record:
        raise StageError(_torn(path, "no object with a fingerprint"))
    return record


def tidy(folder: Path) -> None:
    """Removes what only an unfinished stage needs, and temporary files of killed processes.

    To be called once the record is written: until then the checkpoints must stay.
    """
    for name in _UNFINISHED_ONLY:
        shutil.rmtree(folder / name, ignore_errors=True)
    for pattern in _LEFTOVERS:
        for left in (*folder.glob(pattern), *folder.glob(f"*/{pattern}")):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _torn(path: Path, reason: str) -> str:
    return (
        f"{path} is damaged ({reason}); expected the whole record of a finished stage. "
        f"Delete {path.parent} and run the same command again"
    )


@contextmanager
def lock(folder: Path, *, together: bool = False, wait: bool = False) -> Iterator[None]:
    """Holds the folder alone; the system frees it when its owner dies, however it dies.

    Args:
        together: hold it with others that do the same, against one that wants it alone.
        wait: until it is free, instead of the error.

    Raises:
        StageError: when another process holds it; names that process and its machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    how = fcntl.LOCK_SH if together else fcntl.LOCK_EX
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, how | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not wait:
                    raise _in_use(folder, file) from None
                time.sleep(_POLL_S)
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def _in_use(folder: Path, file: IO[str]) -> StageError:
    file.seek(0)
    owner = file.read().strip() or "an unknown process"
    return StageError(f"{folder} is in use by {owner}. Wait for it, or end it and run again")


def is_disk_full(error: BaseException) -> bool:
    """Whether the error, or what caused it, is the disk (or the quota) being full."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def disk_full_error(folder: Path) -> StageError:
    """The error that names the folder and what is left on its disk."""
    free = shutil.disk_usage(folder).free / 2**20
    return StageError(
        f"{folder}: the disk is full ({free:.0f} MiB free). Make room and run the same command "
        f"again; finished parts are kept"
    )
