"""From what is wrong in a recipe to a sentence: where, what was got, what was expected."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

if TYPE_CHECKING:
    from masters.recipe_file import Layers

Location = tuple[str | int, ...]
"""A path into nested maps and lists."""


def unknown_key(key: str, legal: list[str]) -> PydanticCustomError:
    """The error for a key that a section doesn't have."""
    return PydanticCustomError("unknown_key", "{key}", {"key": key, "legal": legal})


def wrong(at: Location, said: str) -> PydanticCustomError:
    """The error for what is wrong at a place below the section that is checked."""
    return PydanticCustomError("said", "{said}", {"at": at, "said": said})


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
            near = nearest(context["key"], context["legal"])
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
            near = nearest(str(context["tag"]), _values(wanted))
            said = f"is {context['tag']!r}; expected one of {wanted}{near}"
        case _:
            said = f"is {short(detail['input'])}; expected {_expected(detail, context)}"
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
        if _says(part, location):
            return name
    return f"{layers.name}.yaml"


def _says(part: Any, location: Location) -> bool:
    """Whether the nested value holds something at the location."""
    for piece in location:
        inside = isinstance(part, Mapping) and piece in part
        if isinstance(part, list):
            inside = isinstance(piece, int) and piece < len(part)
        if not inside:
            return False
        below: Any = part
        part = below[piece]
    return True


def _expected(detail: ErrorDetails, context: Mapping[str, Any]) -> str:
    bounds = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    for bound, words in bounds.items():
        if bound in context:
            return f"a number {words} {context[bound]:g}"
    if "expected" in context:
        wanted = str(context["expected"])
        return f"{wanted}{nearest(str(detail['input']), _values(wanted))}"
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


def nearest(text: str, legal: Sequence[str]) -> str:
    """``. Did you mean x?`` for the legal word closest to the text, or nothing."""
    close = difflib.get_close_matches(text, legal, n=1, cutoff=0.6)
    return f". Did you mean {close[0]}?" if close else ""


def _missing_hint(location: Location) -> str:
    if location and location[0] in ("models", "data"):
        return "; say it in the recipe, or name a profile that does (--profile tiny)"
    return ""


def short(value: Any) -> str:
    """The value as Python prints it, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
