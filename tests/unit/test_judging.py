"""The conversation with a judge, worked out by hand: replies in, verdicts and calls out."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from masters.data.questions import Question
from masters.errors import DataError, StageError
from masters.rewards.judging.asking import Chat, Reply
from masters.rewards.judging.cache import VerdictCache
from masters.rewards.judging.conversation import check_missing, judge_responses
from masters.rewards.judging.items import JudgeItem, JudgeSettings, JudgeVerdict
from masters.rewards.judging.reading import read_explanation, read_score
from masters.rewards.judging.rules import without_judge

#: What a scripted judge says to one call; "M" stands for the call's own mark.
Script = Sequence[str | None]


class Scripted:
    """Says to each response what its script holds, call after call, in any order of replies.

    A response's script is found by the response's text, which stands in its first prompt and is
    quoted in every first reply.
    """

    name = "scripted"

    def __init__(
        self,
        scripts: Mapping[str, Script],
        order: Callable[[list[int]], list[int]] = lambda places: places,
    ) -> None:
        self._scripts = {text: list(script) for text, script in scripts.items()}
        self._order = order
        self.prompts: list[str] = []
        self.rounds: list[int] = []
        self.handed: list[list[str]] = []

    def ask(self, chats: Sequence[Chat]) -> Iterator[tuple[int, Reply]]:
        self.rounds.append(len(chats))
        self.handed.append([chat.messages[0].text for chat in chats])
        for place in self._order(list(range(len(chats)))):
            prompt = chats[place].messages[0].text
            self.prompts.append(prompt)
            said = max((t for t in self._scripts if f"| {t}\n" in prompt), key=len)
            text = self._scripts[said].pop(0)
            if text is None:
                yield place, Reply(text=None, error="refused")
                continue
            mark = re.findall(r"<answer-(\w+)>SCORE", prompt)
            if mark:
                text = f"{said}\n" + text.replace("M", mark[0])
            yield place, Reply(text=text)


def tag(score: int | str) -> str:
    return f"<answer-M>{score}</answer-M>"


def made(*responses: str, label: str = "four") -> list[JudgeItem]:
    questions = [Question(id=str(n), text="How many?", label=label) for n in range(len(responses))]
    pairs = zip(questions, responses, strict=True)
    return [JudgeItem(question=question, response=response) for question, response in pairs]


def judged(
    items: Sequence[JudgeItem], judge: Scripted, path: Path, round_size: int = 256, retries: int = 2
) -> dict[int, JudgeVerdict]:
    with VerdictCache(path) as cache:
        pairs = list(
            judge_responses(
                items, judge, JudgeSettings(retries=retries), cache, round_size=round_size
            )
        )
    assert len(dict(pairs)) == len(pairs), "an item was answered twice"
    return dict(pairs)


def test_two_calls_make_a_verdict(tmp_path: Path) -> None:
    judge = Scripted({"it is 4": [f"Same count. {tag(1)}", "1"], "5": [tag(0), " 0\n"]})
    found = judged(made("it is 4", "5"), judge, tmp_path / "v.sqlite")
    assert found[0] == JudgeVerdict(reward=1.0, reason="right", explanation="it is 4\nSame count.")
    assert found[1] == JudgeVerdict(reward=0.0, reason="wrong", explanation="5")
    assert judge.rounds == [2, 2]


@pytest.mark.parametrize(
    ("script", "reward", "reason", "attempts"),
    [
        ([tag(1), "1"], 1.0, "right", 1),
        (["who knows", tag(0), "0"], 0.0, "wrong", 2),
        ([tag(1), "0", tag(1), "1"], 1.0, "right", 2),
        ([tag(1), "1.", tag(1), "yes", tag(0), "0"], 0.0, "wrong", 3),
        ([None, tag(1), None, tag(1), "1"], 1.0, "right", 3),
        ([tag(1), "0"] * 3, None, "the two calls disagree", 3),
        (["?", "?", "?"], None, "no answer tag", 3),
        ([tag(1), "one"] * 3, None, "second call printed neither 0 nor 1", 3),
        ([tag(1) + tag(1)] * 3, None, "several answer tags", 3),
        ([tag(2)] * 3, None, "tag holds neither 0 nor 1", 3),
        (["<answer-M>1"] * 3, None, "broken answer tag", 3),
        ([None] * 3, None, "no reply: refused", 3),
        (["?", tag(1), "0", None], None, "no reply: refused", 3),
    ],
)
def test_what_cannot_be_read_is_asked_again_then_missing(
    script: Script, reward: float | None, reason: str, attempts: int, tmp_path: Path
) -> None:
    judge = Scripted({"it is 4": script})
    (verdict,) = judged(made("it is 4"), judge, tmp_path / "v.sqlite", retries=2).values()
    assert (verdict.reward, verdict.reason, verdict.by) == (reward, reason, "judge")
    assert len(judge.prompts) == len(script)
    with VerdictCache(tmp_path / "v.sqlite") as cache:
        (kept,) = cache.read()
    assert (kept.attempts, kept.verdict) == (attempts, verdict)


def test_every_try_is_worded_anew_and_the_same_in_every_run(tmp_path: Path) -> None:
    runs = []
    for run in range(2):
        judge = Scripted({"it is 4": ["?", tag(1), "no", tag(1), "1"]})
        judged(made("it is 4"), judge, tmp_path / f"{run}.sqlite")
        runs.append(judge.prompts)
    first, second, _, third, _ = runs[0]
    assert runs[0] == runs[1]
    assert "try" not in first
    assert "This is try 2, because an earlier reply could not be used (no answer tag)." in second
    assert "(second call printed neither 0 nor 1)" in third
    marks = [re.findall(r"<answer-(\w+)>SCORE", prompt)[0] for prompt in (first, second, third)]
    assert len(set(marks)) == 3


def test_the_order_of_replies_moves_nothing(tmp_path: Path) -> None:
    scripts = {
        "a": [tag(1), "1"],
        "b": ["?", tag(0), "0"],
        "c": [tag(0), "1", tag(0), "0"],
        "d": ["?"] * 3,
    }
    orders = [list(order) for order in itertools.permutations(range(4))]
    runs = []
    for number, order in enumerate(orders):
        judge = Scripted(
            scripts, lambda places, order=order: sorted(places, key=lambda p: order[p])
        )
        found = judged(made(*scripts), judge, tmp_path / f"{number}.sqlite", round_size=3)
        runs.append((found, judge.handed))
    assert all(run == runs[0] for run in runs)
    rewards = [runs[0][0][place].reward for place in range(4)]
    assert rewards == [1.0, 0.0, 0.0, None]


def test_second_calls_go_before_new_ones(tmp_path: Path) -> None:
    """Ten responses in rounds of four: what has begun is finished first."""
    names = "abcdefghij"
    judge = Scripted({name: [tag(1), "1"] for name in names})
    judged(made(*names), judge, tmp_path / "v.sqlite", round_size=4)
    assert judge.rounds == [4, 4, 4, 4, 2, 2]
    said = [
        re.findall(r"response begins\n\| (\w)|remark begins\n\| (\w)", p)[0] for p in judge.prompts
    ]
    assert ["".join(pair) for pair in said] == [*"abcd", *"abcd", *"efgh", *"efgh", *"ijij"]


def test_what_is_kept_costs_no_call(tmp_path: Path) -> None:
    path = tmp_path / "v.sqlite"
    scripts = {"a": [tag(1), "1"], "b": [tag(0), "0"], "c": ["?", "?"]}
    before = judged(made("a", "b", "c"), Scripted(scripts), path, retries=1)
    # The missing one alone is asked about again.
    judge = Scripted({"c": [tag(1), "1"]})
    after = judged(made("a", "b", "c"), judge, path, retries=1)
    assert before[2].reward is None
    assert (after[0], after[1], after[2].reward) == (before[0], before[1], 1.0)
    assert judge.rounds == [1, 1]
    silent = Scripted({})
    assert judged(made("a", "b", "c"), silent, path) == after
    assert silent.rounds == []


def test_equal_responses_to_a_question_are_asked_about_once(tmp_path: Path) -> None:
    (one,) = made("it is 4")
    other = JudgeItem(question=Question(id="1", text="How many?", label="four"), response="it is 4")
    judge = Scripted({"it is 4": [tag(1), "1"], "never": []})
    found = judged([one, one, one], judge, tmp_path / "v.sqlite")
    assert [found[n].reward for n in range(3)] == [1.0] * 3
    assert judge.rounds == [1, 1]
    again = Scripted({"it is 4": [tag(0), "0"]})
    assert judged([one, other], again, tmp_path / "v.sqlite")[1].reward == 0.0


class Dying(Scripted):
    """Is gone after so many replies."""

    def __init__(self, scripts: Mapping[str, Script], replies: int) -> None:
        super().__init__(scripts)
        self._left = replies

    def ask(self, chats: Sequence[Chat]) -> Iterator[tuple[int, Reply]]:
        for pair in super().ask(chats):
            if not self._left:
                raise ConnectionError("gone")
            self._left -= 1
            yield pair


def test_a_judge_that_dies_loses_no_verdict(tmp_path: Path) -> None:
    path = tmp_path / "v.sqlite"
    names = "abcd"
    came: list[int] = []
    judge = Dying({name: [tag(1), "1"] for name in names}, replies=6)
    with VerdictCache(path) as cache, pytest.raises(ConnectionError):
        for place, _ in judge_responses(made(*names), judge, JudgeSettings(), cache):
            came.append(place)
    assert came == [0, 1]
    judge = Scripted({name: [tag(1), "1"] for name in "cd"})
    found = judged(made(*names), judge, path)
    assert [found[place].reward for place in range(4)] == [1.0] * 4
    assert len(judge.prompts) == 4


@pytest.mark.parametrize(
    ("places", "what"),
    [
        ([0, 0, 1], "chat 0 of 2 twice"),
        ([0], "only 1 of 2"),
        ([0, 1, 2], "chat 2 of 2"),
        ([0, 1, -1], "chat -1 of 2"),
    ],
)
def test_an_asker_that_breaks_its_contract_is_named(
    places: list[int], what: str, tmp_path: Path
) -> None:
    judge = Scripted({"a": ["?", "?"], "b": ["?", "?"], "c": []}, lambda _: places)
    judge.ask = lambda chats: iter([(place, Reply(text="?")) for place in places])  # type: ignore
    with pytest.raises(StageError, match=f"judge scripted: answered {what}.*exactly once"):
        judged(made("a", "b"), judge, tmp_path / "v.sqlite")


def test_a_question_without_label_is_refused(tmp_path: Path) -> None:
    item = JudgeItem(question=Question(id="7", text="How many?"), response="4")
    with pytest.raises(DataError, match="'7': has no label"):
        judged([item], Scripted({}), tmp_path / "v.sqlite")


def test_too_many_missing_stop_a_run() -> None:
    """5 of 100 may be missing, 6 not: and the sixth stops it, however many are still to come."""
    check_missing(Counter({"no answer tag": 3, "no reply": 2}), 100, 0.05)
    check_missing(Counter(), 0, 0.0)
    with pytest.raises(StageError, match=r"6 of 100 .*no answer tag: 4, no reply: 2.*5\.0%"):
        check_missing(Counter({"no answer tag": 4, "no reply": 2}), 100, 0.05)
    with pytest.raises(StageError):
        check_missing(Counter({"no reply": 1}), 1000, 0.0)


@pytest.mark.parametrize(
    ("reply", "score", "problem"),
    [
        ("<answer-mmkk>1</answer-mmkk>", 1, ""),
        ("Right.\n<answer-mmkk> 0\n</answer-mmkk>\nDone.", 0, ""),
        ("<answer>1</answer> <answer-mmkk>0</answer-mmkk>", 0, ""),
        ("<answer-kkmm>1</answer-kkmm><answer-mmkk>0</answer-mmkk>", 0, ""),
        ("<answer-mmkk>1</answer-mmkk> or <answer-mmkk>0</answer-mmkk>", None, "several"),
        ("<answer-mmkk><answer-mmkk>1</answer-mmkk></answer-mmkk>", None, "several"),
        ("<answer-mmkk>1</answer-mmkk></answer-mmkk>", None, "several"),
        ("<ANSWER-MMKK>0</ANSWER-MMKK><answer-mmkk>1</answer-mmkk>", None, "several"),
        ("<answer-mmkk>1</answer>", None, "broken"),
        ("</answer-mmkk>1<answer-mmkk>", None, "broken"),
        ("<answer-mmkk>SCORE</answer-mmkk>", None, "neither"),
        ("<answer-mmkk>1.0</answer-mmkk>", None, "neither"),
        ("<answer-mmkk>10</answer-mmkk>", None, "neither"),
        ("<answer-mmkk>\uff11</answer-mmkk>", None, "neither"),
        ("<answer-mmkk></answer-mmkk>", None, "neither"),
        ("answer-mmkk: 1", None, "no answer tag"),
        ("1", None, "no answer tag"),
        ("", None, "no answer tag"),
    ],
)
def test_the_first_reply_is_read_strictly(reply: str, score: int | None, problem: str) -> None:
    reading = read_explanation(reply, "mmkk")
    assert reading.score == score
    assert problem in reading.problem
    assert bool(problem) == bool(reading.problem)


@pytest.mark.parametrize(
    ("reply", "score"),
    [("1", 1), (" 0\n", 0), ("", None), ("1.", None), ("01", None), ("Score: 1", None)]
    + [
        ("2", None),
        ("-1", None),
        ("0 1", None),
        ("\u0661", None),
        ("\uff11", None),
        ("1\n0", None),
    ],
)
def test_the_second_reply_is_one_digit(reply: str, score: int | None) -> None:
    assert read_score(reply).score == score


def test_nothing_and_repetition_need_no_judge(tmp_path: Path) -> None:
    judge = Scripted({})
    found = judged(made("", " \u200b\n", "four " * 20), judge, tmp_path / "v.sqlite")
    assert [(v.reward, v.reason, v.by) for v in (found[0], found[1], found[2])] == [
        (0.0, "empty", "rule"),
        (0.0, "empty", "rule"),
        (0.0, "repetitive", "rule"),
    ]
    assert judge.rounds == []
    # Where the label itself repeats, the response may.
    (item,) = made("1 1 1 1 1 1 1", label="1 1 1 1 1 1")
    assert without_judge(item, rules_first=False) is None


def test_judging_needs_no_torch() -> None:
    modules = "cache calls conversation items material reading rules".split()
    code = "; ".join(f"import masters.rewards.judging.{name}" for name in modules)
    code += "; import sys; assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
