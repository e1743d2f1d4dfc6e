"""What a recipe may say of an LLM judge, and of the server that may run it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from masters.recipe_parts import Count, Positive, Section, Unit, Whole


class Judge(Section):
    """An LLM that judges in two calls, greedily: one explains, the other prints the verdict."""

    model: Literal["teacher", "server"] = "teacher"
    """teacher: the phase's own, unmasked, run here. server: what runtime.server serves."""
    name: Annotated[str, Field(min_length=1)] | None = None
    """The model's name at the server."""
    rules_first: bool = False
    """What the rule settles exactly is not asked; false, the paper's way: the judge for all."""
    prompt: Literal["v1"] = "v1"
    """The version of the judge's prompts."""
    max_new_tokens: Count = 384
    """The longest explanation, in the judge's tokens."""
    retries: Whole = 2
    """How often a verdict that cannot be read is asked for again."""
    max_missing: Unit = 0.05
    """A stage in which a larger share of the verdicts is missing stops. No part of a fingerprint:
    it changes no verdict."""


def _address(value: str) -> str:
    if not value.startswith(("http://", "https://")) or "@" in value:
        raise PydanticCustomError(
            "said",
            "{said}",
            {
                "said": f"is {value!r}; expected http(s)://HOST:PORT/v1 without a user or a key. "
                "Put the key into the environment variable that key_variable names"
            },
        )
    return value


class ServerAddress(Section):
    """An OpenAI-compatible endpoint and how hard it may be asked."""

    url: Annotated[str, AfterValidator(_address)]
    """Its address up to the version: http://localhost:8000/v1."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; none is sent where it is not set."""
    concurrency: Count = 16
    """Calls under way at the same time."""
    timeout: Positive = 120.0
    """Seconds that one call may take."""
    attempts: Count = 6
    """How often one call is tried, with growing pauses, before the server counts as gone."""
