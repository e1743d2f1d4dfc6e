"""Which state of which model learns and teaches in a phase.

A model is as it came until a phase trains it; from then on its name means what that phase left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from masters.recipe import Phase, Recipe

STUDENT = "student"
"""The name of the model that the recipe is about."""

MARK = "@"
"""Between a model's name and the phase after which it is meant."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """A model as it stood after ``phase``, which trained it; None: as it came."""

    model: str
    phase: int | None = None

    @property
    def name(self) -> str:
        """``mid``, or ``mid@0``: what stages and reports call it."""
        return self.model if self.phase is None else f"{self.model}{MARK}{self.phase}"


def standing(phases: Sequence[Phase], model: str, index: int) -> Version:
    """The model as it stands when phase ``index`` begins."""
    trained = [k for k in range(index) if phases[k].student == model]
    return Version(model=model, phase=trained[-1] if trained else None)


def learner(phases: Sequence[Phase], index: int) -> Version:
    """The model that phase ``index`` trains, as it stands when the phase begins."""
    return standing(phases, phases[index].student, index)


def teacher(phases: Sequence[Phase], index: int) -> Version | None:
    """The model that teaches in phase ``index``; None where none does."""
    named = phases[index].teacher
    if named is None:
        return None
    model, mark, after = named.partition(MARK)
    return Version(model=model, phase=int(after)) if mark else standing(phases, model, index)


def evaluated_teachers(recipe: Recipe) -> list[Version]:
    """Every model of ``models.teachers`` as it came and after each phase that trained it; then the
    states of the student that taught."""
    phases = recipe.method.phases
    found: list[Version] = []
    for source in recipe.models.teachers:
        found.append(Version(model=source.name))
        found += [
            Version(model=source.name, phase=k)
            for k, phase in enumerate(phases)
            if phase.student == source.name
        ]
    taught = (teacher(phases, k) for k in range(len(phases)))
    students = (version for version in taught if version and version.model == STUDENT)
    return [*found, *dict.fromkeys(students)]
