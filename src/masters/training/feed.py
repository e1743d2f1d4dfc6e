"""What coming iterations need, made ahead of them by threads: groups, and a stored signal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from masters.read_ahead import ReadAhead
from masters.training.groups import Group
from masters.training.stored_signal import StepSignal, StoredSignal


class Curriculum(Protocol):
    """What is trained when: groups and masking ratio of each iteration."""

    def ratio(self, iteration: int) -> int: ...

    def groups(self, iteration: int) -> tuple[list[Group], int]:
        """The kept groups of an iteration and how many were dropped."""
        ...


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What an iteration needs from disk and from processors.

    Args:
        groups: that are kept.
        dropped: how many questions were not.
        signal: of the groups' responses, where the teacher's signal is stored.
    """

    groups: list[Group]
    dropped: int
    signal: StepSignal | None

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        prompts = [p for group in self.groups for p in (group.student_prompt, group.teacher_prompt)]
        signal = 0 if self.signal is None else self.signal.size
        return signal + sum(prompt.size for prompt in prompts if prompt is not None)


Feed = ReadAhead[int, Prepared]


def open_feed(
    curriculum: Curriculum, stored: StoredSignal | None, iterations: Iterable[int], *, workers: int
) -> Feed:
    """Gives these iterations in their order; closed by its ``with``.

    Args:
        workers: threads; 0 prepares an iteration when it is taken.
    """

    def prepare(iteration: int) -> Prepared:
        groups, dropped = curriculum.groups(iteration)
        signal = stored.read(groups, curriculum.ratio(iteration)) if stored else None
        return Prepared(groups=groups, dropped=dropped, signal=signal)

    return ReadAhead(prepare, iterations, workers=workers, size=lambda prepared: prepared.size)
