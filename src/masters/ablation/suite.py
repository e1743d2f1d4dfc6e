"""What a suite's YAML may say: data sets, arms, how rates are tuned, and the claims in question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from masters import recipe_errors, recipe_file
from masters.errors import RecipeError
from masters.recipe_parts import Section, Whole

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
Expected = Literal["up", "down", "equal"]


class Tune(Section):
    """One key of the recipe, tried at the same values for every arm, by validation accuracy."""

    key: str
    """Such as method.optimiser.lr."""
    values: Annotated[tuple[int | float, ...], Field(min_length=2)]
    seed: Whole = 100
    """The seed of the tries; none of the suite's."""
    models_of: Whole | None = None
    """The seed whose tiny models are used; null: their own, of ``seed``."""

    @property
    def grid(self) -> tuple[int | float, ...]:
        """The values, rising."""
        return tuple(sorted(self.values))


class Arm(Section):
    """A recipe, and what is laid over it last."""

    recipe: str
    """A shipped recipe's name, or a YAML file beside the suite."""
    set: dict[str, Any] = {}
    """Laid over recipe, profile and data set."""
    tune_as: str | None = None
    """The arm whose tuned value this one takes, instead of tries of its own."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Side = Annotated[tuple[str, ...], Field(min_length=1, max_length=2), BeforeValidator(_listed)]


class Claim(Section):
    """Which way the difference of two arms should go, or that of two such differences."""

    id: Name
    says: str
    """One sentence."""
    source: str = ""
    """Where it is claimed."""
    expects: Expected
    """up: second above first; down: below; equal: no difference beyond a point."""
    first: Side
    """An arm; or two, whose difference (second less first) is the baseline."""
    second: Side
    """An arm, the candidate; or two."""
    data: tuple[str, ...] | None = None
    """null: all data sets."""
    unequal: bool = False
    """Arms with different optimiser steps or questions may be compared; the page then says so."""
    diagnostics: tuple[str, ...] = ()
    """Keys of metrics.jsonl to show by arm."""
    reading: str = ""
    """What it means, written by hand after looking."""

    @property
    def arms(self) -> tuple[str, ...]:
        """Every arm that it needs, the baselines first."""
        return (*self.first, *self.second)


class Suite(Section):
    """What is asked, with which arms, data sets and seeds. ``name`` is the file's stem."""

    about: str
    profile: str | None = None
    """A shipped profile, or a YAML file beside the suite."""
    seeds: Annotated[tuple[Whole, ...], Field(min_length=1)]
    vary: Annotated[tuple[Literal["run", "models"], ...], Field(min_length=1)] = ("run", "models")
    """What a seed changes: ``method.seed``, and the seeds of the tiny models."""
    data: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]
    """Each a mapping laid over recipe and profile."""
    tune: Tune | None = None
    arms: Annotated[dict[Name, Arm], Field(min_length=1)]
    claims: tuple[Claim, ...] = ()

    _path: Path = PrivateAttr(default=Path("suite.yaml"))

    @property
    def path(self) -> Path:
        """The file it was read from."""
        return self._path

    @property
    def name(self) -> str:
        """The stem of the file it was read from."""
        return self._path.stem

    def data_of(self, claim: Claim) -> tuple[str, ...]:
        """The data sets that the claim is tested on."""
        return tuple(self.data) if claim.data is None else claim.data

    def tuned_as(self, arm: str) -> str:
        """The arm whose tries give this arm's value."""
        return self.arms[arm].tune_as or arm

    @model_validator(mode="after")
    def _consistent(self) -> Suite:
        _distinct(("seeds",), self.seeds)
        _distinct(("claims",), [claim.id for claim in self.claims])
        if self.tune is not None:
            _distinct(("tune", "values"), self.tune.values)
            if self.tune.seed in self.seeds:
                raise _wrong(
                    ("tune", "seed"),
                    f"is {self.tune.seed}, one of `seeds`; expected another, or what is tuned on "
                    "would be measured on",
                )
        for name, arm in self.arms.items():
            at = ("arms", name, "tune_as")
            if arm.tune_as is None:
                continue
            _known(at, arm.tune_as, list(self.arms), "an arm")
            if self.tune is None or self.arms[arm.tune_as].tune_as is not None:
                raise _wrong(at, f"is {arm.tune_as!r}; expected an arm that is tuned itself")
        for place, claim in enumerate(self.claims):
            self._check_claim(("claims", place), claim)
        return self

    def _check_claim(self, at: tuple[str | int, ...], claim: Claim) -> None:
        for side in ("first", "second"):
            for arm in getattr(claim, side):
                _known((*at, side), arm, list(self.arms), "an arm")
        _distinct((*at, "first"), claim.arms)
        if len(claim.first) != len(claim.second):
            raise _wrong((*at, "second"), "expected one arm on each side, or two on each")
        for name in claim.data or ():
            _known((*at, "data"), name, list(self.data), "a data set")


def load_suite(path: str | Path) -> Suite:
    """The typed suite.

    Raises:
        RecipeError: naming file, key, what was got and what was expected.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"{path}: no such file; expected a suite's YAML")
    layers = recipe_file.layers_of_file(path)
    try:
        suite = Suite.model_validate(layers.merged)
    except ValidationError as error:
        raise RecipeError(recipe_errors.explain(error, layers)) from None
    suite._path = path
    return suite


def _wrong(at: tuple[str | int, ...], said: str) -> PydanticCustomError:
    return PydanticCustomError("said", "{said}", {"at": at, "said": said})


def _distinct(at: tuple[str | int, ...], values: Sequence[Any]) -> None:
    again = [value for place, value in enumerate(values) if value in values[:place]]
    if again:
        raise _wrong(at, f"has {again[0]!r} twice; expected each once")


def _known(at: tuple[str | int, ...], name: str, legal: list[str], what: str) -> None:
    if name not in legal:
        near = recipe_errors.nearest(name, legal) or "."
        raise _wrong(at, f"is {name!r}, not {what}{near} Expected one of: {', '.join(legal)}")
