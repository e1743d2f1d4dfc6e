"""What a recipe may say of the engines that answer beside transformers: a server, and vLLM."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import Field

from masters.recipe_parts import Count, Positive, Ratio, Section

Share = Annotated[float, Field(gt=0, le=1)]


class Served(Section):
    """A model of the recipe, at one masking ratio, under the name that a server has for it."""

    model: str
    """``student``, or the name of one of ``models.teachers``; as it came, before any phase."""
    name: Annotated[str, Field(min_length=1)]
    """The name that the server lists."""
    ratio: Ratio = Decimal(0)
    """The masking ratio of what is served: see ``masters mask --materialise``."""


class Vllm(Section):
    """vLLM in a Python environment of its own, in a process of its own."""

    python: Annotated[str, Field(min_length=1)]
    """The environment's interpreter: /opt/vllm/bin/python, say."""
    memory: Share = 0.9
    """The share of each device's memory that it takes; on a CPU, of the host's."""
    tensor_parallel: Count = 1
    """Devices that one model is spread over."""
    max_length: Count | None = None
    """The longest prompt and response together, in tokens; null: what the model allows."""
    eager: bool = False
    """Compile nothing: it starts sooner and answers slower."""
    start_seconds: Positive = 1800.0
    """It counts as hung when a model takes longer to load."""
    answer_seconds: Positive = 3600.0
    """It counts as hung when a shard takes longer."""
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Further arguments of ``vllm.LLM``, stronger than ours: enable_chunked_prefill: false, say."""
