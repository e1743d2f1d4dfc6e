"""The G responses to a question, and the padded rows that score a micro-batch of questions.

Rows hold each *distinct* token sequence of a group once: duplicates share their divergence and
log-probs exactly. Shape suffixes: U distinct rows, T tokens of a row, N response tokens of all
distinct rows, M response tokens of all responses (duplicates counted).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from masters.models.encode import EncodedPrompt, pad_rows

LABEL = "label"
TEACHER = "teacher"
STUDENT = "student"


@dataclass(frozen=True, kw_only=True)
class Response:
    """One response (or the label) of a question.

    Args:
        token_ids: in the student's vocabulary, end token included when it is there.
        source: teacher, student or label.
        accuracy: the judge's reward; None for a label.
        reference: log pi_ref of each token; None where the objective has no KL.
    """

    token_ids: tuple[int, ...]
    source: str
    accuracy: float | None = None
    reference: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Group:
    """One question of an optimiser step with everything to learn from about it."""

    question_id: str
    student_prompt: EncodedPrompt
    teacher_prompt: EncodedPrompt | None
    responses: tuple[Response, ...]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Distinct sequences of some groups, ready for a model.

    Args:
        groups: the groups, in order.
        row_of: for each group, the distinct row of each of its responses.
        spans: for each distinct row, its token range [start, stop) within N.
        targets_N: response token ids.
        row_N: row of the hidden state that predicts each response token.
    """

    groups: tuple[Group, ...]
    row_of: tuple[tuple[int, ...], ...]
    spans: tuple[tuple[int, int], ...]
    targets_N: torch.Tensor
    row_N: torch.Tensor
    _sequences: tuple[tuple[int, tuple[int, ...]], ...]

    def inputs(
        self, *, teacher: bool, pad: int, device: torch.device | str, pixels: bool = True
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """(model inputs [U, T], column [N] of the hidden state that predicts each response token).

        Teacher and student each read their own prompt (own processor, own image tokens) and the
        same response ids. ``pixels``: False leaves out what the features are made of.
        """
        rows, columns = [], []
        prompts = self.prompts(teacher=teacher)
        for prompt, (_, ids) in zip(prompts, self._sequences, strict=True):
            rows.append((prompt if pixels else prompt.without_pixels(), ids))
            first = len(prompt.ids) - 1
            columns.extend(range(first, first + len(ids)))
        column_N = torch.tensor(columns, dtype=torch.long, device=device)
        return pad_rows(rows, pad=pad, device=device), column_N

    def prompts(self, *, teacher: bool) -> list[EncodedPrompt]:
        """The prompt of each distinct row."""
        groups = [self.groups[g] for g, _ in self._sequences]
        prompts = [g.teacher_prompt if teacher else g.student_prompt for g in groups]
        assert all(prompt is not None for prompt in prompts)
        return prompts  # type: ignore[return-value]

    def sequences(self) -> list[tuple[str, tuple[int, ...]]]:
        """(question id, token ids) of every distinct row; their tokens make up N in this order."""
        return [(self.groups[g].question_id, ids) for g, ids in self._sequences]

    def by_group(self, *, teacher: bool) -> list[tuple[EncodedPrompt, list[tuple[int, ...]]]]:
        """(prompt, its distinct responses) of every group that has a row here, in order."""
        found: dict[int, list[tuple[int, ...]]] = {}
        for g, ids in self._sequences:
            found.setdefault(g, []).append(ids)
        prompts = [g.teacher_prompt if teacher else g.student_prompt for g in self.groups]
        pairs = [(prompts[g], responses) for g, responses in found.items()]
        assert all(prompt is not None for prompt, _ in pairs)
        return pairs  # type: ignore[return-value]

    def part(self, first: int, stop: int) -> Rows:
        """Distinct rows ``first`` to ``stop`` (exclusive) alone, to be given to a model."""
        start, end = self.spans[first][0], self.spans[stop - 1][1]
        return Rows(
            groups=self.groups,
            row_of=(),
            spans=tuple((a - start, b - start) for a, b in self.spans[first:stop]),
            targets_N=self.targets_N[start:end],
            row_N=self.row_N[start:end] - first,
            _sequences=self._sequences[first:stop],
        )

    def passes(self, limit: int | None) -> list[Rows]:
        """What is given to a model at a time: all, or a group of more than ``limit`` rows in parts.

        Several groups are together only where each of them fits (see `micro_batches`).
        """
        count = len(self.spans)
        if limit is None or len(self.groups) > 1 or count <= limit:
            return [self]
        return [self.part(u, min(u + limit, count)) for u in range(0, count, limit)]

    def to(self, device: torch.device | str) -> Rows:
        """The same with its index tensors on ``device``."""
        return Rows(
            groups=self.groups,
            row_of=self.row_of,
            spans=self.spans,
            targets_N=self.targets_N.to(device),
            row_N=self.row_N.to(device),
            _sequences=self._sequences,
        )


def make_rows(groups: Sequence[Group]) -> Rows:
    """Rows of the distinct response sequences of these groups."""
    sequences: list[tuple[int, tuple[int, ...]]] = []
    row_of, spans = [], []
    targets: list[int] = []
    row_N: list[int] = []
    for g, group in enumerate(groups):
        known: dict[tuple[int, ...], int] = {}
        mine = []
        for response in group.responses:
            ids = response.token_ids
            if ids not in known:
                known[ids] = len(sequences)
                sequences.append((g, ids))
                spans.append((len(targets), len(targets) + len(ids)))
                targets.extend(ids)
                row_N.extend([known[ids]] * len(ids))
            mine.append(known[ids])
        row_of.append(tuple(mine))
    return Rows(
        groups=tuple(groups),
        row_of=tuple(row_of),
        spans=tuple(spans),
        targets_N=torch.tensor(targets, dtype=torch.long),
        row_N=torch.tensor(row_N, dtype=torch.long),
        _sequences=tuple(sequences),
    )


def micro_batches(
    groups: Iterable[Group], *, size: int, limit: int | None
) -> Iterator[list[Group]]:
    """Groups that share a forward pass; one that must be split has none beside it.

    Args:
        groups: in order.
        size: so many groups at most.
        limit: a group with more distinct responses than this must be split; None splits none.
    """
    batch: list[Group] = []
    for group in groups:
        large = limit is not None and len({r.token_ids for r in group.responses}) > limit
        if batch and (large or len(batch) == size):
            yield batch
            batch = []
        if large:
            yield [group]
        else:
            batch.append(group)
    if batch:
        yield batch
