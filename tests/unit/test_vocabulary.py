"""Which ids two models share: proved on small vocabularies, and on the sizes of Qwen2.5-VL."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from masters.errors import ModelError
from masters.models.vocabulary import (
    Vocabulary,
    check_end_tokens,
    check_same_text,
    common_vocabulary,
    vocabulary_of,
)

WORDS = ("<s>", "</s>", "red", "green", "blue")


def vocabulary(
    name: str, words: tuple[str, ...] = WORDS, *, rows: int = 8, added: tuple[str, ...] = ()
) -> Vocabulary:
    every = (*words, *added)
    return Vocabulary(
        name=name, strings=dict(enumerate(every)), rows=rows,
        added=frozenset(range(len(words), len(every))),
    )  # fmt: skip


@pytest.mark.parametrize(("teacher_rows", "student_rows"), [(8, 8), (8, 64), (64, 8)])
def test_padding_rows_are_not_common(teacher_rows: int, student_rows: int) -> None:
    teacher = vocabulary("t", rows=teacher_rows)
    common = common_vocabulary(teacher, vocabulary("s", rows=student_rows))
    assert (common.size, common.teacher_only, common.student_only) == (5, (), ())


def test_qwen2_5_vl_3b_with_72b() -> None:
    """151,643 ordinary tokens and 22 added ones in both; heads of 151,936 and 152,064 rows."""
    words = tuple(f"w{i}" for i in range(151_643))
    added = tuple(f"<|a{i}|>" for i in range(22))
    small = vocabulary("3B", words, rows=151_936, added=added)
    large = vocabulary("72B", words, rows=152_064, added=added)
    assert common_vocabulary(large, small).size == 151_665


@pytest.mark.parametrize("longer", ["teacher", "student"])
def test_added_tokens_at_the_end_of_one(longer: str) -> None:
    more, less = vocabulary("m", added=("<tool>", "</tool>")), vocabulary("l")
    teacher, student = (more, less) if longer == "teacher" else (less, more)
    common = common_vocabulary(teacher, student)
    assert common.size == 5
    alone = common.teacher_only if longer == "teacher" else common.student_only
    assert alone == ("<tool>", "</tool>")


def test_ordinary_text_at_the_end_of_one_is_refused() -> None:
    """A vocabulary cut short would lose its words silently, whatever share of the mass they had."""
    longer = vocabulary("big", (*WORDS, "yellow", "black"))
    with pytest.raises(ModelError, match=r"student lacks 2 tokens of text.*'yellow' \(id 5\)"):
        common_vocabulary(longer, vocabulary("small"))
    with pytest.raises(ModelError, match=r"teacher lacks 2 tokens of text"):
        common_vocabulary(vocabulary("small"), longer)
    cut = vocabulary("cut", rows=4)
    with pytest.raises(ModelError, match=r"student lacks 1 tokens of text.*'blue' \(id 4\)"):
        common_vocabulary(vocabulary("whole"), cut)


def test_a_shuffled_vocabulary_names_the_ids() -> None:
    shuffled = vocabulary("t", ("<s>", "</s>", "green", "red", "blue"))
    with pytest.raises(ModelError) as error:
        common_vocabulary(shuffled, vocabulary("s"))
    said = str(error.value)
    assert "teacher t and student s have different vocabularies: 2 of 5 ids differ" in said
    assert "id 2 is 'green' to the teacher, 'red' to the student" in said
    assert "models of one family" in said


def test_an_id_that_one_tokenizer_leaves_out_is_a_difference() -> None:
    whole = vocabulary("t")
    strings = {i: s for i, s in whole.strings.items() if i != 2}
    gap = Vocabulary(name="s", strings=strings, added=frozenset(), rows=8)
    with pytest.raises(ModelError, match="id 2 is 'red' to the teacher, nothing to the student"):
        common_vocabulary(whole, gap)


def test_end_tokens() -> None:
    words = ("<|endoftext|>", "<|im_end|>", "red")
    teacher, student = vocabulary("t", words), vocabulary("s", words)

    def ends(theirs: tuple[int, ...], ours: tuple[int, ...]) -> tuple[str, ...]:
        return check_end_tokens(teacher, student, teacher_ends=theirs, student_ends=ours)

    assert ends((1,), (1,)) == ends((1, 0), (1, 0)) == ()
    assert ends((1, 0), (1,)) == ("<|endoftext|>",)
    for theirs, ours in (((1,), (0,)), ((0,), (1, 0)), ((1, 0), (0,))):
        with pytest.raises(ModelError, match=r"end a response differently: the teacher with"):
            ends(theirs, ours)


def test_the_same_strings_put_together_differently() -> None:
    def processor(joint: str) -> Any:
        def decode(ids: list[int], **_: Any) -> str:
            return joint.join(WORDS[i] for i in ids)

        return SimpleNamespace(tokenizer=SimpleNamespace(decode=decode))

    responses = [("q1", (2,)), ("q2", (2, 3))]
    check_same_text(processor(" "), processor(" "), responses)
    with pytest.raises(ModelError, match=r"question q2: .*'red green'.*'redgreen'.*decoder"):
        check_same_text(processor(" "), processor(""), responses)


def test_what_is_read_off_a_tokenizer() -> None:
    from masters.models.tiny import train_tokenizer

    tokenizer = train_tokenizer(["red green"])
    size = len(tokenizer)
    tokenizer.add_tokens(["<tool_call>"])
    read = vocabulary_of(SimpleNamespace(tokenizer=tokenizer), rows=640, name="t")
    assert read.strings[size] == "<tool_call>"
    assert size in read.added
    assert read.size == size + 1
    ordinary = tokenizer("red", add_special_tokens=False)["input_ids"]
    assert not read.added & set(ordinary)
