"""How text is made harmless, what the prompts make of it, and what rules settle without a judge."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from masters.data.questions import Question
from masters.errors import StageError
from masters.rewards.judging import calls
from masters.rewards.judging.calls import first_call, load_prompts, second_call
from masters.rewards.judging.items import JudgeItem
from masters.rewards.judging.material import HEAD, TAIL, block, harmless, mark_of, visible
from masters.rewards.judging.rules import is_repetitive, without_judge

PROMPTS = load_prompts("v1")


def test_invisible_characters_go_and_letters_stay() -> None:
    assert visible("\ufeffre\u200bd\u00ad \u202evan\u202c\u0000") == "red van"
    assert visible("a\r\nb\rc\u2028d\x85e") == "a\nb\nc\nd\ne"
    assert visible("10\u00b2 m, \u00bd, \u043a\u043e\u0442, \u732b, e\u0301") == (
        "10\u00b2 m, \u00bd, \u043a\u043e\u0442, \u732b, e\u0301"
    )
    assert visible("x\ud83d") == "x\ufffd"
    assert harmless("<|im_end|> \uff1cs\uff1e [INST] a < b [ 1]") == (
        "< |im_end|> < s> [ INST] a < b [ 1]"
    )
    assert harmless("a   \n\n\n\n\nb") == "a\n\nb"


def test_a_long_response_is_judged_by_its_ends() -> None:
    whole = "a" * HEAD + "c" * TAIL
    assert block("response", whole, "mmkk", cut=True) == (
        f"=== mmkk response begins\n| {whole}\n=== mmkk response ends"
    )
    longer = "a" * HEAD + "b" * 44_000 + "c" * TAIL
    assert block("response", longer, "mmkk", cut=True).splitlines() == [
        "=== mmkk response begins",
        "| " + "a" * HEAD,
        "=== mmkk 44000 characters left out here",
        "| " + "c" * TAIL,
        "=== mmkk response ends",
    ]
    assert "b" * 44_000 in block("question", longer, "mmkk")


def test_a_mark_is_in_none_of_the_texts() -> None:
    texts = ["a question", "a label", "a response"]
    mark = mark_of(texts, "explain 0")
    assert re.fullmatch("[b-df-hjkmnp-tv]{8}", mark)
    assert mark == mark_of(texts, "explain 0")
    assert mark != mark_of(texts, "explain 1")
    assert mark != mark_of([*texts[:2], "another response"], "explain 0")


def test_a_text_that_holds_its_own_mark_gets_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can write such a text, so the hash is made to give marks that are there."""
    made_of = iter([bytes(8), bytes([1] * 8), bytes([2] * 8), bytes([3] * 8)])

    class Digest:
        def __init__(self, _: bytes) -> None: ...

        def digest(self) -> bytes:
            return next(made_of)

    monkeypatch.setattr("masters.rewards.judging.material.hashlib.sha256", Digest)
    # bbbbbbbb plain, cccccccc in capitals, dddddddd under invisible characters.
    assert mark_of(["x bbbbbbbb", "CCCCCCCC", "\u200b".join("dddddddd")], "t") == "ffffffff"


def test_prompts_hold_what_they_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    question = Question(
        id="1", text="<image>\nWhich {{mark}}?", label="{{again}} cat", choices=("cat", "dog")
    )
    call = first_call(PROMPTS, JudgeItem(question=question, response="{{reference}}"), 99)
    text = call.chat.messages[0].text
    assert call.chat.max_tokens == 99
    assert "| Which {{mark}}?\n| A. cat\n| B. dog\n" in text
    assert "| {{again}} cat\n" in text
    assert "| {{reference}}\n" in text
    assert "<image>" not in text
    score = second_call(PROMPTS, "It is. <answer-mmkk>1</answer-mmkk>", "mmkk").chat
    assert "| It is. < answer-mmkk>1< /answer-mmkk>\n" in score.messages[0].text
    assert "in the tag answer-mmkk." in score.messages[0].text
    with pytest.raises(StageError, match=r"'v0': there is no such version; expected one of \['v1'"):
        load_prompts("v0")
    (tmp_path / "v9").mkdir()
    for name in ("explain", "again", "score"):
        (tmp_path / "v9" / f"{name}.txt").write_text("{{mark}} {{labell}}")
    monkeypatch.setattr(calls, "_FOLDER", tmp_path)
    with pytest.raises(StageError, match=r"explain\.txt: has the slots \['labell', 'mark'\]"):
        load_prompts("v9")


def test_each_gold_answer_has_a_block_and_a_say() -> None:
    question = Question(id="1", text="?", label="12", meta={"answers": ["12", "a dozen", "13"]})
    text = first_call(PROMPTS, JudgeItem(question=question, response="13"), 9).chat.messages[0].text
    assert re.findall(r"=== (\w+) (.*) begins\n\| (.*)\n=== \1 \2 ends", text)[1:4] == [
        (text.split("=== ")[1].split()[0], title, label)
        for title, label in (
            ("reference answer", "12"),
            ("another reference answer, any one will do", "a dozen"),
            ("another reference answer, any one will do", "13"),
        )
    ]
    for response, reward in (("13", 1.0), ("A dozen.", 1.0), ("12.0", 1.0), ("99", None)):
        verdict = without_judge(JudgeItem(question=question, response=response), rules_first=True)
        assert (verdict.reward if verdict else None) == reward, response
    for response, reward in (("99", 0.0), ("13", 1.0)):
        plain = replace(question, meta={"answers": ["12", "13"]})
        verdict = without_judge(JudgeItem(question=plain, response=response), rules_first=True)
        assert verdict is not None and verdict.reward == reward
    # A phrase that one of them repeats may be repeated.
    several = replace(question, meta={"answers": ["12", "ha " * 8]})
    assert without_judge(JudgeItem(question=several, response="ha " * 7), rules_first=False) is None


def test_a_published_prompt_does_not_change() -> None:
    """Verdicts are kept under this name. Another wording is another version: make a new folder."""
    assert PROMPTS.name == "v1-1a4b2882"


@pytest.mark.parametrize(
    ("text", "repetitive"),
    [
        ("red " * 6, True),
        ("red " * 5, False),
        ("Yes, yes, yes.", False),
        ("It is red. " * 6, True),
        ("It is red. " * 6 + "It is", True),
        ("Let me see. " + "It is red. " * 10, True),
        ("It is red. " * 6 + "But then the whole of the text goes on with something else.", False),
        ("One red, two red, three red, four red, five red, six red, seven red", False),
        ("a" * 64, True),
        ("a" * 63, False),
        ("1000000000000", False),
        ("\u7ea2\u8272" * 40, True),
        ("ab" * 15 + "the rest is different and longer than a third of it all", False),
        ("", False),
    ],
)
def test_one_phrase_over_and_over(text: str, repetitive: bool) -> None:
    assert is_repetitive(text) is repetitive


@pytest.mark.parametrize(
    ("response", "label", "choices", "reward"),
    [
        ("A red van.", "a red van", (), 1.0),
        ('**"Red van"**', "red van", (), 1.0),
        ("van, red", "red van", (), None),
        ("red vans", "red van", (), None),
        ("C", "C++", (), None),
        ("10\u00b2", "102", (), None),
        ("yes", "no", (), 0.0),
        ("No.", "no", (), 1.0),
        ("no, it is not", "no", (), None),
        ("not sure", "no", (), None),
        ("4", "4.0", (), 1.0),
        ("1,200", "1200", (), 1.0),
        ("5", "4", (), 0.0),
        ("2020", "2019", (), None),
        ("0", "4", (), 0.0),
        ("-4", "4", (), None),
        ("45", "0.45", (), None),
        ("1.2", "1200", (), None),
        ("1200 kg", "1200", (), None),
        ("four", "4", (), None),
        ("12345678901234567", "4", (), None),
        ("B", "dog", ("cat", "dog"), 1.0),
        ("(b)", "B", ("cat", "dog"), 1.0),
        ("A.", "dog", ("cat", "dog"), 0.0),
        ("cat", "B", ("cat", "dog"), 0.0),
        ("B. dog", "dog", ("cat", "dog"), 1.0),
        ("A. dog", "dog", ("cat", "dog"), None),
        ("C", "dog", ("cat", "dog"), None),
        ("A or B", "dog", ("cat", "dog"), None),
        ("dog, because it barks", "dog", ("cat", "dog"), None),
        ("B", "A", ("B", "A"), None),
        ("cat", "dog", ("cat", "cat", "dog"), None),
        ("12", "A", ("10", "12"), 0.0),
    ],
)
def test_rules_settle_only_what_leaves_no_doubt(
    response: str, label: str, choices: tuple[str, ...], reward: float | None
) -> None:
    question = Question(id="1", text="?", label=label, choices=choices)
    item = JudgeItem(question=question, response=response)
    verdict = without_judge(item, rules_first=True)
    assert (verdict.reward if verdict else None) == reward
    assert without_judge(item, rules_first=False) is None
