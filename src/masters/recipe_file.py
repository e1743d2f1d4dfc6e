"""From YAML text to one merged mapping, and from what is wrong in it to a sentence.

Order: ``extends`` < file < profile < overrides. Maps merge, lists replace.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from masters.errors import RecipeError
from masters.recipe_errors import Location, dotted, nearest, short

Part = tuple[str, Mapping[str, Any]]
"""What one source says, under the name that errors give it."""


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The merged mapping, and the named mappings it came from, weakest first."""

    name: str
    merged: dict[str, Any]
    parts: tuple[Part, ...]


def layers(
    path_or_name: str | Path,
    profile: str | Path | None,
    overrides: Sequence[str],
    over: Sequence[Part] = (),
) -> Layers:
    """Everything that makes up one recipe.

    Args:
        over: named mappings between profile and overrides, weakest first.

    Raises:
        RecipeError: for files that are missing or no YAML mapping, loops of ``extends`` and
            malformed overrides.
    """
    path = _find(path_or_name, folder="recipes")
    parts = _with_extends(path)
    if profile is not None:
        chain = [Path(name).stem for name, _ in reversed(parts)]
        parts += _profile(_find(profile, folder="recipes/profiles"), chain)
    parts += over
    merged: dict[str, Any] = {}
    for _, part in parts:
        merged = merge(merged, part)
    for text in overrides:
        location, value = _parse_override(text)
        _set(merged, location, value, text)
        parts.append(("--set", _nested(location, value)))
    return Layers(name=path.stem, merged=merged, parts=tuple(parts))


def layers_of_file(path: Path) -> Layers:
    """Any YAML file of keys and values, as it stands.

    Raises:
        RecipeError: it cannot be read, or holds something else.
    """
    content = _read(path)
    return Layers(name=path.stem, merged=content, parts=((path.name, content),))


def layers_of_text(text: str, name: str) -> Layers:
    """A whole recipe from one text."""
    content = _parse(text, name)
    return Layers(name=name, merged=content, parts=((name, content),))


def shipped(folder: str = "recipes") -> list[str]:
    """The names of the shipped recipes, or of the shipped profiles (``recipes/profiles``)."""
    return sorted(path.stem for path in _shipped_folder(folder).glob("*.yaml"))


def _shipped_folder(folder: str) -> Path:
    return Path(__file__).parent / folder


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid on ``under``: maps merge, all else replaces.

    Where the two sides of a union differ (``kind``, or a tiny model over a path) the map replaces.
    """
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            other_kind = "kind" in value and value["kind"] != below.get("kind", value["kind"])
            other_origin = ("tiny" in value and "path" in below) or (
                "path" in value and "tiny" in below
            )
            result[key] = dict(value) if other_kind or other_origin else merge(below, value)
        else:
            result[key] = value
    return result


def to_yaml(values: Mapping[str, Any]) -> str:
    """Block YAML in the order of the schema."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=100)


def source_from_text(value: Any) -> Any:
    """A data source given as a string, by its ending; anything else unchanged."""
    if not isinstance(value, str):
        return value
    kinds = {".jsonl": "jsonl", ".json": "llava", ".tar": "webdataset"}
    kind = kinds.get(Path(value).suffix, "datasets")
    return {"kind": kind, "path": value}


# ------------------------------------------------------------------------------------- reading


def _find(path_or_name: str | Path, *, folder: str) -> Path:
    text = str(path_or_name)
    if text.endswith((".yaml", ".yml")) or "/" in text:
        path = Path(text)
        if not path.is_file():
            raise RecipeError(f"{text}: no such file")
        return path
    if text not in shipped(folder):
        what = "profile" if folder.endswith("profiles") else "recipe"
        raise RecipeError(
            f"no {what} is called {text!r}{nearest(text, shipped(folder)) or '.'} Shipped: "
            f"{', '.join(shipped(folder))}; or give the path of a .yaml file"
        )
    return _shipped_folder(folder) / f"{text}.yaml"


def _read(path: Path) -> dict[str, Any]:
    try:
        return _parse(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise RecipeError(f"{name}: expected keys and values at the top level")
    return content


def _with_extends(path: Path, seen: tuple[Path, ...] = ()) -> list[Part]:
    if path.resolve() in seen:
        raise RecipeError(f"{path.name}: extends runs in a circle")
    content = _read(path)
    below = content.pop("extends", None)
    parts: list[Part] = []
    if below is not None:
        text = str(below)
        beside = path.parent / text
        found = beside if text.endswith((".yaml", ".yml")) and beside.is_file() else text
        parts = _with_extends(_find(found, folder="recipes"), (*seen, path.resolve()))
    return [*parts, (path.name, content)]


def _profile(path: Path, chain: Sequence[str]) -> list[Part]:
    """The profile, and over it what it says for this recipe alone.

    Args:
        chain: the recipe and what it extends; the first that ``recipes`` names counts.
    """
    content = _read(path)
    per_recipe = content.pop("recipes", None) or {}
    if not isinstance(per_recipe, Mapping):
        raise RecipeError(f"{path.name}: recipes is {per_recipe!r}; expected recipe names as keys")
    own = next((per_recipe[name] for name in chain if name in per_recipe), None)
    return [(path.name, content), *([(path.name, own)] if own else [])]


class _Loader(yaml.SafeLoader):
    """Safe YAML in which ``on`` is a word, ``1e-6`` a number, and a key stands only once."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith((":bool", ":float"))]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.YAMLError(f"key {key!r} stands twice, again{key_node.start_mark}")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)


# ----------------------------------------------------------------------------------- overrides


def _parse_override(text: str) -> tuple[Location, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {text}: expected key=value, such as method.optimiser.lr=1e-6")
    pieces = key.strip().replace("[", ".").replace("]", "").split(".")
    location = tuple(int(piece) if piece.isdigit() else piece for piece in pieces)
    try:
        parsed = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError:
        parsed = value
    return location, parsed


def _set(target: dict[str, Any], location: Location, value: Any, text: str) -> None:
    """Writes the value into ``target``; what lies on the way is copied first."""
    here: Any = target
    for depth, part in enumerate(location):
        key = _key_of(here, part, location[:depth], text)
        if depth == len(location) - 1:
            here[key] = value
        else:
            below = here[key] if isinstance(here, list) else here.get(key)
            here[key] = _copied(below)
            here = here[key]


def _key_of(here: Any, part: str | int, above: Location, text: str) -> Any:
    """The part as a key of ``here``: a place in a list, or a name in a map."""
    if isinstance(here, dict):
        return str(part)
    if not isinstance(here, list):
        raise RecipeError(f"--set {text}: {dotted(above)} is {short(here)}; it has no keys")
    if not isinstance(part, int) or part >= len(here):
        raise RecipeError(
            f"--set {text}: {dotted(above)} is a list of {len(here)}; expected a number below "
            f"{len(here)} after it"
        )
    return part


def _copied(value: Any) -> Any:
    """A copy to write into; null becomes a map, so that its keys can be set one by one."""
    if value is None:
        return {}
    return value.copy() if isinstance(value, (dict, list)) else value


def _nested(location: Location, value: Any) -> dict[str, Any]:
    for part in reversed(location):
        value = {part: value}
    return value
