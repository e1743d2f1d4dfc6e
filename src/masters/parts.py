"""The parts of a vision-language model that masks and training can be told to leave alone."""

from __future__ import annotations

from typing import Literal

Part = Literal["language", "projector", "vision"]
"""The decoder, what turns vision features into its tokens, the vision tower."""

PARTS: tuple[Part, ...] = ("language", "projector", "vision")
