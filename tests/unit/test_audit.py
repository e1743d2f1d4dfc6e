"""`masters judge --audit`: the sample, the marks that are kept, the agreement that is printed."""

from __future__ import annotations

import json
from collections import Counter
from math import isnan
from pathlib import Path

import pytest
from rich.console import Console

from masters.audit.agreement import Agreement, agreement_table, agreements
from masters.audit.command import audit
from masters.audit.marks import keep_mark, read_answers, read_marks
from masters.audit.sample import Sample, allocate, draw
from masters.data.scenes import SceneQuestions
from masters.data.tables import RESPONSES, REWARDS, read_shard, shard_name, write_shard
from masters.errors import DataError, StageError
from masters.plan import Plan, make_plan
from masters.recipe import load_recipe
from masters.rewards.rules.verdicts import Verdict
from tests.running import fails

COUNT = 60
JUDGE = "teacher:large@0123456789ab"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Judged responses to 60 scenes: the teacher's half is right more often than the student's."""
    recipe = load_recipe(
        "masters",
        "tiny",
        [
            f"data.train.count={COUNT}",
            "method.rewards.accuracy.kind=judge",
            "method.optimiser.questions_per_step=4",
        ],
    )
    made = make_plan(recipe, tmp_path)
    questions = SceneQuestions(count=COUNT, seed=3)
    for source in ("teacher", "student"):
        responses, rewards = [], []
        for number, question in enumerate(questions):
            for sample in range(2):
                key = {"question_id": question.id, "source": source, "ratio": 0, "round": 0}
                key["sample"] = sample
                right = number % 10 < (8 if source == "teacher" else 3)
                text = question.label if right else f"wrong {source} {'ab'[sample]}"
                rest = {"model": "m", "token_ids": [1], "logprobs": None, "finish": "stop"}
                responses.append({**key, **rest, "text": text, "seed": 0})
                missing = number % 10 == 9 and sample == 1
                # The judge is taken in by the student's wrong answers to every tenth question.
                reward = 1.0 if right or number % 10 == 5 else 0.0
                given = {"reward": None if missing else reward, "reason": "r", "judge": JUDGE}
                rewards.append({**key, **given})
        folder = made.stage(f"generate/0-teacher/{source}").folder
        write_shard(folder / "responses" / shard_name(0), responses, RESPONSES)
        folder = made.stage(f"judge/0-teacher/{source}").folder
        write_shard(folder / "rewards" / shard_name(0), rewards, REWARDS)
    return made


def test_each_source_and_reward_has_its_share(plan: Plan) -> None:
    sample = draw(plan, 40, seed=0)
    strata = Counter((item.source, item.reward) for item in sample.items)
    # Of 228 verdicts: teacher 96 right, 18 not; student 36 + 12 right, 66 not. Right answers of the
    # student's that the teacher gave too are looked at once.
    assert sample.judged == 240 and sample.missing == 12
    assert strata["teacher", 1.0] >= 8 and strata["student", 0.0] >= 8
    assert set(strata) == {("teacher", 1.0), ("teacher", 0.0), ("student", 1.0), ("student", 0.0)}
    keys = [(item.question.id, item.response) for item in sample.items]
    assert len(set(keys)) == len(keys)
    assert len({item.id for item in sample.items}) == len(keys)


def test_the_draw_is_its_seeds(plan: Plan) -> None:
    ids = [[item.id for item in draw(plan, 30, seed=seed).items] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    more = {item.id for item in draw(plan, 60, seed=0).items}
    assert len(set(ids[0]) - more) <= 2, "a larger sample goes on with a smaller one's marks"


def test_shares() -> None:
    a, b, c = ("student", False), ("student", True), ("teacher", True)
    assert allocate({a: 70, b: 29, c: 1}, 10) == {a: 7, b: 2, c: 1}
    assert allocate({a: 68, b: 32}, 10) == {a: 7, b: 3}
    assert allocate({a: 2, b: 1}, 10) == {a: 2, b: 1}
    assert allocate({a: 1000, c: 1}, 4) == {a: 3, c: 1}


def test_the_rule_is_beside_the_judge(plan: Plan) -> None:
    sample = draw(plan, 500, seed=0)
    fooled = [item for item in sample.items if item.reward != item.rule]
    assert fooled and all(item.response.startswith("wrong") for item in fooled)
    assert {item.judge for item in sample.items} == {JUDGE}


def truth(sample: Sample) -> dict[str, str]:
    said = {
        item.id: "wrong" if item.response.startswith("wrong") else "right" for item in sample.items
    }
    said[sample.items[0].id] = "unsure"
    return said


def test_agreement_with_a_person_who_knows(plan: Plan) -> None:
    sample = draw(plan, 500, seed=0)
    judge, rule, both = agreements(sample.items, truth(sample))
    assert (rule.first, rule.second, both.first, both.second) == ("rule", "person", "judge", "rule")
    assert judge.n == rule.n == len(sample.items) - 1 and both.n == len(sample.items)
    assert rule.kappa[0] == 1 and isnan(rule.kappa[1])
    assert rule.counts[0][1] == rule.counts[1][0] == 0
    fooled = sum(item.reward != item.rule for item in sample.items)
    assert judge.counts[0][1] in (fooled, fooled - 1) and judge.counts[1][0] == 0
    assert 0 < judge.kappa[1] < judge.kappa[0] < judge.kappa[2] < 1
    assert both.counts[0][1] == fooled


def printed(plan: Plan, count: int, **options: object) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        audit(plan, count, console, **options)  # pyright: ignore[reportArgumentType]
    return capture.get()


def test_a_person_stops_and_goes_on_and_sees_no_verdict(plan: Plan) -> None:
    typed = iter(["right", "x", "w", "u", "q"])
    shown = printed(plan, 8, ask=lambda prompt: next(typed))
    assert "1 of " in shown and "4 of " in shown and "5 of " not in shown
    assert "asked" in shown and "label" in shown and "response" in shown and "saved as" in shown
    assert JUDGE not in shown.split("judged responses")[0]
    marks = read_marks(plan.out / "audit" / "marks.jsonl")
    assert list(marks.values()) == ["right", "wrong", "unsure"]
    asked = []

    def rest(prompt: str) -> str:
        asked.append(prompt)
        return "r"

    total = len(draw(plan, 8, plan.seed).items)
    shown = printed(plan, 8, ask=rest)
    assert len(asked) == total - 3, "marked ones are not asked again"
    assert f"{total} marked, 1 of them unsure" in shown
    assert "judge and person" in shown and "rule and person" in shown
    report = json.loads((plan.out / "audit" / "masters.agreement.json").read_text())
    assert (
        report["marked"] == total and [a["n"] for a in report["agreements"]][:2] == [total - 1] * 2
    )


def test_marks_from_a_file(plan: Plan, tmp_path: Path) -> None:
    console_less = printed(plan, 30)
    assert "fill in mark in" in console_less
    path = plan.out / "audit" / "masters.sample.jsonl"
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    assert all(row["mark"] is None and "reward" not in row and "judge" not in row for row in rows)
    known = truth(draw(plan, 30, plan.seed))
    filled = [{**row, "mark": known[row["item"]]} for row in rows]
    filled.append({"item": "0" * 12, "mark": "right"})
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps(row) + "\n" for row in filled))
    shown = printed(plan, 30, answers=answers)
    assert "1 marks are of items outside this sample" in shown
    assert f"{len(rows)} marked, 1 of them unsure" in shown
    kept = (plan.out / "audit" / "marks.jsonl").read_text()
    printed(plan, 30, answers=answers)
    assert (plan.out / "audit" / "marks.jsonl").read_text() == kept, "the same marks are kept once"


def test_a_file_from_an_editor(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"item": "abc", "mark": "right"}\r\n', encoding="utf-8-sig")
    assert read_answers(path) == {"abc": "right"}
    path.write_bytes('{"item": "abc", "mark": "right"}\n'.encode("utf-16"))
    with pytest.raises(DataError, match="it is no UTF-8"):
        read_answers(path)


def test_a_graded_rule_does_not_make_the_sample_larger(plan: Plan) -> None:
    for path in (plan.stage("judge/0-teacher/student").folder / "rewards").glob("*.parquet"):
        rows = read_shard(path, REWARDS).to_pylist()
        marks = [{**row, "reward": number / len(rows)} for number, row in enumerate(rows)]
        write_shard(path, marks, REWARDS)
    assert len(draw(plan, 10, plan.seed).items) <= 10


def test_what_the_rule_cannot_judge_has_no_view_of_a_rule(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> Verdict:
        raise DataError("label 'x' is none of its choices")

    monkeypatch.setattr("masters.audit.sample.verify", cannot)
    items = draw(plan, 10, plan.seed).items
    assert [item.rule for item in items] == [None] * len(items)
    found = agreements(items, {item.id: "right" for item in items})
    assert [one.n for one in found] == [len(items), 0, 0]
    assert "judge and rule" in printed(plan, 10)


def test_all_of_one_kind_have_no_interval() -> None:
    for counts in (((3, 0), (0, 4)), ((0, 4), (0, 6)), ((3, 0), (5, 0))):
        one = Agreement(first="a", second="b", counts=counts)
        kappa, low, high = one.kappa
        assert not isnan(kappa) and isnan(low) and isnan(high)
        assert one.as_json()["low"] is None
        console = Console(width=200)
        with console.capture() as capture:
            console.print(agreement_table([one]))
        assert "-0.00" not in capture.get() and capture.get().split()[-1] == "-"


def test_a_torn_mark_is_forgotten_and_a_false_one_named(plan: Plan, tmp_path: Path) -> None:
    items = draw(plan, 8, plan.seed).items
    path = tmp_path / "marks.jsonl"
    keep_mark(path, items[0], "right")
    with open(path, "a") as file:
        file.write('{"item": "' + items[1].id + '", "ma')
    assert read_marks(path) == {items[0].id: "right"}
    keep_mark(path, items[2], "wrong")
    assert read_marks(path) == {items[0].id: "right", items[2].id: "wrong"}
    path.write_text('{"item": "abc", "mark": "maybe"}\n')
    with pytest.raises(DataError, match=r"marks.jsonl:1: got 'maybe'; expected"):
        read_marks(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_answers(tmp_path / "none.jsonl")


def test_separators_in_a_response_do_not_cut_its_line(plan: Plan, tmp_path: Path) -> None:
    from dataclasses import replace

    item = replace(draw(plan, 8, plan.seed).items[0], response="a\u2028b\x85c\nd")
    keep_mark(tmp_path / "marks.jsonl", item, "right")
    assert read_marks(tmp_path / "marks.jsonl") == {item.id: "right"}


def test_nothing_judged(plan: Plan) -> None:
    for stage in plan.stages:
        for path in (stage.folder / "rewards").glob("*.parquet"):
            path.unlink()
        for path in (stage.folder / "responses").glob("*.parquet"):
            path.unlink()
    with pytest.raises(StageError, match="no response has a verdict"):
        draw(plan, 5, 0)


def test_answers_without_audit() -> None:
    said = fails("judge", "masters", "--profile", "tiny", "--answers", "x.jsonl")
    assert "expected --audit N beside it" in said
