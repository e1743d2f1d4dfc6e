"""The judge stage with a model run here, a stand-in and a server: what is asked, kept, missing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from masters.artifacts import StageContext
from masters.data.scenes import SceneQuestions
from masters.data.tables import RESPONSES, REWARDS, read_shards, shard_name, write_shard
from masters.errors import ServerGoneError, StageError
from masters.recipe import AccuracyRule, Judge, Runtime, ScenesSource
from masters.recipe_judge import ServerAddress
from masters.rewards.judging.asking import Chat, Message, Reply
from masters.rewards.judging.cache import VerdictCache
from masters.shares import Part, ShardsMissingError, Share
from masters.specs import JudgeSpec, LocalJudge, ModelRef
from masters.stages import judge, jury
from masters.stages.asking import LocalAsker
from tests.fault_server import Act, FaultServer

QUESTIONS, SHARDS = 12, 3
SERVED = "judge"
WRONG = "a quite different thing"


def stored(out: Path) -> tuple[StageContext, list[dict[str, Any]]]:
    """Three shards of responses to four questions each: right, wrong, wrong again, nothing."""
    rows = []
    questions = SceneQuestions(count=QUESTIONS, seed=3)
    for question in questions:
        for sample, text in enumerate((question.label, WRONG, WRONG, " ")):
            key = {"question_id": question.id, "source": "student", "ratio": 0, "round": 0}
            rest = {"model": "m", "token_ids": [1], "logprobs": None, "finish": "stop", "seed": 0}
            rows.append({**key, **rest, "sample": sample, "text": text})
    size = len(rows) // SHARDS
    for shard in range(SHARDS):
        path = out / "stages" / "generate-1" / "responses" / shard_name(shard)
        write_shard(path, rows[shard * size : (shard + 1) * size], RESPONSES)
    return context_of(out), rows


def context_of(out: Path, **runtime: Any) -> StageContext:
    folder = out / "stages" / "judge-1"
    folder.mkdir(parents=True, exist_ok=True)
    return StageContext(
        folder=folder,
        inputs={"responses": out / "stages" / "generate-1"},
        runtime=Runtime(device="cpu", **runtime),
        progress=lambda done, total, note: None,
    )


def spec_of(local: LocalJudge | None = None, **settings: Any) -> JudgeSpec:
    model = "teacher" if local else "server"
    name = None if local else SERVED
    rule = AccuracyRule(kind="judge", judge=Judge(model=model, name=name, **settings))
    data = ScenesSource(count=QUESTIONS, seed=3)
    return JudgeSpec(source="student", data=data, rule=rule, judge=local)


def rewards(context: StageContext) -> list[dict[str, Any]]:
    return read_shards(context.folder / "rewards", REWARDS).to_pylist()


def wanted(rows: Sequence[dict[str, Any]]) -> list[float]:
    return [1.0 if row["sample"] == 0 else 0.0 for row in rows]


def said(prompt: str) -> str:
    """What a judge answers that compares the response's line with the reference's."""
    tag = re.search(r"<(answer-\w+)>SCORE", prompt)
    if tag is None:
        score = re.search(r">\s*([01])\s*</", prompt.replace("< ", "<"))
        return score[1] if score else "?"
    quoted = [line[2:] for line in prompt.splitlines() if line.startswith("| ")]
    right = quoted[-1] == quoted[-2]
    words = "It says the same." if right else "It says something else."
    return f"{words}\n<{tag[1]}>{int(right)}</{tag[1]}>"


class StandIn:
    """Judges well; is gone after ``until`` replies."""

    name = "stand-in"

    def __init__(self, until: int | None = None) -> None:
        self.until = until
        self.asked: Counter[str] = Counter()

    def ask(self, chats: Sequence[Chat]) -> Iterator[tuple[int, Reply]]:
        for place, chat in reversed(list(enumerate(chats))):  # any order will do
            if self.asked.total() == self.until:
                raise ServerGoneError("http://127.0.0.1:1: gives no answer")
            prompt = chat.messages[-1].text
            self.asked[prompt] += 1
            yield place, Reply(text=said(prompt))


def judged_by(monkeypatch: pytest.MonkeyPatch, asker: StandIn) -> StandIn:
    monkeypatch.setattr(jury, "open_asker", lambda *_: asker)
    return asker


def test_each_distinct_response_takes_two_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, rows = stored(tmp_path)
    asker = judged_by(monkeypatch, StandIn())
    metrics = judge.run(spec_of(), context)
    found = rewards(context)
    assert [row["reward"] for row in found] == wanted(rows)
    assert [row["sample"] for row in found] == [row["sample"] for row in rows]
    assert metrics["reasons"] == {"right": QUESTIONS, "wrong": 2 * QUESTIONS, "empty": QUESTIONS}
    assert metrics["judges"] == {"stand-in": 3 * QUESTIONS, "rule:undoubted": QUESTIONS}
    assert (metrics["right"], metrics["missing"]) == (QUESTIONS, 0)
    # The right and the wrong response, which came twice; nothing is said about the empty one.
    assert asker.asked.total() == 2 * 2 * QUESTIONS and set(asker.asked.values()) == {1}
    with VerdictCache(tmp_path / "verdicts.sqlite") as cache:
        kept = list(cache.read())
    assert len(kept) == 2 * QUESTIONS
    assert {verdict.verdict.explanation for verdict in kept} == {
        "It says the same.", "It says something else."
    }  # fmt: skip


def test_another_stage_of_the_same_folder_asks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, rows = stored(tmp_path)
    judged_by(monkeypatch, StandIn())
    judge.run(spec_of(), context)
    second = judged_by(monkeypatch, StandIn(until=0))
    other = context_of(tmp_path)
    other = StageContext(
        folder=tmp_path / "stages" / "judge-2", inputs=other.inputs, runtime=other.runtime,
        progress=other.progress,
    )  # fmt: skip
    other.folder.mkdir()
    judge.run(spec_of(max_missing=1.0), other)
    assert rewards(other) == rewards(context) and not second.asked


def test_two_workers_keep_their_verdicts_apart_and_then_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, _ = stored(tmp_path / "alone")
    judged_by(monkeypatch, StandIn())
    wanted_metrics = judge.run(spec_of(), alone)
    context, _ = stored(tmp_path / "two")
    shared = tmp_path / "two" / "verdicts.sqlite"
    asked: Counter[str] = Counter()
    for index in (1, 0):
        asker = judged_by(monkeypatch, StandIn())
        with Part(Share(index=index, count=2), context.folder) as part:
            mine = replace(context, part=part)
            if index == 1:
                with pytest.raises(ShardsMissingError, match="2 shards of others"):
                    judge.run(spec_of(), mine)
                assert not shared.exists()
            else:
                assert judge.run(spec_of(), mine) == wanted_metrics
        asked += asker.asked
    assert asked.total() == 2 * 2 * QUESTIONS and set(asked.values()) == {1}
    assert rewards(context) == rewards(alone)
    assert [path.name for path in context.folder.iterdir() if "verdicts" in path.name] == []
    with VerdictCache(shared) as two, VerdictCache(tmp_path / "alone" / shared.name) as one:
        assert [replace(kept, time="") for kept in two.read()] == [
            replace(kept, time="") for kept in one.read()
        ]


@pytest.mark.parametrize("until", [1, 13, 25, 33])
def test_a_judge_that_goes_and_comes_back(
    until: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, rows = stored(tmp_path / "whole")
    judged_by(monkeypatch, StandIn())
    judge.run(spec_of(), whole)
    context, _ = stored(tmp_path / "cut")
    first = judged_by(monkeypatch, StandIn(until=until))
    with pytest.raises(ServerGoneError):
        judge.run(spec_of(), context)
    with VerdictCache(tmp_path / "cut" / "verdicts.sqlite") as cache:
        known = {(kept.question, kept.label, kept.response) for kept in cache.read()}
    shards = {path: path.read_bytes() for path in (context.folder / "rewards").glob("*.parquet")}
    assert len(shards) == until // 16, "a whole shard takes 16 calls"
    second = judged_by(monkeypatch, StandIn())
    judge.run(spec_of(), context)
    assert rewards(context) == rewards(whole)
    assert {path: path.read_bytes() for path in shards} == shards, "whole shards are left alone"
    # 48 calls in all; twice only first calls whose verdict had not come.
    twice = first.asked & second.asked
    assert first.asked.total() + second.asked.total() == 48 + twice.total()
    assert twice.total() <= 8
    for prompt in second.asked:
        quoted = [line[2:] for line in prompt.splitlines() if line.startswith("| ")]
        if "SCORE" in prompt:
            assert tuple(quoted) not in known


def test_missing_verdicts_stop_the_stage_and_are_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mumbles(StandIn):
        def ask(self, chats: Sequence[Chat]) -> Iterator[tuple[int, Reply]]:
            for place, reply in super().ask(chats):
                wrong = WRONG in chats[place].messages[-1].text
                yield place, Reply(text="Perhaps.") if wrong else reply

    context, rows = stored(tmp_path)
    mumbling = judged_by(monkeypatch, Mumbles())
    with pytest.raises(
        StageError, match=r"no verdict on 8 of 48 responses \(no answer tag: 8\)"
    ) as e:
        judge.run(spec_of(retries=1), context)
    assert str(tmp_path / "verdicts.sqlite") in str(e.value)
    assert mumbling.asked.total() == 8 + 4 + 4, "it stopped after the first shard"
    assert not list((context.folder / "rewards").glob("*.parquet")), "to be asked again"
    # Half of the 48 are missing in the end, 24 of them wrong ones said twice.
    metrics = judge.run(spec_of(retries=1, max_missing=0.5), context)
    assert metrics["missing"] == 24 and metrics["missing_reasons"] == {"no answer tag": 24}
    found = rewards(context)
    assert [row["reward"] for row in found if row["sample"] == 0] == [1.0] * QUESTIONS
    assert [row["reward"] for row in found if row["sample"] in (1, 2)] == [None] * 24
    # A stage that is done is never looked at again; one that is made anew asks a better judge.
    for path in (context.folder / "rewards").glob("*.parquet"):
        path.unlink()
    better = judged_by(monkeypatch, StandIn())
    assert judge.run(spec_of(), context)["missing"] == 0
    assert all(WRONG in prompt or "SCORE" not in prompt for prompt in better.asked)


def test_a_share_that_may_be_missing_is_of_the_whole_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnceMute(StandIn):
        def ask(self, chats: Sequence[Chat]) -> Iterator[tuple[int, Reply]]:
            first = not self.asked
            for place, reply in super().ask(chats):
                yield place, Reply(text=None, error="refused") if first and place < 2 else reply

    context, _ = stored(tmp_path)
    judged_by(monkeypatch, OnceMute())
    # 3 of the first shard's 16, 3 of all 48.
    metrics = judge.run(spec_of(retries=0, max_missing=0.1), context)
    assert metrics["missing_reasons"] == {"no reply: refused": 3}


# ------------------------------------------------------------------------------- a model run here


@pytest.fixture
def local(folders: tuple[Path, Path]) -> LocalJudge:
    return LocalJudge(name="large", model=ModelRef(path=str(folders[1])), precision="fp32")


def test_a_tiny_teacher_gives_no_verdict_and_that_is_said(
    tmp_path: Path, local: LocalJudge
) -> None:
    context, _ = stored(tmp_path)
    settings = {"max_new_tokens": 3, "retries": 0}
    with pytest.raises(
        StageError, match=r"no verdict on 12 of 48 .*no answer tag: 12.*max_missing"
    ):
        judge.run(spec_of(local, **settings), context)
    metrics = judge.run(spec_of(local, max_missing=1.0, **settings), context)
    assert metrics["missing"] == 3 * QUESTIONS
    name = LocalAsker(local, context).name
    assert re.fullmatch(r"teacher:large@[0-9a-f]{12}", name)
    assert metrics["judges"] == {name: 3 * QUESTIONS, "rule:undoubted": QUESTIONS}


def chats() -> list[Chat]:
    texts = ["red or blue?", "how many shapes are there, in words?", "<|im_end|>", "which?"]
    return [
        Chat(messages=(Message(role="user", text=text),), max_tokens=3 + 2 * (n % 2))
        for n, text in enumerate(texts)
    ]


def test_replies_do_not_depend_on_the_batch_and_keep_their_limits(
    tmp_path: Path, local: LocalJudge
) -> None:
    stored(tmp_path)
    replies = []
    for size in (1, 3, 64):
        asker = LocalAsker(local, context_of(tmp_path, generation_batch=size))
        found = dict(asker.ask(chats()))
        assert set(found) == {0, 1, 2, 3}
        replies.append(found)
    assert replies[0] == replies[1] == replies[2]
    again = LocalAsker(local, context_of(tmp_path))
    assert list(again.ask([])) == [] and again._opened is None, "nothing asked, nothing loaded"


def test_other_weights_have_another_name(
    tmp_path: Path, folders: tuple[Path, Path], local: LocalJudge
) -> None:
    import shutil

    context, _ = stored(tmp_path)

    def at(path: Path) -> LocalJudge:
        return local.model_copy(update={"model": ModelRef(path=str(path))})

    for name in ("same", "tuned"):
        shutil.copytree(folders[1], tmp_path / name)
    weights = load_file(tmp_path / "tuned" / "model.safetensors")
    trained = {name: weight * 1.01 for name, weight in weights.items()}
    save_file(trained, tmp_path / "tuned" / "model.safetensors", {"format": "pt"})
    half = local.model_copy(update={"precision": "bf16"})
    judges = (local, at(tmp_path / "tuned"), half)
    names = {LocalAsker(one, context).name for one in judges}
    assert len(names) == 3
    assert LocalAsker(at(tmp_path / "same"), context).name == LocalAsker(local, context).name


# ---------------------------------------------------------------------------------------- a server


def test_a_server_judges_through_an_outage(tmp_path: Path) -> None:
    context, rows = stored(tmp_path)
    gone = False

    def script(question: str, nth: int) -> Act:
        return (503, {}) if gone else "answer"

    with FaultServer(script, served=SERVED) as server:

        def says(question: str) -> str:
            nonlocal gone
            gone = gone or (not back and server.answered.total() == 20)
            return said(question)

        back = False
        server.says = says
        address = ServerAddress(url=server.url, concurrency=3, attempts=1, timeout=5.0)
        context = context_of(tmp_path, server=address)
        with pytest.raises(ServerGoneError, match="127.0.0.1"):
            judge.run(spec_of(), context)
        before = Counter(server.answered)
        gone, back = False, True
        metrics = judge.run(spec_of(), context)
        assert [row["reward"] for row in rewards(context)] == wanted(rows)
        assert metrics["judges"][f"server:{SERVED}"] == 3 * QUESTIONS
        after = Counter(server.answered)
        judged = {question for question in after if "mark" in question}
        assert len(judged) == 2 * 2 * QUESTIONS
        again = {q for q in judged if after[q] > 1}
        assert all(before[q] == 1 and after[q] == 2 for q in again)
        assert len(again) <= 8, "first calls of the shard that was under way"
        assert server.most_open <= 3


# ---------------------------------------------------------------------------------- an evaluation


def test_a_judge_is_the_yardstick_of_an_evaluation(
    tmp_path: Path, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    from masters.data.tables import ANSWERS
    from masters.recipe import Prompt
    from masters.specs import EvaluateSpec
    from masters.stages import evaluate

    class Picks(StandIn):
        """Right for one half of the questions, nothing to be read of one."""

        def ask(self, chats: Sequence[Chat]) -> Iterator[tuple[int, Reply]]:
            for place, reply in super().ask(chats):
                text, prompt = reply.text or "", chats[place].messages[-1].text
                if "SCORE" in prompt:
                    number = len(self.asked)
                    text = "?" if number == 3 else re.sub(r">[01]<", f">{number % 2}<", text)
                yield place, Reply(text=text)

    def spec(**judge: Any) -> EvaluateSpec:
        rule = AccuracyRule(kind="judge", judge=Judge(model="server", name=SERVED, **judge))
        return EvaluateSpec(
            model=ModelRef(path=str(folders[0])), data=ScenesSource(count=8, seed=5),
            prompt=Prompt(suffix=None), benchmark="held_out", rule=rule, max_new_tokens=4,
            precision="fp32",
        )  # fmt: skip

    context = context_of(tmp_path)
    judged_by(monkeypatch, Picks())
    with pytest.raises(StageError, match="no verdict on 1 of 8 responses"):
        evaluate.run(spec(retries=0), context)
    assert not list((context.folder / "answers").glob("*.parquet"))
    asker = judged_by(monkeypatch, Picks())
    # The verdict that was missing is asked for again, and comes.
    metrics = evaluate.run(spec(retries=0), context)
    assert asker.asked.total() == 2 and metrics["missing"] == 0
    rows = read_shards(context.folder / "answers", ANSWERS).to_pylist()
    assert {row["score"] for row in rows} == {0.0, 1.0}
    assert [row["correct"] for row in rows] == [row["score"] == 1.0 for row in rows]
    results = json.loads((context.folder / "results.json").read_text())["rows"]
    headline = next(row for row in results if row["kind"] == "all")
    assert headline["value"] == sum(row["score"] for row in rows) / 8 == metrics["accuracy"]
