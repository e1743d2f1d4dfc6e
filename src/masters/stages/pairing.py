"""Looked at before training: do the ids of teacher and student mean the same?"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from masters.data.tables import KEY_COLUMNS, RESPONSES, list_shards, read_shard
from masters.errors import ModelError
from masters.models.load import TokenIds
from masters.models.vocabulary import (
    Vocabulary,
    check_end_tokens,
    check_same_text,
    common_vocabulary,
    vocabulary_of,
)
from masters.stages.opening import OpenedModel
from masters.training.stored_signal import Manifest

_LOG = logging.getLogger(__name__)

#: Stored responses that are decoded by both tokenizers.
DECODED = 64


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What a student and its teacher, if it has one, have in common.

    Args:
        ids: the student's, with a padding id that both models have a row for.
        common: the ids below it mean the same to both, and divergences are over those.
        banned: ids that stand for pictures in either; a response has none of them.
    """

    ids: TokenIds
    common: int
    banned: frozenset[int]


def pair(student: OpenedModel, teacher: OpenedModel | None) -> Pair:
    """The student by itself, or with a teacher whose ids mean the same.

    Raises:
        ModelError: they do not, or no token ends a response for both.
    """
    ids = student.ids
    if teacher is None:
        return Pair(ids=ids, common=ids.vocabulary, banned=frozenset(ids.banned))
    theirs, ours = _vocabulary(teacher), _vocabulary(student)
    common = common_vocabulary(theirs, ours)
    ends = check_end_tokens(theirs, ours, teacher_ends=teacher.ids.end, student_ends=ids.end)
    if ends:
        _LOG.warning(
            "%s end a response of only one of teacher %s and student %s; a response that ends so "
            "is trained on as it is",
            ", ".join(ends), teacher.folder, student.folder,
        )  # fmt: skip
    for who, alone in (("teacher", common.teacher_only), ("student", common.student_only)):
        if alone:
            _LOG.warning(
                "%d tokens are the %s's alone (%s ...): the two are compared over the %d ids that "
                "both have, and responses with other ids are left out",
                len(alone), who, alone[0], common.size,
            )  # fmt: skip
    pad = next((i for i in (ids.pad, *ids.end) if i < common.size), 0)
    return Pair(
        ids=replace(ids, pad=pad),
        common=min(common.size, ids.vocabulary, teacher.ids.vocabulary),
        banned=frozenset((*ids.banned, *teacher.ids.banned)),
    )


def pair_of_signal(student: OpenedModel, manifest: Manifest) -> Pair:
    """The student with a teacher of whom only the stored signal is here."""
    if manifest.common > student.ids.vocabulary:
        raise ModelError(
            f"{student.folder}: has {student.ids.vocabulary} tokens; the stored teacher signal is "
            f"over {manifest.common}. Run the signal stage for this student"
        )
    banned = frozenset((*student.ids.banned, *manifest.banned))
    return Pair(ids=student.ids, common=manifest.common, banned=banned)


def check_stored(folder: Path, teacher: OpenedModel, student: OpenedModel, common: int) -> None:
    """Raises ModelError where both tokenizers read a stored response as different texts.

    Args:
        folder: of the generate stage that stored them; its first responses are looked at.
        teacher, student: the models.
        common: ids that both have.
    """
    rows = read_shard(list_shards(folder / "responses")[0], RESPONSES, [*KEY_COLUMNS, "token_ids"])
    first = rows.slice(0, DECODED).to_pylist()
    known = [row for row in first if max(row["token_ids"], default=0) < common]
    try:
        check_same_text(
            teacher.processor,
            student.processor,
            [(row["question_id"], row["token_ids"]) for row in known],
        )
    except ModelError as error:
        raise ModelError(f"teacher {teacher.folder} and student {student.folder}: {error}") from (
            error
        )


def _vocabulary(opened: OpenedModel) -> Vocabulary:
    rows = opened.model.get_output_embeddings().weight.shape[0]
    return vocabulary_of(opened.processor, rows=rows, name=str(opened.folder))
