"""Tiny random models of every architecture, saved as their published checkpoints are."""

from tests.families.tokens import TOKENS
from tests.families.writing import FAMILY_NAMES, write_tiny

__all__ = ["FAMILY_NAMES", "TOKENS", "write_tiny"]
