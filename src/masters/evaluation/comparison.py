"""Two finished evaluations question by question: what differs, and what may be called different."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from masters.artifacts import read_record
from masters.errors import StageError
from masters.evaluation.categories import KIND, Row, tables_of
from masters.evaluation.located import Located
from masters.evaluation.paired import LEVEL, MCNEMAR, SIGN_FLIPS, contrast, holm
from masters.evaluation.readings import read_answers
from masters.evaluation.statistics import Interval, mean_score

SCHEMA = 1
_NAMED = 5
_NOT_HOW = {"model", "side", "checkpoint", "data", "ratios", "benchmark", "kind"}
"""Keys of an evaluation's spec that do not say how a question is asked and judged."""

_MOVES_NOTHING = {"max_missing"}
"""Keys at any depth that are written down with a judge and change no verdict."""

Answers = Mapping[str, Row]


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Which questions two evaluations have in common: the same id with the same label.

    Args:
        shared: ids that both have judged, in the first one's order.
        only_first, only_second: ids that the other does not have.
        other_label: ids that have another label in the second.
        no_verdict: ids of the same label that one or both have no verdict for.
    """

    shared: tuple[str, ...]
    only_first: tuple[str, ...] = ()
    only_second: tuple[str, ...] = ()
    other_label: tuple[str, ...] = ()
    no_verdict: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether both were asked the same questions."""
        return not (self.only_first or self.only_second or self.other_label)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One category (or all questions): both accuracies and their difference, second less first.

    Args:
        by: ``all``, ``kind`` or a field.
        difference: Tango's score interval for right and wrong, BCa bootstrap for graded scores.
        gained: questions on which the second scores more; ``lost``: the first.
        p: of McNemar's exact test, or of sign flips for graded scores.
        adjusted: p as it counts among all categories (Holm); p itself for all questions.
    """

    by: str
    category: str
    n: int
    first: Interval
    second: Interval
    difference: Interval
    gained: int
    lost: int
    p: float
    adjusted: float

    @property
    def verdict(self) -> str:
        """``B higher``, ``A higher``, or ``not told apart``."""
        if self.adjusted > LEVEL:
            return "not told apart"
        return "B higher" if self.difference.value > 0 else "A higher"

    def as_json(self) -> Row:
        """The line as JSON values; bounds that a single question has not are null."""
        found: Row = {"by": self.by, "category": self.category, "n": self.n}
        for name in ("first", "second", "difference"):
            interval: Interval = getattr(self, name)
            known = zip(("", "_low", "_high"), interval, strict=True)
            found |= {name + end: None if math.isnan(x) else x for end, x in known}
        counts = {"gained": self.gained, "lost": self.lost}
        return found | counts | {"p": self.p, "adjusted": self.adjusted, "verdict": self.verdict}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What two evaluations say together.

    Args:
        graded: whether any score lies between 0 and 1; the test and the intervals follow from it.
        settings: how the two were asked or judged differently: key -> (first, second).
        lines: all questions first.
    """

    first: Located
    second: Located
    pairing: Pairing
    graded: bool
    settings: dict[str, tuple[Any, Any]]
    lines: tuple[Line, ...]

    @property
    def test(self) -> str:
        """The name of the test that the p-values come from."""
        return SIGN_FLIPS if self.graded else MCNEMAR

    def as_json(self) -> Row:
        """The comparison as JSON values."""
        pairing = self.pairing
        return {
            "schema": SCHEMA,
            "first": {"name": self.first.name, "folder": str(self.first.folder)},
            "second": {"name": self.second.name, "folder": str(self.second.folder)},
            "questions": {
                "shared": len(pairing.shared),
                "only_first": list(pairing.only_first),
                "only_second": list(pairing.only_second),
                "other_label": list(pairing.other_label),
                "no_verdict": list(pairing.no_verdict),
            },
            "settings": {key: list(values) for key, values in self.settings.items()},
            "test": self.test,
            "level": LEVEL,
            "rows": [line.as_json() for line in self.lines],
        }


def compare(
    first: Located, second: Located, fields: Sequence[str] = (), *, shared_only: bool = False
) -> Comparison:
    """The second evaluation against the first, over all questions and by category.

    Args:
        first, second: finished evaluations.
        fields: what to make tables by, beside kind and what the evaluations' recipes name.
        shared_only: compare on the questions that both have, where not all are.

    Raises:
        StageError: the two did not answer the same questions, or a field is not there.
    """
    ours, theirs = read_answers(first.folder), read_answers(second.folder)
    pairing = pair(ours, theirs)
    if not pairing.shared or not (pairing.complete or shared_only):
        raise StageError(_not_the_same(first, second, pairing))
    shared = {key: ours[key] for key in pairing.shared}
    graded = any(
        rows[key]["score"] not in (0, 1) for rows in (ours, theirs) for key in pairing.shared
    )
    have = {KIND}.union(*(json.loads(row["fields"]) for row in shared.values()))
    # What one recipe names need not be in the other's data, or in this format.
    named = [by for by in (*first.by, *second.by) if by in have]
    tables = tables_of(shared, [*named, *fields])
    lines = [_line("all", "all", list(shared), ours, theirs, graded=graded)]
    parts = [
        _line(by, category, ids, ours, theirs, graded=graded)
        for by, groups in tables.items()
        for category, ids in groups.items()
    ]
    corrected = holm([line.p for line in parts])
    lines += [
        Line(**{**vars(line), "adjusted": p}) for line, p in zip(parts, corrected, strict=True)
    ]
    return Comparison(
        first=first,
        second=second,
        pairing=pairing,
        graded=graded,
        settings=_settings(first, second),
        lines=tuple(lines),
    )


def pair(first: Answers, second: Answers) -> Pairing:
    """Which questions of two tables of answers are the same."""
    both = [key for key in first if key in second]
    same = [key for key in both if first[key]["label"] == second[key]["label"]]
    unjudged = [key for key in same if None in (first[key]["score"], second[key]["score"])]
    missing = set(unjudged)
    return Pairing(
        shared=tuple(key for key in same if key not in missing),
        only_first=tuple(key for key in first if key not in second),
        only_second=tuple(key for key in second if key not in first),
        other_label=tuple(key for key in both if first[key]["label"] != second[key]["label"]),
        no_verdict=tuple(unjudged),
    )


def _line(
    by: str, category: str, ids: list[str], first: Answers, second: Answers, *, graded: bool
) -> Line:
    """The comparison on these questions."""
    a = [float(first[key]["score"]) for key in ids]
    b = [float(second[key]["score"]) for key in ids]
    found = contrast(a, b, graded=graded)
    return Line(
        by=by,
        category=category,
        n=len(ids),
        first=mean_score(a),
        second=mean_score(b),
        difference=found.difference,
        gained=found.gained,
        lost=found.lost,
        p=found.p,
        adjusted=found.p,
    )


def _settings(first: Located, second: Located) -> dict[str, tuple[Any, Any]]:
    """Keys by which the two were asked or judged differently."""
    specs = [read_record(located.folder)["spec"] for located in (first, second)]
    one, two = ({k: v for k, v in spec.items() if k not in _NOT_HOW} for spec in specs)
    return dict(_different(one, two))


def _different(one: Any, two: Any, at: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Dotted keys with both values, as deep as both are maps."""
    if isinstance(one, dict) and isinstance(two, dict):
        for key in dict.fromkeys([*one, *two]):
            if key not in _MOVES_NOTHING:
                yield from _different(one.get(key), two.get(key), f"{at}.{key}" if at else key)
    elif one != two:
        yield at, (one, two)


def _not_the_same(first: Located, second: Located, pairing: Pairing) -> str:
    """What is missing where, with the first few ids."""
    said = [
        f"{len(ids):,} {what}: {', '.join(ids[:_NAMED])}{' ...' if len(ids) > _NAMED else ''}"
        for ids, what in (
            (pairing.only_first, f"only in {first.name}"),
            (pairing.only_second, f"only in {second.name}"),
            (pairing.other_label, "with another label"),
            (pairing.no_verdict, "without a verdict"),
        )
        if ids
    ]
    what = f"{first.name} and {second.name} did not answer the same questions ({'; '.join(said)})"
    if not pairing.shared:
        return f"{what}. They have none in common: evaluate both on the same data"
    return (
        f"{what}. Evaluate both on the same data, or compare them on the "
        f"{len(pairing.shared):,} that they share with --shared"
    )
