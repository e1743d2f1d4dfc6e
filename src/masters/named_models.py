"""Which model a word of the command line means: a folder, a stage's folder, or a hub name."""

from __future__ import annotations

from pathlib import Path

from masters.errors import RecipeError
from masters.fingerprints import HUB_NAME
from masters.recipe_file import shipped


def is_recipe(word: str) -> bool:
    """Whether a word names a recipe: a YAML file, or a shipped one."""
    return word.endswith((".yaml", ".yml")) or word in shipped()


def model_path(word: str, *, what: str = "model", also: str = "") -> str:
    """The transformers folder or the hub name; a stage's folder stands for its model.

    Args:
        word: as typed.
        what: what it is looked for as, for the error.
        also: what else would be right, for the error: begins with a comma.

    Raises:
        RecipeError: there is no such folder, and it is no name on the hub.
    """
    folder = Path(word).expanduser()
    if folder.is_dir():
        inner = folder / "model"
        if not (folder / "config.json").is_file() and (inner / "config.json").is_file():
            return str(inner)
        return str(folder)
    if not HUB_NAME.match(word):
        raise RecipeError(
            f"{word}: no such {what}. Expected a transformers folder, a stage's folder, owner/name "
            f"on the hub{also}"
        )
    return word


def model_name(path: str) -> str:
    """What a model is called after its path: the last part that is not ``model``."""
    parts = [part for part in Path(path).parts if part not in ("model", "/", ".", "..")]
    return parts[-1] if parts else "model"
