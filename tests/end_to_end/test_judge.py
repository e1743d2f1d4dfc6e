"""A served judge through the command: killed, missing verdicts, explanations, an audit."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import pytest

from masters.data.tables import REWARDS, read_shards
from masters.rewards.judging.cache import VerdictCache
from tests.fault_server import FaultServer
from tests.running import SMALL, command, environment, fails, folders, lines, read, succeeds

NAME = "a-judge"
EXPLAINED = "The response was weighed."
#: What follows from the judge's verdicts: its own stages, training and the student's evaluation.
JUDGES = ("judge/0-teacher/teacher", "judge/0-teacher/student")


def quoted(prompt: str) -> list[str]:
    return [line[2:] for line in prompt.splitlines() if line.startswith("| ")]


def says(prompt: str) -> str:
    """Nothing that can be read about a third of the questions; else a verdict of the text."""
    tag = re.search(r"<(answer-\w+)>SCORE", prompt)
    if tag is None:
        score = re.search(r">\s*([01])\s*</", prompt.replace("< ", "<"))
        return score[1] if score else "?"
    if crc32(quoted(prompt)[0].encode()) % 3 == 0:
        return "Perhaps."
    return f"{EXPLAINED}\n<{tag[1]}>{crc32(quoted(prompt)[-1].encode()) % 2}</{tag[1]}>"


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer(served=NAME) as started:
        started.says = says
        yield started


def sets(server: FaultServer, **judge: object) -> tuple[str, ...]:
    said = "".join(f", {key}: {value}" for key, value in judge.items())
    return (
        *SMALL,
        f"method.rewards.accuracy={{kind: judge, judge: {{model: server, name: {NAME}{said}}}}}",
        f"runtime.server={{url: {server.url}, concurrency: 8}}",
        "runtime.jobs=1",
    )


def words(out: Path) -> tuple[str, ...]:
    return ("masters", "--profile", "tiny", "--out", str(out))


def judge_killed(out: Path, server: FaultServer, when: Callable[[str], bool]) -> None:
    """`masters judge`, killed by SIGKILL while it waits for the answer to a prompt."""
    process = subprocess.Popen(
        command("judge", *words(out), sets=sets(server, retries=0, max_missing=1)),
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip

    def kills(prompt: str) -> str:
        if when(prompt):
            os.kill(process.pid, signal.SIGKILL)
        return says(prompt)

    server.says = kills
    process.communicate(timeout=300)
    server.says = says
    assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def judged(whole: Path, server: FaultServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole run of `whole` again, with a judge that was killed once half-way."""
    out = tmp_path_factory.mktemp("judged") / "out"
    shutil.copytree(whole, out)
    seconds: list[str] = []

    def half_way(prompt: str) -> bool:
        if "SCORE" not in prompt:
            seconds.append(prompt)
        return len(seconds) == 60

    judge_killed(out, server, half_way)
    with VerdictCache(out / "verdicts.sqlite") as cache:
        kept = [entry for entry in cache.read() if entry.verdict.reward is not None]
    assert len(kept) >= 40
    before = Counter(server.answered)
    said = succeeds("run", *words(out), sets=sets(server, retries=0, max_missing=1))
    (out / "said").write_text(said)
    known = {(entry.question, entry.response) for entry in kept}
    for prompt, times in (Counter(server.answered) - before).items():
        texts = quoted(prompt)
        if "SCORE" in prompt and times:
            asked_for_another = Counter(e.question for e in kept)[texts[0]] == 0
            assert asked_for_another or (texts[0], texts[-1]) not in known
    return out


def test_missing_verdicts_are_counted_and_leave_their_groups(judged: Path) -> None:
    stages = folders(judged)
    usable: Counter[str] = Counter()
    for name in JUDGES:
        rows = read_shards(stages[name] / "rewards", REWARDS).to_pylist()
        record = read(stages[name] / "record.json")["metrics"]
        missing = [row for row in rows if row["reward"] is None]
        assert 0 < len(missing) < len(rows)
        assert record["missing"] == len(missing) and record["responses"] == len(rows)
        assert record["missing_reasons"] == {"no answer tag": len(missing)}
        line = f"{name}: {len(missing)} of {len(rows)} responses ("
        assert line in (judged / "said").read_text()
        usable.update({row["question_id"]: 0 for row in rows})
        usable.update(row["question_id"] for row in rows if row["reward"] is not None)
    train = stages["train/0-teacher"]
    steps = lines(train / "metrics.jsonl")
    small = sum(count < 2 for count in usable.values())
    assert small > 0, "all responses to a third of the questions"
    assert sum(step["groups/dropped"] for step in steps) == small
    total = sum(read(stages[name] / "record.json")["metrics"]["missing"] for name in JUDGES)
    assert read(train / "record.json")["metrics"]["responses_without_verdict"] == total
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]


def test_too_many_missing_stop_the_stage_with_what_to_do(
    judged: Path, server: FaultServer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(judged, out)
    for name in JUDGES:
        shutil.rmtree(folders(out)[name])
    before = server.answered.total()
    message = fails("judge", *words(out), sets=sets(server, retries=0, max_missing=0.1))
    assert "the judge gave no verdict on" in message and "raise max_missing" in message
    assert str(out / "verdicts.sqlite") in message
    first = [p for p in server.answered if crc32((quoted(p) or [""])[0].encode()) % 3 == 0]
    assert server.answered.total() - before <= len(first) + 1, "what is known is not asked"
    said = succeeds("judge", *words(out), sets=sets(server, retries=0, max_missing=1))
    for name in JUDGES:
        mine, theirs = (
            read_shards(folders(run)[name] / "rewards", REWARDS) for run in (out, judged)
        )
        assert mine.equals(theirs)
    assert re.search(r"no answer tag +missing", said) and re.search(r"right +\d", said)


def test_a_server_that_is_not_there_is_told_before_the_work(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    with FaultServer(served=NAME) as gone:
        asked = sets(gone)
    message = fails("judge", *words(out), sets=(*asked, "runtime.server.attempts=1"))
    assert "judge/0-teacher/teacher will ask a server to judge" in message
    assert gone.url.removesuffix("/v1") in message and "--until STAGE" in message


def test_the_judges_words_are_shown(judged: Path) -> None:
    rows = read_shards(folders(judged)[JUDGES[1]] / "rewards", REWARDS).to_pylist()
    row = next(row for row in rows if row["reward"] is not None and "undoubted" not in row["judge"])
    said = succeeds("show", JUDGES[1], "--question", row["question_id"], "--out", str(judged))
    assert f"by server:{NAME}: " in said
    assert re.search(rf"explained +{re.escape(EXPLAINED)}", said)


def test_an_audit_without_a_terminal(judged: Path, server: FaultServer, tmp_path: Path) -> None:
    asked = sets(server, retries=0, max_missing=1)
    said = succeeds("judge", *words(judged), "--audit", "20", sets=asked)
    assert "0 marked" in said and "judge and rule" in said
    sample = judged / "audit" / "masters.sample.jsonl"
    rows = [json.loads(line) for line in sample.read_text().split("\n") if line]
    assert 20 <= len(rows) <= 24
    for number, row in enumerate(rows):
        row["mark"] = ("right", "wrong")[number % 2]
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = succeeds("judge", *words(judged), "--audit", "20", "--answers", str(answers), sets=asked)
    assert f"{len(rows)} marked, 0 of them unsure" in said
    found = read(judged / "audit" / "masters.agreement.json")["agreements"]
    pairs = {(one["first"], one["second"]): one for one in found}
    assert pairs["judge", "person"]["n"] == len(rows)
    kappa = pairs["judge", "person"]
    assert kappa["low"] < kappa["kappa"] < kappa["high"]
