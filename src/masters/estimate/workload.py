"""How long prompts and responses are: what an estimate assumes of the questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from masters.errors import RecipeError
from masters.recipe import Recipe, ScenesSource
from masters.recipe_errors import nearest


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a question is like; the defaults are those of docs/scaling.md, and assumed.

    Args:
        image_tokens: of its pictures, in the prompt.
        text_tokens: the rest of the prompt, template included.
        response_tokens: of a response, on average.
        longest_response: of a batch that is generated together.
        label_tokens: of a label.
        distinct: share of a question's responses that are not the same as another.
        judge_tokens: of a judge's prompt, the response apart.
        explanation_tokens: of a judge's explanation.
        test_questions: held-out questions, where their files are not here.
    """

    image_tokens: float = 900
    text_tokens: float = 100
    response_tokens: float = 60
    longest_response: float = 160
    label_tokens: float = 4
    distinct: float = 1.0
    judge_tokens: float = 400
    explanation_tokens: float = 80
    test_questions: float = 5000

    @property
    def prompt(self) -> float:
        """Tokens of a prompt."""
        return self.image_tokens + self.text_tokens

    def answer(self, limit: int) -> tuple[float, float]:
        """(mean length of a response, longest of a batch) where so many tokens are allowed."""
        return min(self.response_tokens, limit), min(self.longest_response, limit)


#: The rendered scenes: pictures of nine tokens, answers of a word or two.
SCENES = Workload(
    image_tokens=9, text_tokens=18, response_tokens=3, longest_response=6, label_tokens=3,
    distinct=0.6,
)  # fmt: skip


def workload_of(recipe: Recipe, assumed: Sequence[str] = ()) -> Workload:
    """The recipe's questions, with what ``KEY=NUMBER`` says of them otherwise.

    Raises:
        RecipeError: a key is none, or its value no number that it can have.
    """
    base = SCENES if isinstance(recipe.data.train, ScenesSource) else Workload()
    names = [field.name for field in fields(Workload)]
    for text in assumed:
        key, mark, value = text.partition("=")
        if key not in names:
            raise RecipeError(
                f"--assume {text}: {key!r} is nothing that is assumed of the questions"
                f"{nearest(key, names) or '.'} Expected one of: {', '.join(names)}"
            )
        try:
            number = float(value) if mark else -1.0
        except ValueError:
            number = -1.0
        most = 1.0 if key == "distinct" else 1e9
        if not 0 <= number <= most or (number == 0 and key not in ("image_tokens",)):
            raise RecipeError(
                f"--assume {text}: expected {key}=NUMBER"
                + (", above 0 and up to 1" if key == "distinct" else ", a number of tokens")
            )
        base = replace(base, **{key: number})
    return base
