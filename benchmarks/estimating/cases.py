"""Small settings whose stages are run: some to fit prices to, others to be predicted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Case:
    """A student, a teacher and questions of a wanted shape.

    Args:
        student, teacher: (width, layers) of the language models; heads are 32 wide, the MLP is
            three times as wide as the model, the tower half as wide with a layer less.
        side: of the square pictures, in pixels; 16 a token.
        words: of a question.
        response: tokens of every response.
        group: responses to a question, half of them the teacher's.
        questions, step: how many there are, and in a step.
        tested: held-out questions.
        signal: live, or stored beforehand.
        micro: questions in a pass.
        rows: responses generated at a time.
    """

    name: str
    student: tuple[int, int]
    teacher: tuple[int, int]
    side: int = 96
    words: int = 16
    response: int = 16
    group: int = 4
    questions: int = 48
    step: int = 8
    tested: int = 48
    signal: str = "live"
    micro: int = 1
    rows: int = 32


WARM = Case(name="warm", student=(64, 2), teacher=(64, 2), questions=24, tested=8)
FITTED = (
    Case(name="narrow", student=(64, 2), teacher=(128, 2), response=8, questions=96, tested=96),
    Case(name="middle", student=(128, 4), teacher=(256, 4), signal="hidden"),
    Case(name="wide", student=(256, 4), teacher=(384, 4), questions=32, tested=32),
    Case(name="long answers", student=(128, 2), teacher=(192, 4), response=48, questions=32),
    Case(name="large pictures", student=(192, 4), teacher=(256, 2), side=224, questions=32),
    Case(name="large groups", student=(128, 4), teacher=(256, 2), group=8, micro=2,
         signal="hidden"),
    Case(name="large step", student=(256, 2), teacher=(256, 6), step=16, micro=4, rows=64,
         words=48),
)  # fmt: skip
TESTED = (
    Case(name="between", student=(160, 3), teacher=(224, 3), side=128, response=20, words=28),
    Case(name="wider", student=(288, 4), teacher=(416, 3), questions=40, tested=40,
         signal="hidden"),
    Case(name="longer", student=(160, 4), teacher=(224, 4), side=176, response=32, words=40,
         questions=40, tested=24),
    Case(name="more", student=(96, 3), teacher=(192, 3), group=6, questions=112, tested=120,
         micro=2, signal="hidden"),
    Case(name="larger groups", student=(224, 2), teacher=(320, 2), group=10, response=12, rows=40,
         questions=40, tested=64),
)  # fmt: skip
