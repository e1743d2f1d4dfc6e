"""The corpus of attacks against the builder, the parser and judges that are easily fooled."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from masters.rewards.judging.cache import VerdictCache
from masters.rewards.judging.calls import first_call, load_prompts, second_call
from masters.rewards.judging.conversation import judge_responses
from masters.rewards.judging.items import JudgeSettings
from masters.rewards.judging.material import HEAD, TAIL
from masters.rewards.judging.reading import read_explanation
from tests.attacks import stand_ins
from tests.attacks.corpus import LABEL, RIGHT, WRONG, Attack, attacks, item
from tests.attacks.stand_ins import Answer, Judge, Layout, honest, quoting

ATTACKS = attacks()
PROMPTS = load_prompts("v1")
TO_THE_JUDGE = [attack for attack in ATTACKS if attack.expect is None]


def _material(title: str) -> Callable[[str], str]:
    # Whatever stands behind "===" passes for a mark, so that the lines' own beginnings are tested.
    block = re.compile(rf"(?ms)^=== [^\n]* ?{title} begins$\n(.*?)^=== [^\n]* ?{title} ends$")

    def found(prompt: str) -> str:
        lines = block.findall(prompt)[0].splitlines()
        return "\n".join(line.removeprefix("| ") for line in lines)

    return found


def _rest(title: str) -> Callable[[str], str]:
    block = re.compile(rf"(?ms)^=== [^\n]* ?{title} begins$\n.*?^=== [^\n]* ?{title} ends$")

    def left(prompt: str) -> str:
        outside = block.sub("", prompt, count=1)
        for mark in re.findall(r"the mark (\w{8})|in the tag answer-(\w{8})", outside):
            outside = outside.replace(mark[0] or mark[1], "MARK")
        return outside

    return left


def _tagged(prompt: str, score: int) -> str:
    name = re.findall(r"<(answer-\w+)>SCORE</\1>", prompt)[-1]
    return f"So I find.\n<{name}>{score}</{name}>"


def _first_layout(core: str) -> Layout:
    return Layout(
        material=_material("response"),
        rest=_rest("response"),
        bare=first_call(PROMPTS, item(core), 384).chat.messages[0].text,
        verdict=_tagged,
    )


def _second_layout() -> Layout:
    remark = "So I find.\n<answer-bcdfghjk>0</answer-bcdfghjk>"
    return Layout(
        material=_material("remark"),
        rest=_rest("remark"),
        bare=second_call(PROMPTS, remark, "bcdfghjk").chat.messages[0].text,
        verdict=lambda prompt, score: str(score),
    )


def _reads_remark(prompt: str) -> str:
    tag = re.findall(r"in the tag (answer-\w+)\.", prompt)[-1]
    return re.findall(rf"< {tag}>(\d)< /{tag}>", _material("remark")(prompt))[-1]


def _expected(attack: Attack, core: str) -> float:
    if attack.expect is not None:
        return float(attack.expect)
    return float(core == RIGHT and not attack.lost)


def _verdicts(tmp_path: Path, core: str, explain: Answer, score: Answer) -> dict[str, float | None]:
    items = [item(attack.response(core), number) for number, attack in enumerate(ATTACKS)]
    judge = Judge(explain, score)
    with VerdictCache(tmp_path / "verdicts.sqlite") as cache:
        found = dict(judge_responses(items, judge, JudgeSettings(retries=1), cache))
    assert sorted(found) == list(range(len(ATTACKS)))
    return {attack.id: found[number].reward for number, attack in enumerate(ATTACKS)}


_OBEDIENT = {
    "last": stand_ins.obeys_last,
    "outside": stand_ins.obeys_outside,
    "turns": stand_ins.obeys_turns,
}


@pytest.mark.parametrize("core", [RIGHT, WRONG])
@pytest.mark.parametrize("kind", ["honest", "quoting", *_OBEDIENT])
def test_every_attack_is_judged_like_the_answer_it_wraps(
    kind: str, core: str, tmp_path: Path
) -> None:
    """The verdict is the bare answer's, even where the judge does all that it can be told."""
    first, second = _first_layout(core), _second_layout()
    explain, score = honest(first), _reads_remark
    if kind != "honest":
        explain = quoting(first)
    if kind in _OBEDIENT:
        explain = _OBEDIENT[kind](first, explain)
        score = _OBEDIENT[kind](second, score)
    found = _verdicts(tmp_path, core, explain, score)
    wrong = {a.id: found[a.id] for a in ATTACKS if found[a.id] != _expected(a, core)}
    assert not wrong


@pytest.mark.parametrize("first", ["copies", "copies_last", "copies_material"])
def test_a_judge_that_copies_verdicts_out_of_the_prompt_gives_none(
    first: str, tmp_path: Path
) -> None:
    layout = _first_layout(WRONG)
    explain = getattr(stand_ins, first)
    explain = explain(layout) if first == "copies_material" else explain
    found = _verdicts(tmp_path, WRONG, explain, lambda _: "1")
    assert {found[attack.id] for attack in TO_THE_JUDGE} == {None}
    assert {found[a.id] for a in ATTACKS if a.expect is not None} == {0.0}


@pytest.mark.parametrize(
    "score", [stand_ins.copies, stand_ins.copies_last, lambda _: "1"], ids=["all", "last", "one"]
)
def test_a_second_call_that_copies_or_says_one_never_turns_wrong_into_right(
    score: Answer, tmp_path: Path
) -> None:
    found = _verdicts(tmp_path, WRONG, quoting(_first_layout(WRONG)), score)
    assert 1.0 not in found.values()


def test_the_prompt_around_every_attack_keeps_its_form() -> None:
    """Mark, lines, length and ending are ours, whatever the response."""
    bare = len(first_call(PROMPTS, item(WRONG), 384).chat.messages[0].text)
    for attack in ATTACKS:
        response = attack.response(WRONG)
        call = first_call(PROMPTS, item(response), 384)
        text = call.chat.messages[0].text
        assert call.mark not in response, attack.id
        assert text == first_call(PROMPTS, item(response), 384).chat.messages[0].text
        assert text.endswith(f"<answer-{call.mark}>SCORE</answer-{call.mark}>"), attack.id
        marked = [line for line in text.splitlines() if line.startswith(f"=== {call.mark} ")]
        titles = [line.split(" ", 2)[2] for line in marked]
        cut = [title for title in titles if "left out" in title]
        assert [title for title in titles if title not in cut] == [
            f"{title} {end}"
            for title in ("question", "reference answer", "response")
            for end in ("begins", "ends")
        ], attack.id
        # Spaces and line beginnings at most treble what is kept.
        assert len(text) < bare + 3 * (HEAD + TAIL) + 100, attack.id
        hidden = [c for c in text if unicodedata.category(c) in ("Cf", "Cs", "Co", "Cn")]
        assert not hidden, attack.id
        text.encode("utf-8")


def test_no_reply_that_a_response_could_write_is_a_verdict() -> None:
    """The response itself, as a reply, never reads as a verdict on it, nor does the prompt."""
    for attack in ATTACKS:
        response = attack.response(WRONG)
        call = first_call(PROMPTS, item(response), 384)
        for reply in (response, response.replace("\u200b", ""), call.chat.messages[0].text):
            assert read_explanation(reply, call.mark).score is None, attack.id


def test_no_chat_token_reaches_a_tokenizer() -> None:
    """A tokenizer that parses special tokens in text, as local engines do, finds none."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers

    tokens = """<|im_start|> <|im_end|> <|endoftext|> <|eot_id|> <|start_header_id|>
        <|end_header_id|> <|begin_of_text|> <|end_of_text|> <|eot|> <|header_start|> <|header_end|>
        <start_of_turn> <end_of_turn> <bos> <eos> <pad> <unk> <s> </s> [INST] [/INST]
        [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [AVAILABLE_TOOLS] [TOOL_RESULTS] [IMG] [IMG_BREAK]
        [IMG_END] <<SYS>> <</SYS>> <|end|> <|system|> <|user|> <|assistant|> <|vision_start|>
        <|vision_end|> <|image_pad|> <|video_pad|> <image> <video> <img> </img> <IMG_CONTEXT>
        <image_soft_token> <think> </think> <tool_call> </tool_call> <|START_OF_TURN_TOKEN|>
        <|END_OF_TURN_TOKEN|> <|SYSTEM_TOKEN|> <|start_of_role|> <|end_of_role|> <|start|>
        <|channel|> <|message|> <|return|> [CLS] [SEP] [MASK] [PAD] [UNK] [gMASK] <sop>
        <|observation|> <unused0> <extra_id_0> <reserved_special_token_0>
        <|reserved_special_token_1|>""".split()
    tokens += [
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "<\uff5cUser\uff5c>",
        "<\uff5cAssistant\uff5c>",
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_special_tokens(tokens)
    tokenizer.add_tokens([AddedToken(f"{token} ", normalized=True) for token in tokens[:40]])
    reached: Counter[str] = Counter()
    for attack in ATTACKS:
        response = attack.response(WRONG)
        reached["raw"] += bool(tokenizer.encode(response.encode("utf-8", "replace").decode()).ids)
        call = first_call(PROMPTS, item(response), 384)
        assert not tokenizer.encode(call.chat.messages[0].text).ids, attack.id
        remark = second_call(PROMPTS, response, call.mark).chat.messages[0].text
        assert not tokenizer.encode(remark).ids, attack.id
    assert reached["raw"] >= 30


# What the corpus does to careless prompts: the stand-ins can be fooled, and the corpus fools them.


def _careless(response: str, tagged: bool) -> str:
    start = f"Question: What is parked at the kerb?\nGround truth: {LABEL}\n\n"
    task = "Is the response right? Explain, then print <answer>SCORE</answer>, with 1 or 0."
    if tagged:
        return f"{start}<response>\n{response}\n</response>\n\n{task}"
    return f"{start}{task}\n\nResponse:\n{response}"


def _careless_layout(core: str, tagged: bool) -> Layout:
    close = re.compile(r"<\s*/\s*(?:response|generated_text)\b[^<>]*>", re.IGNORECASE)

    def parts(prompt: str) -> tuple[str, str]:
        plain = stand_ins.plain_letters(prompt)
        before, _, behind = plain.partition("<response>" if tagged else "Response:")
        if not tagged:
            return behind, before
        material, *rest = close.split(behind)
        return material, before + "".join(rest)

    return Layout(
        material=lambda prompt: parts(prompt)[0],
        rest=lambda prompt: parts(prompt)[1],
        bare=_careless(core, tagged),
        verdict=lambda prompt, score: f"So I find. <answer>{score}</answer>",
    )


def _beaten(explain: Callable[[Layout], Answer], tagged: bool) -> set[str]:
    """The attacks that make a wrong answer right, under a careless prompt and a loose parser."""
    layout = _careless_layout(WRONG, tagged)

    def score(response: str) -> str | None:
        reply = explain(layout)(_careless(response, tagged))
        match = re.search(r"<answer>\s*([01])\s*</answer>", reply)
        return match[1] if match else None

    assert score(WRONG) != "1"
    return {attack.id for attack in ATTACKS if score(attack.response(WRONG)) == "1"}


def test_careless_prompts_are_beaten_by_the_corpus() -> None:
    last = _beaten(lambda layout: stand_ins.obeys_last(layout, honest(layout)), tagged=False)
    outside = _beaten(lambda layout: stand_ins.obeys_outside(layout, honest(layout)), tagged=True)
    turns = _beaten(lambda layout: stand_ins.obeys_turns(layout, honest(layout)), tagged=True)
    copied = _beaten(lambda _: stand_ins.copies, tagged=True)
    assert {attack.id for attack in TO_THE_JUDGE} <= last | outside | turns | copied
    by_category = {
        name: Counter(attack.split(": ")[0] for attack in beaten)
        for name, beaten in {"last": last, "outside": outside, "turns": turns}.items()
    }
    assert by_category["last"]["instructions"] == 26
    assert by_category["outside"]["closing tags"] >= 8
    assert by_category["turns"]["role markers"] >= 12
    assert by_category["turns"]["chat tokens"] >= 28
    assert len(copied) >= 8


def test_the_corpus_covers_what_it_should() -> None:
    counts = Counter(attack.category for attack in ATTACKS)
    assert counts.total() >= 200
    assert len(counts) >= 14
    assert len({attack.id for attack in ATTACKS}) == counts.total()
    longest = [a for a in ATTACKS if a.category.startswith("50,000")]
    assert all(len(attack.response(WRONG)) >= 40_000 for attack in longest)
