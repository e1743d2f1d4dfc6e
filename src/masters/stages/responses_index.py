"""Stored responses with their rewards and scores, joined row for row and found by question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from masters.data.tables import KEY_COLUMNS, RESPONSES, REWARDS, SCORES, read_shards
from masters.errors import StageError
from masters.training.groups import Response


class ResponseIndex:
    """The responses of one source (teacher or student).

    Columns stay in Arrow; a response becomes Python numbers only when a step asks for it.

    Args:
        responses: folder of the generate stage.
        rewards: folder of the judge stage, or None.
        scores: folder of the score stage, or None.
        limit: a response longer than this many tokens leaves its group.
        vocabulary: a response with an id that is not below this leaves its group.
        banned: so does one with any of these ids.
    """

    def __init__(
        self,
        responses: Path,
        rewards: Path | None,
        scores: Path | None,
        *,
        limit: int,
        vocabulary: int,
        banned: Collection[int],
    ) -> None:
        table = read_shards(responses / "responses", RESPONSES, [*KEY_COLUMNS, "token_ids"])
        self._ids = table.column("token_ids").combine_chunks()
        self._source = table.column("source")
        self._rewards = self._scores = None
        if rewards is not None:
            found = read_shards(rewards / "rewards", REWARDS, [*KEY_COLUMNS, "reward"])
            _check_same_rows(table, found, rewards)
            self._rewards = found.column("reward").to_pylist()
        if scores is not None:
            found = read_shards(scores / "scores", SCORES)
            _check_same_rows(table, found, scores)
            self._scores = found.column("reference_logprobs").combine_chunks()
        self._limit = limit
        self.missing = self.too_long = self.empty = self.outside = 0
        self._outside = rows_outside(self._ids, vocabulary, banned)
        self._rows: dict[tuple[str, int], list[int]] = defaultdict(list)
        keys = zip(
            table.column("question_id").to_pylist(), table.column("ratio").to_pylist(), strict=True
        )
        self._folder, self._stored = responses, set[tuple[str, int]]()
        for row, key in enumerate(keys):
            self._stored.add(key)
            if self._usable(row):
                self._rows[key].append(row)

    def _usable(self, row: int) -> bool:
        length = len(self._ids[row])
        if self._rewards is not None and self._rewards[row] is None:
            self.missing += 1
        elif length > self._limit:
            self.too_long += 1
        elif length == 0:
            self.empty += 1
        elif row in self._outside:
            self.outside += 1
        else:
            return True
        return False

    def get(self, question_id: str, ratio: int) -> list[Response]:
        """The usable responses to a question at a ratio, in stored order."""
        if (question_id, ratio) not in self._stored:
            raise StageError(
                f"{self._folder}: holds no response to question {question_id} at masking ratio "
                f"{ratio}/10000, which the plan has; expected all of them. A shard is missing: "
                "delete the folder's record.json and run again"
            )
        return [self._response(row) for row in self._rows.get((question_id, ratio), ())]

    def _response(self, row: int) -> Response:
        reference: Any = None if self._scores is None else self._scores[row].as_py()
        return Response(
            token_ids=tuple(self._ids[row].as_py()),
            source=self._source[row].as_py(),
            accuracy=None if self._rewards is None else self._rewards[row],
            reference=None if reference is None else tuple(reference),
        )


def rows_outside(ids: pa.ListArray, vocabulary: int, banned: Collection[int]) -> set[int]:
    """Rows with a token that a model has no row for, or takes for a picture."""
    tokens = ids.flatten().to_numpy()
    outside = tokens >= vocabulary
    for picture in banned:
        outside |= tokens == picture
    ends = np.cumsum(ids.value_lengths().to_numpy())
    return set(np.searchsorted(ends, np.flatnonzero(outside), side="right").tolist())


def _check_same_rows(responses: pa.Table, other: pa.Table, folder: Path) -> None:
    keys = list(KEY_COLUMNS)
    if not responses.select(keys).equals(other.select(keys)):
        raise StageError(
            f"{folder}: its rows are not those of the responses it was made from; expected the "
            "same keys in the same order. Delete the folder and run again"
        )
