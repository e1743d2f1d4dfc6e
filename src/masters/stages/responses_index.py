"""Stored responses with their rewards and scores, joined row for row and found by question."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from masters.data.ids import Ids
from masters.data.tables import KEY_COLUMNS, RESPONSES, REWARDS, SCORES, read_shards
from masters.errors import StageError
from masters.training.groups import Response

_RATIO_BITS = 14  # ratios are at most 10,000


class ResponseIndex:
    """The responses of one source (teacher or student).

    Columns stay in Arrow, and rows are found by binary search in sorted numbers: there is no Python
    object for a response until a step asks for it. Memory is that of the columns (4 bytes for each
    token, and 4 for its reference log-probability) and about 30 bytes a response.

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
        self._folder = responses
        self._ids: pa.ChunkedArray = table.column("token_ids")
        self._source: pa.ChunkedArray = table.column("source")
        self._rewards: pa.ChunkedArray | None = None
        self._scores: pa.ChunkedArray | None = None
        if rewards is not None:
            found = read_shards(rewards / "rewards", REWARDS, [*KEY_COLUMNS, "reward"])
            _check_same_rows(table, found, rewards)
            self._rewards = found.column("reward")
        if scores is not None:
            found = read_shards(scores / "scores", SCORES)
            _check_same_rows(table, found, scores)
            self._scores = found.column("reference_logprobs")
        self._usable = self._count_usable(limit, vocabulary, banned)
        self._sort(table)

    def _count_usable(self, limit: int, vocabulary: int, banned: Collection[int]) -> np.ndarray:
        """Which rows can be trained on: bool [rows]; the others are counted by reason."""
        length = pc.call_function("list_value_length", [self._ids]).to_numpy()
        missing = np.zeros(len(length), dtype=bool)
        if self._rewards is not None:
            missing = self._rewards.is_null().to_numpy()
        too_long = ~missing & (length > limit)
        empty = ~missing & (length == 0)
        outside = np.zeros(len(length), dtype=bool)
        start = 0
        for chunk in self._ids.chunks:  # one at a time: together they may pass 2**31 tokens
            places = list(rows_outside(chunk, vocabulary, banned))
            outside[start : start + len(chunk)][places] = True
            start += len(chunk)
        outside &= ~(missing | too_long | empty)
        self.missing = int(missing.sum())
        self.too_long = int(too_long.sum())
        self.empty = int(empty.sum())
        self.outside = int(outside.sum())
        return ~(missing | too_long | empty | outside)

    def _sort(self, table: pa.Table) -> None:
        """Orders the rows by (question, ratio), keeping the stored order within a key."""
        coded = table.column("question_id").dictionary_encode().unify_dictionaries()
        names: pa.Array = coded.chunk(0).dictionary
        order = pc.call_function("sort_indices", [names])
        self._names = names.take(order)
        rank = np.empty(len(names), dtype=np.int64)
        rank[order.to_numpy()] = np.arange(len(names))
        code = np.concatenate([chunk.indices.to_numpy() for chunk in coded.chunks])
        keys = (rank[code] << _RATIO_BITS) + table.column("ratio").to_numpy()
        self._rows = np.argsort(keys, kind="stable")
        self._keys = keys[self._rows]

    def get(self, question_id: str, ratio: int) -> list[Response]:
        """The usable responses to a question at a ratio, in stored order.

        Raises:
            StageError: none was stored.
        """
        rows = self._find(question_id, ratio)
        if not len(rows):
            raise StageError(
                f"{self._folder}: holds no response to question {question_id} at masking ratio "
                f"{ratio}/10000, which the plan has; expected all of them. A shard is missing: "
                "delete the folder's record.json and run again"
            )
        return [self._response(int(row)) for row in rows if self._usable[row]]

    def _find(self, question_id: str, ratio: int) -> np.ndarray:
        names = Ids(len(self._names), lambda place: self._names[place].as_py(), lambda _: None)
        # Arrow orders texts by their UTF-8 bytes, which is Python's order by code points.
        rank = bisect_left(names, question_id)
        if rank == len(names) or names[rank] != question_id:
            return self._rows[:0]
        key = (rank << _RATIO_BITS) + ratio
        start, stop = np.searchsorted(self._keys, [key, key + 1])
        return self._rows[start:stop]

    def _response(self, row: int) -> Response:
        reference = None if self._scores is None else self._scores[row].as_py()
        return Response(
            token_ids=tuple(self._ids[row].as_py()),
            source=self._source[row].as_py(),
            accuracy=None if self._rewards is None else self._rewards[row].as_py(),
            reference=None if reference is None else tuple(reference),
        )


def rows_outside(ids: pa.ListArray, vocabulary: int, banned: Collection[int]) -> set[int]:
    """Rows with a token that a model has no row for, or takes for a picture."""
    tokens = ids.flatten().to_numpy()
    refused = np.ones(max([vocabulary, *(i + 1 for i in banned)]) + 1, dtype=bool)
    refused[:vocabulary] = False
    refused[list(banned)] = True
    outside = refused[np.minimum(tokens, len(refused) - 1)]
    ends = np.cumsum(ids.value_lengths().to_numpy())
    return set(np.searchsorted(ends, np.flatnonzero(outside), side="right").tolist())


def _check_same_rows(responses: pa.Table, other: pa.Table, folder: Path) -> None:
    keys = list(KEY_COLUMNS)
    if not responses.select(keys).equals(other.select(keys)):
        raise StageError(
            f"{folder}: its rows are not those of the responses it was made from; expected the "
            "same keys in the same order. Delete the folder and run again"
        )
