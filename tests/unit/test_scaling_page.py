"""docs/scaling.md: its table is what its generator makes, and what it says of clusters is so."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from masters.recipe_file import shipped

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "scaling.md"


def generator() -> ModuleType:
    path = ROOT / "docs" / "generate_scaling.py"
    spec = importlib.util.spec_from_file_location("generate_scaling", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_page_is_what_its_generator_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == generator().page(), "run `make recipes` and commit"


def test_every_profile_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in shipped("recipes/profiles"))
