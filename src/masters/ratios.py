"""Masking ratios as whole numbers per 10,000: 0.2 is 2000, so schedules are exact."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from fractions import Fraction

from masters.errors import RecipeError

RatioLike = Decimal | Fraction | str | float | int
"""What a masking ratio may be given as; floats are read as the decimal they print as."""

WHOLE = 10_000
"""One whole: ratios in code, files and tables count parts of this."""


def ratio_parts(value: RatioLike, *, name: str = "ratio") -> int:
    """The ratio as a whole number per 10,000.

    Args:
        value: a number in [0, 1) with at most four decimals.
        name: how the error calls it.

    Returns:
        An integer in [0, 10,000).

    Raises:
        RecipeError: when it is no number, out of range, or finer than 1/10,000.
    """
    try:
        exact = value if isinstance(value, Fraction) else Fraction(Decimal(str(value)))
    except (InvalidOperation, ValueError, OverflowError):
        raise RecipeError(f"{name} is {value!r}; expected a number in [0, 1)") from None
    if not 0 <= exact < 1:
        raise RecipeError(f"{name} is {value}; expected a number in [0, 1){_in_range(exact)}")
    parts = exact * WHOLE
    if parts.denominator != 1:
        raise RecipeError(f"{name} is {value}; expected at most four decimals")
    return parts.numerator


def ratio_text(parts: int) -> str:
    """The decimal that ``parts`` per 10,000 stands for, without trailing zeros: 2000 -> '0.2'."""
    text = f"{Decimal(parts) / WHOLE:.4f}".rstrip("0").rstrip(".")
    return text or "0"


def mask_ratios(max_ratio: RatioLike, step: RatioLike) -> tuple[int, ...]:
    """The ratios a phase's teacher is masked with, falling from ``max_ratio`` to 0.

    Eq. 3: r_m = r_max - s m for m = 0 .. M - 1 with M = r_max / s + 1, on integers.

    Args:
        max_ratio: r_max in [0, 1).
        step: s in (0, 1).

    Returns:
        M integers per 10,000, strictly falling, the last one 0.

    Raises:
        RecipeError: when ``max_ratio`` is no whole multiple of ``step``; names the two nearest.
    """
    top, down = ratio_parts(max_ratio, name="max_ratio"), ratio_parts(step, name="step")
    if down == 0:
        raise RecipeError("step is 0; expected a number in (0, 1)")
    if top % down:
        low = top // down * down
        near = (low, low + down) if low + down < WHOLE else (low - down, low)
        first, second = (ratio_text(value) for value in near)
        raise RecipeError(
            f"max_ratio is {ratio_text(top)}; expected a whole multiple of step "
            f"{ratio_text(down)}. The nearest are {first} and {second}"
        )
    return tuple(range(top, -1, -down))


def _in_range(value: Fraction) -> str:
    """A suggestion for a ratio outside [0, 1): the point moved until it fits, or nothing."""
    if value < 1:
        return ""
    while value >= 1:
        value /= 10
    return f". Did you mean {float(value):g}?"
