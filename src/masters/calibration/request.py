"""What `masters calibrate` is asked for, read from the words of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from masters.calibration.groups import GRAINS, Grain
from masters.errors import RecipeError
from masters.ratios import ratio_parts


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for beside the teacher.

    Args:
        ratios: rising, per 10,000, each above 0.
        sample: questions at most, drawn by ``seed``.
        tolerance: how much accuracy may be lost, a share in (0, 1).
        grains: whether sensitivity is measured too, and by what.
        group_ratio: at which ratio, per 10,000; None: the recommended one.
        write: a recipe to write.
    """

    ratios: tuple[int, ...]
    sample: int
    seed: int
    tolerance: float
    grains: tuple[Grain, ...] = ()
    group_ratio: int | None = None
    write: Path | None = None


def read_request(
    *,
    ratios: str,
    sample: int,
    seed: int,
    tolerance: float,
    per: Sequence[str],
    per_ratio: str | None,
    write: Path | None,
) -> Request:
    """The words of the command line, checked.

    Raises:
        RecipeError: a value is out of range or no number.
    """
    parts = {
        ratio_parts(text.strip(), name="--ratios") for text in ratios.split(",") if text.strip()
    }
    if not parts - {0}:
        raise RecipeError(f"--ratios {ratios!r}: expected at least one above 0, such as 0.1,0.2")
    if sample < 1:
        raise RecipeError(f"--sample is {sample}; expected 1 or more questions")
    if not 0 < tolerance < 1:
        raise RecipeError(f"--tolerance is {tolerance}; expected a share in (0, 1), such as 0.02")
    if per_ratio is not None and not per:
        raise RecipeError("--per-ratio without --per; expected --per part, block or layer")
    group_ratio = None if per_ratio is None else ratio_parts(per_ratio, name="--per-ratio")
    if group_ratio == 0:
        raise RecipeError("--per-ratio is 0; expected a ratio above 0")
    for grain in per:
        if grain not in GRAINS:
            raise RecipeError(f"--per is {grain!r}; expected one of {', '.join(GRAINS)}")
    return Request(
        ratios=tuple(sorted(parts - {0})),
        sample=sample,
        seed=seed,
        tolerance=tolerance,
        grains=tuple(grain for grain in GRAINS if grain in per),
        group_ratio=group_ratio,
        write=write,
    )
