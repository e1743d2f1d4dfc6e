"""The shape of a recipe's model."""

from __future__ import annotations

from functools import lru_cache

from masters.models.counts import ModelShape
from masters.models.shape import model_shape
from masters.recipe import ModelSource, Sft
from masters.sizes import unloaded


def shape_of_source(source: ModelSource) -> ModelShape:
    """The shape of a recipe's model, from its configuration alone.

    Raises:
        ModelError: the configuration cannot be read, or its architecture not be told.
    """
    return _shape(source.path, source.revision, source.tiny)


@lru_cache(maxsize=32)
def _shape(path: str | None, revision: str | None, tiny: str | None) -> ModelShape:
    sft = Sft() if tiny is not None else None
    return model_shape(unloaded(ModelSource(path=path, revision=revision, tiny=tiny, sft=sft))[0])
