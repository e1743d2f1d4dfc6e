"""From YAML text to one merged mapping, and from what is wrong in it to a sentence.

Order: ``extends`` < file < profile < overrides. Maps merge, lists replace.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from masters.errors import RecipeError

Location = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The merged mapping, and the named mappings it came from, weakest first."""

    name: str
    merged: dict[str, Any]
    parts: tuple[tuple[str, Mapping[str, Any]], ...]


def layers(
    path_or_name: str | Path, profile: str | Path | None, overrides: Sequence[str]
) -> Layers:
    """Everything that makes up one recipe.

    Raises:
        RecipeError: for files that are missing or no YAML mapping, loops of ``extends`` and
            malformed overrides.
    """
    path = _find(path_or_name, folder="recipes")
    parts = _with_extends(path)
    if profile is not None:
        chain = [Path(name).stem for name, _ in reversed(parts)]
        parts += _profile(_find(profile, folder="recipes/profiles"), chain)
    merged: dict[str, Any] = {}
    for _, part in parts:
        merged = merge(merged, part)
    for text in overrides:
        location, value = _parse_override(text)
        _set(merged, location, value, text)
        parts.append(("--set", _nested(location, value)))
    return Layers(name=path.stem, merged=merged, parts=tuple(parts))


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
    kind = {".jsonl": "jsonl", ".json": "llava"}.get(Path(value).suffix, "datasets")
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
            f"no {what} is called {text!r}{_nearest(text, shipped(folder)) or '.'} Shipped: "
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


def _with_extends(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[str, Mapping[str, Any]]]:
    if path.resolve() in seen:
        raise RecipeError(f"{path.name}: extends runs in a circle")
    content = _read(path)
    below = content.pop("extends", None)
    parts: list[tuple[str, Mapping[str, Any]]] = []
    if below is not None:
        text = str(below)
        beside = path.parent / text
        found = beside if text.endswith((".yaml", ".yml")) and beside.is_file() else text
        parts = _with_extends(_find(found, folder="recipes"), (*seen, path.resolve()))
    return [*parts, (path.name, content)]


def _profile(path: Path, chain: Sequence[str]) -> list[tuple[str, Mapping[str, Any]]]:
    """The profile, and over it what it says for this recipe alone.

    Args:
        chain: the recipe and what it extends; the first that the profile's ``recipes`` knows counts.
    """
    content = _read(path)
    per_recipe = content.pop("recipes", None) or {}
    if not isinstance(per_recipe, Mapping):
        raise RecipeError(f"{path.name}: recipes is {per_recipe!r}; expected recipe names as keys")
    own = next((per_recipe[name] for name in chain if name in per_recipe), None)
    return [(path.name, content), *([(path.name, own)] if own else [])]


class _Loader(yaml.SafeLoader):
    """Safe YAML in which ``on`` is a word, ``1e-6`` a number, and a key stands only once."""

    yaml_implicit_resolvers = {
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
    here: Any = target
    for depth, part in enumerate(location):
        last = depth == len(location) - 1
        if isinstance(here, list):
            if not isinstance(part, int) or part >= len(here):
                where = dotted(location[:depth])
                raise RecipeError(
                    f"--set {text}: {where} is a list of {len(here)}; expected a number below "
                    f"{len(here)} after it"
                )
            if not last:
                here[part] = _copied(here[part])
        elif not isinstance(here, dict):
            raise RecipeError(f"--set {text}: {dotted(location[:depth])} has no keys")
        elif not last:
            part = str(part)
            here[part] = _copied(here.get(part))
        if last:
            here[part if isinstance(here, list) else str(part)] = value
        else:
            here = here[part]


def _copied(value: Any) -> Any:
    """A copy to write into; null becomes a map, so that its keys can be set one by one."""
    if value is None:
        return {}
    return value.copy() if isinstance(value, (dict, list)) else value


def _nested(location: Location, value: Any) -> dict[str, Any]:
    for part in reversed(location):
        value = {part: value}
    return value


# -------------------------------------------------------------------------------------- errors


def unknown_key(key: str, legal: list[str]) -> PydanticCustomError:
    """The error for a key that a section doesn't have."""
    return PydanticCustomError("unknown_key", "{key}", {"key": key, "legal": legal})


def dotted(location: Sequence[str | int]) -> str:
    """``method.phases[0].mask``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def explain(error: ValidationError, layers: Layers) -> str:
    """One line per mistake: file, key, what was got, what was expected, what to do."""
    details = error.errors(include_url=False)
    causes = [detail for detail in details if not _follows(detail, details)]
    return "\n".join(dict.fromkeys(_explain_one(detail, layers) for detail in causes))


def _follows(detail: ErrorDetails, details: Sequence[ErrorDetails]) -> bool:
    """Whether a list is only short because of mistakes in its items, which are told anyway."""
    at = detail["loc"]
    deeper = any(other["loc"][: len(at)] == at and other["loc"] != at for other in details)
    return detail["type"] == "too_short" and deeper


def _explain_one(detail: ErrorDetails, layers: Layers) -> str:
    context: dict[str, Any] = dict(detail.get("ctx") or {})
    location = _located(detail["loc"], layers.merged, keep_last=detail["type"] == "missing")
    match detail["type"]:
        case "unknown_key":
            location = (*location, context["key"])
            near = _nearest(context["key"], context["legal"])
            said = f"is not a key{near or '.'} Expected one of: {', '.join(context['legal'])}"
        case "said":
            location = (*location, *context.get("at", ()))
            said = context["said"]
        case "missing":
            said = f"is missing{_missing_hint(location)}"
        case "union_tag_not_found":
            said = "has no kind; expected one"
        case "union_tag_invalid":
            location = (*location, "kind")
            wanted = str(context["expected_tags"])
            near = _nearest(str(context["tag"]), _values(wanted))
            said = f"is {context['tag']!r}; expected one of {wanted}{near}"
        case _:
            said = f"is {_short(detail['input'])}; expected {_expected(detail, context)}"
    return f"{_origin(location, layers)}: {dotted(location)} {said}"


def _located(location: Location, merged: Any, *, keep_last: bool) -> Location:
    """The location without the union tags that pydantic mixes in."""
    result: list[str | int] = []
    here = merged
    for depth, part in enumerate(location):
        if isinstance(here, Mapping) and part in here:
            here = here[part]
        elif isinstance(here, list) and isinstance(part, int):
            here = here[part] if part < len(here) else None
        elif not (keep_last and depth == len(location) - 1):
            continue
        result.append(part)
    return tuple(result)


def _origin(location: Location, layers: Layers) -> str:
    """The name of the strongest layer that says anything at the location."""
    for name, part in reversed(layers.parts):
        here: Any = part
        for piece in location:
            if isinstance(here, Mapping) and piece in here:
                here = here[piece]
            elif isinstance(here, list) and isinstance(piece, int) and piece < len(here):
                here = here[piece]
            else:
                break
        else:
            return name
    return f"{layers.name}.yaml"


def _expected(detail: ErrorDetails, context: Mapping[str, Any]) -> str:
    bounds = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    for bound, words in bounds.items():
        if bound in context:
            return f"a number {words} {context[bound]:g}"
    if "expected" in context:
        wanted = str(context["expected"])
        return f"{wanted}{_nearest(str(detail['input']), _values(wanted))}"
    plain = {
        "int": "a whole number",
        "float": "a number",
        "decimal": "a number",
        "bool": "true or false",
        "string": "text",
        "tuple": "a list",
        "list": "a list",
        "model": "keys and values",
        "dict": "keys and values",
    }
    if detail["type"] == "too_short":
        return f"at least {context['min_length']} in the list"
    if detail["type"] == "string_pattern_mismatch":
        return "letters, digits, '.', '_' and '-' only"
    kind = detail["type"].partition("_")[0]
    return plain.get(kind, detail["msg"].replace("Input should be ", ""))


def _values(wanted: str) -> list[str]:
    """The values named in a text such as ``'a', 'b' or 'c'``."""
    return re.findall(r"'([^']+)'", wanted)


def _nearest(text: str, legal: Sequence[str]) -> str:
    close = difflib.get_close_matches(text, legal, n=1, cutoff=0.6)
    return f". Did you mean {close[0]}?" if close else ""


def _missing_hint(location: Location) -> str:
    if location and location[0] in ("models", "data"):
        return "; say it in the recipe, or name a profile that does (--profile tiny)"
    return ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
