"""What the ids of two models mean, and which of them teacher and student have in common.

Models of one family share a tokenizer but pad their heads differently (Qwen2.5-VL: 151,936 rows for
3B, 152,064 for 72B), and some have a few added tokens more at the end. They are compared over the
ids below ``CommonVocabulary.size``: all that both tokenizers know, under the same string, and that
both heads have a row for.

How a tokenizer cuts a text (its merges, its normaliser) plays no part: responses are stored as ids,
and each model's prompt goes through its own processor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from masters.errors import ModelError

SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The ids of one model.

    Args:
        name: of the model, for messages.
        strings: token string of each id the tokenizer knows.
        added: ids beside the tokenizer's ordinary text: special tokens, tool tokens ...
        rows: rows of the output head; those without a string are padding.
    """

    name: str
    strings: dict[int, str]
    added: frozenset[int]
    rows: int

    @property
    def size(self) -> int:
        """Number of ids that mean something and have a row."""
        return min(self.rows, 1 + max(self.strings))


@dataclass(frozen=True, kw_only=True)
class CommonVocabulary:
    """The ids 0 to ``size`` - 1 mean the same to teacher and student.

    Args:
        size: number of them; whatever lies above, padding included, is left out of a comparison.
        teacher_only: token strings that only the teacher has (added tokens, all of them).
        student_only: token strings that only the student has.
    """

    size: int
    teacher_only: tuple[str, ...] = ()
    student_only: tuple[str, ...] = ()


def vocabulary_of(processor: Any, *, rows: int, name: str) -> Vocabulary:
    """The ids of a processor's tokenizer, for a model whose head has ``rows`` rows."""
    tokenizer = processor.tokenizer
    return Vocabulary(
        name=name,
        strings={index: token for token, index in tokenizer.get_vocab().items()},
        added=frozenset(tokenizer.added_tokens_decoder),
        rows=rows,
    )


def common_vocabulary(teacher: Vocabulary, student: Vocabulary) -> CommonVocabulary:
    """The ids that mean the same to both.

    Raises:
        ModelError: an id means one thing to the teacher and another to the student, or one of them
            has ordinary text (no added tokens) that the other lacks. Names the first few.
    """
    size = min(teacher.size, student.size)
    different = [i for i in range(size) if teacher.strings.get(i) != student.strings.get(i)]
    if different:
        shown = "; ".join(
            f"id {i} is {_string(teacher, i)} to the teacher, {_string(student, i)} to the student"
            for i in different[:SHOWN]
        )
        raise _refusal(teacher, student, f"{len(different):,} of {size:,} ids differ ({shown})")
    for who, one, other in (("teacher", teacher, "student"), ("student", student, "teacher")):
        ordinary = [i for i in _beyond(one, size) if i not in one.added]
        if ordinary:
            shown = ", ".join(f"{_string(one, i)} (id {i})" for i in ordinary[:SHOWN])
            what = f"the {other} lacks {len(ordinary):,} tokens of text that the {who} has: {shown}"
            raise _refusal(teacher, student, what)
    return CommonVocabulary(
        size=size,
        teacher_only=tuple(teacher.strings[i] for i in _beyond(teacher, size)),
        student_only=tuple(student.strings[i] for i in _beyond(student, size)),
    )


def check_end_tokens(
    teacher: Vocabulary,
    student: Vocabulary,
    *,
    teacher_ends: Sequence[int],
    student_ends: Sequence[int],
) -> tuple[str, ...]:
    """The strings that end a response for only one of the two; empty where they agree.

    Args:
        teacher, student: their vocabularies.
        teacher_ends, student_ends: ids that end a response; the first is the usual one.

    Raises:
        ModelError: the usual end of one does not end the other's responses: it would go on there,
            and the student would be taught tokens it does not stop at.
    """
    theirs = [teacher.strings.get(i, f"id {i}") for i in teacher_ends]
    ours = [student.strings.get(i, f"id {i}") for i in student_ends]
    if theirs[0] not in ours or ours[0] not in theirs:
        raise ModelError(
            f"teacher {teacher.name} and student {student.name} end a response differently: the "
            f"teacher with {_list(theirs)}, the student with {_list(ours)}; expected the first of "
            "each to end the other's too. Take both from one family and tuning (both -Instruct), "
            "or correct eos_token_id in the generation_config.json of one of them"
        )
    return tuple(sorted({*theirs} ^ {*ours}))


def check_same_text(
    teacher: Any, student: Any, responses: Iterable[tuple[str, Sequence[int]]]
) -> None:
    """Raises ModelError where the two tokenizers decode a stored response differently.

    Args:
        teacher, student: the models' processors.
        responses: (question id, token ids), ids that both have.
    """
    for question_id, ids in responses:
        texts = [
            processor.tokenizer.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            for processor in (teacher, student)
        ]
        if texts[0] != texts[1]:
            raise ModelError(
                f"question {question_id}: a stored response reads {texts[0]!r} to the teacher's "
                f"tokenizer and {texts[1]!r} to the student's; expected the same text. Their "
                "tokens have the same strings but are put together differently: take models whose "
                "tokenizer.json have the same decoder"
            )


def _beyond(vocabulary: Vocabulary, size: int) -> list[int]:
    return sorted(i for i in vocabulary.strings if i >= size)


def _string(vocabulary: Vocabulary, index: int) -> str:
    token = vocabulary.strings.get(index)
    return "nothing" if token is None else repr(token)


def _list(strings: Sequence[str]) -> str:
    return ", ".join(repr(token) for token in strings)


def _refusal(teacher: Vocabulary, student: Vocabulary, what: str) -> ModelError:
    return ModelError(
        f"teacher {teacher.name} and student {student.name} have different vocabularies: {what}. "
        "Distillation compares distributions token by token: take models of one family"
    )
