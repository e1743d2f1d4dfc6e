"""The ground of the recipe's schema: sections, kinds of numbers, and where questions come from."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from masters import recipe_errors, recipe_file
from masters.errors import RecipeError
from masters.ratios import ratio_parts


class Section(BaseModel):
    """A block of the recipe: frozen, and unknown keys are refused with the nearest legal one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        for key in value if isinstance(value, Mapping) else ():
            if key not in cls.model_fields:
                raise recipe_errors.unknown_key(str(key), list(cls.model_fields))
        return value


def _ratio(value: Decimal) -> Decimal:
    try:
        ratio_parts(value)
    except RecipeError as error:
        raise PydanticCustomError("said", "{said}", {"said": str(error)[len("ratio ") :]}) from None
    return value


def _plain(value: Decimal) -> str:
    return format(value.normalize(), "f")


Exact = Annotated[Decimal, PlainSerializer(_plain, return_type=str)]
Ratio = Annotated[Exact, AfterValidator(_ratio)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Unit = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["bf16", "fp32"]


# ---------------------------------------------------------------------------------------- data


class _Source(Section):
    limit: Count | None = None
    """Use only the first so many questions."""
    on_bad: Literal["error", "skip"] = "error"
    """A broken row stops the run, or is left out, counted and named."""


class _Files(_Source):
    offset: Whole = 0
    """Leave out the first so many questions; with ``limit``, one file splits into several sets."""
    max_image_pixels: Annotated[int, Field(ge=1, le=178_000_000)] = 64_000_000
    """Larger images (width x height) are bad rows: known from the header, nothing is decoded."""
    max_image_bytes: Count = 64 * 2**20
    """Larger image files are bad rows."""


class JsonlSource(_Files):
    """JSON lines ``{id, image, question, answer, choices?, kind?}``; ``images`` for several."""

    kind: Literal["jsonl"] = "jsonl"
    path: str
    """The file."""
    images: str | None = None
    """The folder image paths are relative to (null: the file's own), or tar files that hold the
    images: ``shards/*.tar``."""
    allow_urls: bool = False
    """Images may be http(s) URLs: fetched once, one by one, into the cache folder."""


class LlavaSource(_Files):
    """LLaVA-style conversations; each answer becomes a question, earlier turns its history."""

    kind: Literal["llava"] = "llava"
    path: str
    """The JSON file."""
    images: str | None = None
    """The folder image paths are relative to (null: the file's own), or tar files that hold the
    images: ``shards/*.tar``."""
    allow_urls: bool = False
    """Images may be http(s) URLs: fetched once, one by one, into the cache folder."""


class Columns(Section):
    """Which column of a ``datasets`` folder holds what."""

    id: str | None = None
    """null: the row's number."""
    image: str = "image"
    question: str = "question"
    answer: str = "answer"
    choices: str | None = None
    kind: str | None = None


class DatasetsSource(_Files):
    """A folder written by ``datasets.save_to_disk``, or Parquet files with a column of images."""

    kind: Literal["datasets"] = "datasets"
    path: str
    """The folder, or one Parquet file."""
    split: str = "train"
    columns: Columns = Columns()


class Fields(Section):
    """Which field of a sample holds what: a key of its JSON, or a text member's ending."""

    id: str | None = "id"
    """Where there is none: the shard's name and the sample's key."""
    question: str = "question"
    answer: str = "answer"
    choices: str | None = "choices"
    kind: str | None = "kind"


class WebdatasetSource(_Files):
    """Tar shards of samples: members that share a name up to the first dot (WebDataset)."""

    kind: Literal["webdataset"] = "webdataset"
    path: str
    """A tar file, a folder of them, or a pattern such as ``shards/*.tar``."""
    columns: Fields = Fields()


class ScenesSource(_Source):
    """Rendered scenes of coloured shapes on a 3x3 grid, made on the spot from a seed."""

    kind: Literal["scenes"] = "scenes"
    count: Count
    """How many questions, each about its own scene."""
    seed: int = 0
    """Scenes of different seeds are disjoint."""
    wording: Literal["word", "label_first", "varied"] = "word"
    """Labels to train on: the answer's words alone, or one of four valid wordings; those of
    label_first all begin with the answer."""
    kinds: tuple[str, ...] | None = None
    """Question kinds; null: all."""
    image: Count = 48
    """Edge of the square image in pixels."""


DataSource = Annotated[
    JsonlSource | LlavaSource | DatasetsSource | WebdatasetSource | ScenesSource,
    Field(discriminator="kind"),
    BeforeValidator(recipe_file.source_from_text),
]
"""Where questions come from; text is read by its ending: .jsonl, .json (LLaVA), .tar, a folder."""
