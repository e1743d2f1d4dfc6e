"""What a person sees while stages run: live bars on a terminal, sparse plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_EVERY_SECONDS = 15.0


class Display:
    """One line per running stage; use as a context manager.

    Args:
        console: where to write; bars only when it is a terminal.
        total: how many stages there are to do.
    """

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self.total = total
        self.finished = 0
        self._spoke: dict[str, float] = {}
        self._bars: dict[str, TaskID] = {}
        self._progress: Progress | None = None
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=28),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeRemainingColumn(),
                TextColumn("[dim]{task.fields[note]}"),
                console=console,
                transient=True,
            )

    def __enter__(self) -> Display:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress:
            self._progress.stop()

    def start(self, name: str) -> None:
        """The stage begins."""
        self._spoke[name] = time.monotonic()
        if self._progress:
            self._bars[name] = self._progress.add_task(name, total=None, note="starting")
        else:
            self._line(f"{name}: starts")

    def update(self, name: str, done: int, total: int, note: str) -> None:
        """The stage got ``done`` of ``total`` done."""
        if self._progress:
            if name not in self._bars:
                return
            self._progress.update(self._bars[name], completed=done, total=total, note=note)
            return
        now = time.monotonic()
        if now - self._spoke[name] >= _EVERY_SECONDS:
            self._spoke[name] = now
            self._line(f"{name}: {done}/{total}{'  ' + note if note else ''}")

    def end(self, name: str, seconds: float) -> None:
        """The stage is done."""
        self.finished += 1
        self._remove(name)
        self._line(f"{name}: done in {seconds:.1f} s  ({self.finished}/{self.total})")

    def rest(self, name: str, why: str) -> None:
        """This process has done what it can for the stage; others have to do the rest."""
        self._remove(name)
        self._line(f"{name}: {why}")

    def fail(self, name: str) -> None:
        """The stage gave up; the reason follows at the end of the run."""
        self._remove(name)
        self._line(f"{name}: failed")

    def _remove(self, name: str) -> None:
        if self._progress and name in self._bars:
            self._progress.remove_task(self._bars.pop(name))

    def _line(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
