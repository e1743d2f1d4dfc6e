"""Which models of a report may be called better than which: paired tests, corrected as a family."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from masters.evaluation.comparison import Answers, pair
from masters.evaluation.evaluated import Evaluated, is_end, rank
from masters.evaluation.paired import LEVEL, SIGN_FLIPS, Contrast, contrast, holm, sign_flip
from masters.evaluation.readings import Row, read_json
from masters.evaluation.statistics import Interval, t_interval, t_test

SEEDS = "t over seeds, and sign flips of the questions' means"
UNKNOWN = "not told apart"
Tables = Mapping[Path, Answers]
"""The unmasked answers of every evaluation, by the folder of its stage."""


def differences(found: Sequence[Evaluated], answers: Tables, seeds: Sequence[int]) -> list[Row]:
    """Paired differences of each run to ``start`` and ``sft``, over all questions.

    Returns:
        ``run``, ``against``, ``seed`` (None: over seeds), ``difference``, ``low``, ``high``, ``n``
        (questions; over seeds: seeds), ``gained``, ``lost``, ``test``, ``p``, ``adjusted``,
        ``verdict`` ("higher", "lower", "not told apart"). The rows of one seed are one family, and
        so are those over seeds.
    """
    rows: list[Row] = []
    for run in dict.fromkeys(item.run for item in found if rank(item.run) == 1):
        for against in ("start", "sft"):
            if run == against or (against == "sft" and not is_end(run)):
                continue
            both = pairs(found, run, against)
            for seed in seeds:
                fresh = tested([both[seed]], answers) if seed in both else None
                if fresh is not None:
                    rows.append({"run": run, "against": against, "seed": seed, **fresh})
            fresh = tested(list(both.values()), answers) if len(both) > 1 else None
            if fresh is not None:
                rows.append({"run": run, "against": against, "seed": None, **fresh})
    for seed in dict.fromkeys(row["seed"] for row in rows):
        correct([row for row in rows if row["seed"] == seed])
    return rows


def pairs(
    found: Sequence[Evaluated], run: str, against: str
) -> dict[int, tuple[Evaluated, Evaluated]]:
    """The evaluations of two models by seed, where both have one that was judged the same way.

    A run that began from another student than the rest is set against its own start.
    """
    by_key = {(item.run, item.seed): item for item in found}
    both: dict[int, tuple[Evaluated, Evaluated]] = {}
    for item in (item for item in found if item.run == run):
        other = by_key.get((f"{against}-{run}", item.seed), by_key.get((against, item.seed)))
        if other is not None and _rule(item) == _rule(other):
            both[item.seed] = (item, other)
    return both


def tested(
    both: Sequence[tuple[Evaluated, Evaluated]],
    answers: Tables,
    groups: Sequence[Sequence[str]] | None = None,
) -> Row | None:
    """The first model of each pair less the second, over the questions that both have judged.

    One pair is tested question by question. Over several seeds a difference has to hold against the
    spread of the seeds and, with each question's mean over the seeds, against that of the
    questions: p is the larger one of both tests.

    Args:
        both: one pair of evaluations for each seed.
        groups: ids of the questions; each group weighs the same. None: one group of all.

    Returns:
        The row of ``differences`` without its names, ``adjusted`` and ``verdict``; bounds are None
        for several groups. None where a group has no question in common.
    """
    distinct = list({(one.folder, two.folder): None for one, two in both})
    told = [_told(answers[one], answers[two]) for one, two in distinct]
    if not told:
        return None
    shared = [key for key in told[0] if all(key in rows for rows in told)]
    known = set(shared)
    parts = [shared if ids is None else [key for key in ids if key in known]
             for ids in (groups or [None])]  # fmt: skip
    if not all(parts):
        return None
    if len(told) == 1 and len(parts) == 1:
        return _row(contrast(*_columns(told[0], parts[0]), graded=_graded(told[0])))
    weights = {key: 1 / (len(part) * len(parts)) for part in parts for key in part}
    means = {key: math.fsum(y - x for x, y in (r[key] for r in told)) / len(told) for key in known}
    p = sign_flip([weights[key] * means[key] for key in weights])
    value = math.fsum(weights[key] * means[key] for key in weights)
    row: Row = {"difference": value, "low": None, "high": None, "n": len(weights)}
    counts = {"gained": sum(means[key] > 0 for key in weights)}
    counts["lost"] = sum(means[key] < 0 for key in weights)
    if len(told) == 1:
        return row | counts | {"test": SIGN_FLIPS, "p": p}
    by_seed = [math.fsum(w * (r[k][1] - r[k][0]) for k, w in weights.items()) for r in told]
    bounds = t_interval(by_seed)
    row |= {"low": bounds.low, "high": bounds.high, "n": len(told)}
    return row | counts | {"test": SEEDS, "p": max(p, t_test(by_seed))}


def correct(family: Sequence[Row]) -> None:
    """Gives each row of a family its p-value among all of them (Holm) and the verdict by it."""
    for row, p in zip(family, holm([row["p"] for row in family]), strict=True):
        row["adjusted"] = p
        row["verdict"] = verdict(row["difference"], p)


def verdict(difference: float, adjusted: float) -> str:
    """``higher`` or ``lower`` only where the test says so."""
    if adjusted > LEVEL or difference == 0:
        return UNKNOWN
    return "higher" if difference > 0 else "lower"


def _told(second: Answers, first: Answers) -> dict[str, tuple[float, float]]:
    """Question -> scores of the first and the second, where both have the label and a verdict."""
    shared = pair(first, second).shared
    return {key: (float(first[key]["score"]), float(second[key]["score"])) for key in shared}


def _columns(
    told: Mapping[str, tuple[float, float]], ids: Sequence[str]
) -> tuple[list[float], list[float]]:
    return [told[key][0] for key in ids], [told[key][1] for key in ids]


def _graded(told: Mapping[str, tuple[float, float]]) -> bool:
    """Over all questions, not those of one category: a table has one test."""
    return any(score not in (0, 1) for scores in told.values() for score in scores)


def _row(found: Contrast) -> Row:
    difference = found.difference
    if math.isnan(difference.low):  # one question only: nothing narrower is known
        difference = Interval(difference.value, -1.0, 1.0)
    value, low, high = difference
    counts = {"n": found.n, "gained": found.gained, "lost": found.lost}
    return {
        "difference": value, "low": low, "high": high, **counts, "test": found.test, "p": found.p
    }  # fmt: skip


def _rule(item: Evaluated) -> object:
    return read_json(item.folder / "record.json")["spec"].get("rule")
