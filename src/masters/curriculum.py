"""Which question is trained in which iteration, and at which mask ratio (Eq. 3).

Pure functions of a `Schedule` and the number of questions: fixed before anything is generated.
"""

from __future__ import annotations

import hashlib
from fractions import Fraction
from functools import lru_cache

import numpy as np

from masters.errors import RecipeError
from masters.ratios import mask_ratios
from masters.specs import Schedule

__all__ = [
    "iterations",
    "mask_ratios",
    "mask_stages",
    "pairs",
    "ratio_at",
    "step_questions",
]


def iterations(n_questions: int, schedule: Schedule) -> int:
    """I, the optimiser steps of the phase: floor(epochs x N / questions_per_step), or as told.

    Raises:
        RecipeError: when that is 0, or fewer than the mask stages.
    """
    size = schedule.questions_per_step
    total = schedule.iterations
    if total is None:
        total = int(Fraction(schedule.epochs) * n_questions / size)
    elif n_questions < 1:
        total = 0
    if total < 1:
        raise RecipeError(
            f"phase {schedule.key}: {n_questions} questions are no single step of {size}; expected "
            f"at least {size}. Lower method.optimiser.questions_per_step, add questions or epochs"
        )
    if total < len(schedule.ratios) and not schedule.smoke:
        raise RecipeError(
            f"phase {schedule.key}: {total} iterations cannot hold {len(schedule.ratios)} mask "
            f"stages; expected at least one each. Raise mask.step, add questions or epochs, or "
            f"lower questions_per_step"
        )
    return total


def ratio_at(i: int, schedule: Schedule, total: int) -> int:
    """The mask ratio of iteration ``i``, per 10,000.

    Eq. 3: r[i] = r_max - s floor(i M / I), for i = 0 .. I - 1.

    # Paper: counts i from 1, where i = I would give r = -s.
    """
    if not 0 <= i < total:
        raise IndexError(f"iteration {i} of {total}")
    return schedule.ratios[i * len(schedule.ratios) // total]


def mask_stages(schedule: Schedule, total: int) -> list[tuple[int, int, int]]:
    """(ratio, start, stop) of every mask stage, in order; stop is exclusive.

    The stages cover 0 .. ``total`` and their sizes differ by at most one. In a smoke run with fewer
    iterations than ratios, the ratios that no iteration visits are left out.
    """
    count = len(schedule.ratios)
    bounds = [-(-m * total // count) for m in range(count + 1)]
    stages = [(schedule.ratios[m], bounds[m], bounds[m + 1]) for m in range(count)]
    return [stage for stage in stages if stage[1] < stage[2]]


def step_questions(schedule: Schedule, n_questions: int, i: int) -> list[int]:
    """The indices of the questions that iteration ``i`` trains on, in order.

    Batches run over the epochs' orders laid end to end, so within an epoch no question is skipped
    or used twice; a batch that straddles two epochs may hold one question twice.
    """
    return _questions_between(schedule, n_questions, i, i + 1).tolist()


def _questions_between(schedule: Schedule, n_questions: int, start: int, stop: int) -> np.ndarray:
    """The questions of iterations ``start`` to ``stop`` one behind the other, repeats kept."""
    at, end = start * schedule.questions_per_step, stop * schedule.questions_per_step
    found = [np.empty(0, dtype=np.int64)]
    while at < end:
        epoch, offset = divmod(at, n_questions)
        order = _epoch_order(schedule.seed, schedule.key, epoch, n_questions)
        found.append(order[offset : offset + end - at])
        at += len(found[-1])
    return np.concatenate(found)


def pairs(
    schedule: Schedule, n_questions: int, start: int = 0, stop: int | None = None
) -> np.ndarray:
    """Every distinct (question index, ratio) of iterations ``start`` to ``stop``, by first use.

    Returns:
        int64 [P, 2]: millions of pairs are planned without an object for each.
    """
    total = iterations(n_questions, schedule)
    stop = total if stop is None else stop
    indices = _questions_between(schedule, n_questions, start, stop)
    of_step = np.array([ratio_at(i, schedule, total) for i in range(start, stop)], dtype=np.int64)
    ratios = np.repeat(of_step, schedule.questions_per_step)
    return distinct(np.stack([indices, ratios], axis=1))


def count_pairs(schedule: Schedule, n_questions: int, start: int, stop: int) -> int:
    """How many rows `pairs` has; within an epoch none is made, for no question comes twice."""
    size = schedule.questions_per_step
    if iterations(n_questions, schedule) * size <= n_questions:
        return (stop - start) * size
    return len(pairs(schedule, n_questions, start, stop))


def distinct(pairs_P2: np.ndarray) -> np.ndarray:
    """The pairs without repetitions, by first use.

    Args:
        pairs_P2: whole numbers from 0 up, the second below 2^20, as ratios per 10,000 are.
    """
    keys = (pairs_P2[:, 0] << 20) + pairs_P2[:, 1]
    _, first = np.unique(keys, return_index=True)
    return pairs_P2[np.sort(first)]


@lru_cache(maxsize=4)
def _epoch_order(seed: int, key: str, epoch: int, n_questions: int) -> np.ndarray:
    """A permutation of all questions, drawn for this seed, key and epoch alone."""
    digest = hashlib.sha256(f"{seed}/{key}/{epoch}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))
    order = generator.permutation(n_questions)
    order.setflags(write=False)
    return order
