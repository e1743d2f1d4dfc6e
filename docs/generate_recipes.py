"""Writes docs/recipes.md from the schema of the recipe: every key, its type, default and meaning.

Run it (``make recipes``) after a change of ``masters.recipe``; a test compares page and schema.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

import masters
from masters.recipe import Recipe
from masters.recipe_file import shipped

PAGE = Path(__file__).parent / "recipes.md"
PACKAGE = Path(masters.__file__).parent

INTRODUCTION = """\
# The recipe: every key

<!-- Generated from the schema by docs/generate_recipes.py (`make recipes`). -->

A recipe is a YAML file. What counts is the *resolved* recipe, in this order, later ones over
earlier ones: what it `extends` (a shipped name, or a `.yaml` file beside it), the file itself,
the `--profile`, each `--set key=value`. Maps merge and lists replace; a source of questions of
another `kind`, and a model that changes between `path` and `tiny`, replaces as well.
`masters plan RECIPE --yaml` prints the resolved recipe with every default written out.

- `--set method.optimiser.lr=1e-6` sets one key; the value is read as YAML, so
  `--set data.limit=null` and `--set data.test='{kind: scenes, count: 500, seed: 9}'` work too. A
  number picks from a list: `--set models.teachers.0.path=...`.
- Unknown keys are errors, and so are keys that contradict each other; both are found when the
  recipe is loaded, before anything runs.
- Ratios (`max_ratio`, `step`, `masking_ratios`) are exact decimals with at most four places;
  quote them in YAML if you like, both `0.2` and `"0.2"` are read exactly.
- `1e-6` is a number here (plain YAML 1.1 would read a text), and `on`, `yes`, `off` are plain
  words.

Everything under `method` changes a number beyond rounding and belongs to a stage's fingerprint;
`runtime` says how and where to run, is recorded, and never makes a stage run again.
"""

Visit = tuple[type[BaseModel], str]


def page() -> str:
    """The whole page as Markdown."""
    sections = _sections(Recipe)
    parts = [INTRODUCTION, _shipped("recipes", "Shipped recipes"), _profiles()]
    parts += [_section(model, paths, sections) for model, paths in sections.items()]
    return "\n".join(parts).replace("``", "`")


# ------------------------------------------------------------------------------ shipped files


def _shipped(folder: str, title: str) -> str:
    """A table of the YAML files in a folder of the package, with the comment each begins with."""
    lines = [f"## {title}", "", "| name | what it is | extends |", "| --- | --- | --- |"]
    for name in shipped(folder):
        text = (PACKAGE / folder / f"{name}.yaml").read_text(encoding="utf-8")
        below = yaml.safe_load(text).get("extends")
        comment = _opening_comment(text)
        lines.append(f"| `{name}` | {comment} | {f'`{below}`' if below else ''} |")
    return "\n".join([*lines, ""])


def _profiles() -> str:
    said = (
        "A profile says how to run, not what: it is laid over any recipe. Its key `recipes` holds "
        "further keys for single recipes by name, and for whatever extends them."
    )
    table = _shipped("recipes/profiles", "Shipped profiles")
    return table.replace("\n\n", f"\n\n{said}\n\n", 1)


def _opening_comment(text: str) -> str:
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


# ----------------------------------------------------------------------------------- sections


def _sections(root: type[BaseModel]) -> dict[type[BaseModel], list[str]]:
    """Every section of the schema with the places it may stand at, in the order of the page.

    A section is described once, at the shallowest place; its keys are not followed again elsewhere.
    """
    found: dict[type[BaseModel], list[str]] = {root: [""]}
    waiting: list[Visit] = [(root, "")]
    while waiting:
        model, path = waiting.pop(0)
        for name, hint in _hints(model).items():
            for below, at in _models(hint, f"{path}.{name}".lstrip(".")):
                if below not in found:
                    found[below] = []
                    waiting.append((below, at))
                if at not in found[below]:
                    found[below].append(at)
    order = list(root.model_fields)
    first = {model: paths[0].split(".")[0].split("[")[0] for model, paths in found.items()}
    place = {model: order.index(first[model]) if first[model] else -1 for model in found}
    return {model: found[model] for model in sorted(found, key=lambda model: place[model])}


def _section(
    model: type[BaseModel], paths: list[str], sections: dict[type[BaseModel], list[str]]
) -> str:
    lines = [f"## {_title(model, sections)}", "", _first_line(model), ""]
    others = [f"`{path}`" for path in paths[1:]]
    if others:
        lines += [f"Also at {_listed(others)}.", ""]
    lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    hints = _hints(model)
    for name, field in model.model_fields.items():
        cells = (
            f"`{name}`",
            _type(hints[name], sections),
            _default(field),
            _meaning(field, hints[name]),
        )
        lines.append("| " + " | ".join(cell.replace("\n", " ") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _title(model: type[BaseModel], sections: dict[type[BaseModel], list[str]]) -> str:
    path = sections[model][0]
    if not path:
        return "The whole recipe"
    shared = sum(paths[0] == path for paths in sections.values()) > 1
    kind = model.model_fields.get("kind")
    return f"`{path}` of kind `{kind.default}`" if shared and kind else f"`{path}`"


def _anchor(title: str) -> str:
    """The anchor GitHub and most renderers give a heading."""
    kept = [c for c in title.lower() if c.isalnum() or c in " -_"]
    return "".join(kept).replace(" ", "-")


def _hints(model: type[BaseModel]) -> dict[str, Any]:
    hints = get_type_hints(model, include_extras=True)
    return {name: hints[name] for name in model.model_fields}


def _models(hint: Any, path: str) -> Iterator[Visit]:
    """The sections a type mentions, with the path of each; list items are ``path[]``."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        yield hint, path
    at = f"{path}[]" if get_origin(hint) is tuple else path
    arguments = get_args(hint)[:1] if get_origin(hint) is Annotated else get_args(hint)
    for argument in arguments:
        yield from _models(argument, at)


# -------------------------------------------------------------------------------------- cells


def _type(hint: Any, sections: dict[type[BaseModel], list[str]], limits: Sequence[Any] = ()) -> str:
    """A type in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _type(arguments[0], sections, [*limits, *_flat(arguments[1:])])
    if origin in (Union, UnionType):
        words = [_type(argument, sections, limits) for argument in arguments]
        return " or ".join(dict.fromkeys(words))
    if origin is Literal:
        return " or ".join(f"`{_yaml(argument)}`" for argument in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {_type(arguments[0], sections)}"
        return f"list of {len(arguments)}: {_type(arguments[0], sections)}"
    if origin is dict:
        return "keys and values"
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        title = _title(hint, sections)
        shown = title.rpartition(" of kind ")[2]
        return f"[{shown}](#{_anchor(title)})"
    words = {int: "whole number", float: "number", Decimal: "decimal", str: "text", bool: "boolean"}
    if hint is NoneType:
        return "`null`"
    return words[hint] + _bounds(limits)


def _flat(limits: Sequence[Any]) -> Iterator[Any]:
    for limit in limits:
        yield limit
        if isinstance(limit, FieldInfo):
            yield from limit.metadata


def _bounds(limits: Sequence[Any]) -> str:
    words = []
    for limit in limits:
        match limit:
            case Ge():
                words.append(f"at least {limit.ge}")
            case Gt():
                words.append(f"above {limit.gt}")
            case Le():
                words.append(f"at most {limit.le}")
            case Lt():
                words.append(f"below {limit.lt}")
            case AfterValidator():
                words.append("in [0, 1)")
            case _:
                continue
    return ", " + ", ".join(words) if words else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its defaults" if value == type(value)() else f"`{_yaml(value.model_dump())}`"
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    """A value as it is written in a recipe, on one line."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case Decimal():
            return f'"{value}"'
        case float():
            return f"{value:g}"
        case tuple() | list():
            return f"[{', '.join(_yaml(item) for item in value)}]"
        case _:
            return str(value)


def _meaning(field: FieldInfo, hint: Any) -> str:
    """The key's docstring; for a key that is a section of its own, the section's first line."""
    if field.description:
        return inspect.cleandoc(field.description)
    models = [model for model, _ in _models(hint, "")]
    return _first_line(models[0]) if len(models) == 1 else ""


def _first_line(model: type[BaseModel]) -> str:
    return " ".join(inspect.getdoc(model).split()) if model.__doc__ else ""


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
