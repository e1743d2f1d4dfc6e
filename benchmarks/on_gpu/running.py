"""Sections that run one after another within a budget; whatever happens, what was found is kept."""

from __future__ import annotations

import gc
import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from masters.artifacts import atomic_write_text
from masters.models.memory import is_out_of_memory

#: Seconds between the errors that stop a section: compilers catch them.
AGAIN = 5.0
#: What a section gives as it goes: the keys of a result, and the result.
Found = Iterator[tuple[tuple[str, ...], Any]]


class SkippedError(Exception):
    """There is no room or no time for something; says what was needed and what there is."""


class OutOfTimeError(SkippedError):
    """A section has used up its seconds."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of the suite.

    Args:
        name: in the results.
        least: not begun with fewer seconds left than this.
        most: stopped after so many.
        run: yields what it finds.
    """

    name: str
    least: float
    most: float
    run: Callable[[], Found]


def run_sections(
    sections: Sequence[Section], result: dict[str, Any], *, budget: float, path: Path | None
) -> None:
    """Runs the sections and adds what they find to ``result["sections"]``, written as it comes.

    A section is ``done``, ``partly`` done, ``skipped`` or ``failed``; but for the first with the
    reason. None keeps the next from running.

    Args:
        sections: in the order of what matters most.
        result: what is written.
        budget: seconds for all of them.
        path: of the JSON; None: nowhere.
    """
    begin = time.monotonic()
    found: dict[str, Any] = result.setdefault("sections", {})
    for section in sections:
        left = budget - (time.monotonic() - begin)
        entry = found[section.name] = {"status": "running", "reason": "", "results": {}}
        if left < section.least:
            entry["status"] = "skipped"
            entry["reason"] = f"{left:.0f} s are left of the budget; it takes {section.least:.0f}"
        else:
            started = time.monotonic()
            limit = min(section.most, left)
            _run(section, entry, limit, lambda: write(result, path))
            entry["seconds"] = round(time.monotonic() - started, 2)
        print(f"{section.name}: {entry['status']} {entry['reason']}".rstrip(), flush=True)
        release()
        result["seconds"] = round(time.monotonic() - begin, 2)
        write(result, path)


def _run(section: Section, entry: dict[str, Any], limit: float, write: Callable[[], None]) -> None:
    try:
        with stopped_after(limit):
            for keys, value in section.run():
                place = entry["results"]
                for key in keys[:-1]:
                    place = place.setdefault(key, {})
                place[keys[-1]] = value
                print(f"  {section.name} {'/'.join(keys)}: {json.dumps(value)}", flush=True)
                write()
        entry["status"] = "done"
    except SkippedError as error:
        entry["status"] = "partly" if entry["results"] else "skipped"
        entry["reason"] = str(error)
    except Exception as error:  # another section may do
        entry["status"] = "failed"
        entry["reason"] = told(error)
        if is_out_of_memory(error):
            entry["status"] = "partly" if entry["results"] else "skipped"
        else:
            traceback.print_exc()


def told(error: BaseException) -> str:
    """The error's kind and its first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def write(result: dict[str, Any], path: Path | None) -> None:
    """The JSON, whole or as it was before."""
    if path is not None:
        atomic_write_text(path, json.dumps(result, indent=1) + "\n")


@contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """Raises OutOfTimeError in what runs within, wherever it is; again where that is caught."""

    def stop(number: int, frame: Any) -> None:
        raise OutOfTimeError(f"its {seconds:.0f} s were used up")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def release() -> None:
    """Gives a CUDA device back what nothing holds any more."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def room(device: torch.device) -> float:
    """Bytes that can still be had on a CUDA device."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def need(device: torch.device, size: float, what: str, *, held: bool = False) -> None:
    """Raises SkippedError where ``what`` does not fit; a CPU is given tiny things only.

    Args:
        size: bytes.
        held: what the process holds already is part of it.
    """
    if device.type != "cuda":
        return
    release()
    free = room(device) + (torch.cuda.memory_allocated(device) if held else 0)
    if free < size:
        raise SkippedError(f"{what} takes {size / 2**30:.0f} GiB; there are {free / 2**30:.0f}")
