"""What the verbs that measure print: a table, Markdown or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from rich.console import Console

from masters.errors import RecipeError
from masters.evaluation.categories import score_tables
from masters.evaluation.comparison import compare
from masters.evaluation.comparison_view import Sheet, comparison_sheet, evaluation_sheet
from masters.evaluation.located import Located, locate
from masters.evaluation.readings import read_answers
from masters.named_models import is_recipe

Form = Literal["table", "json", "markdown"]


def form_of(*, as_json: bool, markdown: bool) -> Form:
    """Which form the two options ask for.

    Raises:
        RecipeError: both are given.
    """
    if as_json and markdown:
        raise RecipeError("--json and --markdown: expected one of them")
    return "json" if as_json else "markdown" if markdown else "table"


def are_evaluations(words: Sequence[str]) -> bool:
    """Whether the words of `masters compare` are two evaluations, not recipes to run.

    Raises:
        RecipeError: they are mixed, or not two.
    """
    recipes = [word for word in words if is_recipe(word)]
    if len(recipes) == len(words):
        return False
    others = [word for word in words if not is_recipe(word)]
    if recipes:
        raise RecipeError(
            f"{', '.join(recipes)} and {', '.join(others)}: expected either recipes, or two "
            "finished evaluations (an evaluate stage's folder, an output folder, OUT:NAME)"
        )
    if len(words) != 2:
        raise RecipeError(
            f"{', '.join(words)}: expected two finished evaluations, or recipes (a .yaml file or a "
            "shipped recipe's name)"
        )
    return True


def print_evaluations(
    found: Sequence[Located], fields: Sequence[str], form: Form, console: Console
) -> None:
    """Accuracy of each evaluation over all questions and by category, whole models only.

    Raises:
        StageError: a field is not there, or a folder is damaged.
    """
    rows = {
        item.name: score_tables(read_answers(item.folder), [*item.by, *fields]) for item in found
    }
    content = {item.name: {"folder": str(item.folder), "rows": rows[item.name]} for item in found}
    print_sheet(evaluation_sheet(rows), {"schema": 1, "evaluations": content}, form, console)
    if form == "table":
        for item in found:
            console.print(f"{item.folder}", highlight=False, markup=False, soft_wrap=True)


def print_comparison(
    words: Sequence[str],
    fields: Sequence[str],
    form: Form,
    console: Console,
    *,
    shared_only: bool,
) -> None:
    """The second evaluation against the first.

    Raises:
        StageError: one is not there, or they were not asked the same questions.
    """
    first, second = (locate(word) for word in words)
    found = compare(first, second, fields, shared_only=shared_only)
    print_sheet(comparison_sheet(found), found.as_json(), form, console)


def print_sheet(sheet: Sheet, content: dict[str, Any], form: Form, console: Console) -> None:
    """The table on the terminal, or the same in another form."""
    if form == "table":
        console.print(sheet.terminal())
    else:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        shown = text if form == "json" else sheet.markdown()
        console.print(shown, markup=False, highlight=False, soft_wrap=True)
