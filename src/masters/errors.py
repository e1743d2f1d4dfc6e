"""Errors a user can act on: each says where, what was got, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class MastersError(Exception):
    """Anything Masters refuses or gives up on, with a message for the person who runs it."""


class RecipeError(MastersError):
    """The recipe (or an override of it) says something it may not say."""


class DataError(MastersError):
    """A question, label, image or table on disk is missing, broken or contradictory."""


class ModelError(MastersError):
    """A model, tokenizer or processor cannot play the part the recipe gives it."""


class StageError(MastersError):
    """A stage cannot run, go on or be read back."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What became of a stage: its folder, why it gave up, and whether its loss was no number."""

    folder: Path
    text: str
    diverged: bool = False


class StagesFailedError(StageError):
    """Stages of a run gave up; what does not need them can still be done."""

    def __init__(self, failures: Sequence[Failure]) -> None:
        super().__init__("\n".join(failure.text for failure in failures))
        self.failures = tuple(failures)


class NonFiniteLossError(StageError):
    """The loss of an optimiser step is NaN or infinite."""


class ServerError(MastersError):
    """A server that a model is asked through refuses, or serves another model."""


class ServerGoneError(ServerError):
    """A server gives no answer any more, after every attempt; what it had given was handed out."""
