"""`show` over a real plan whose stage folders hold made-up rows."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from masters.data.tables import ANSWERS, RESPONSES, REWARDS, SCORES, shard_name, write_shard
from masters.errors import StageError
from masters.plan import Plan, make_plan
from masters.recipe import load_recipe
from masters.show import model_of, show_question

QUESTION = "scene-3-2"
GENERATED = "generate/0-large/teacher"


def scenes(count: int, seed: int) -> str:
    return f"{{kind: scenes, count: {count}, seed: {seed}}}"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    sft = "{steps: 10, lr: 0.001, questions_per_step: 4}"
    recipe = load_recipe(
        "masters",
        overrides=[
            f"models.student={{tiny: qwen3_vl_240k, sft: {sft}}}",
            f"models.teachers=[{{name: large, tiny: qwen3_vl_1m, sft: {sft}}}]",
            f"data.train={scenes(20, 3)}",
            f"data.test={scenes(10, 4)}",
            "data.validation=null",
            "method.phases=[{teacher: large, mask: {max_ratio: '0.2', step: '0.1'}}]",
            "method.optimiser.questions_per_step=4",
        ],
    )
    made = make_plan(recipe, tmp_path)
    store(made)
    return made


def store(plan: Plan) -> None:
    """Two teacher responses, one judged, one without a verdict; both scored; one answer."""
    keys = [
        {"question_id": QUESTION, "source": "teacher", "ratio": 2000, "round": 0, "sample": sample}
        for sample in range(2)
    ]
    rest = {"model": "large", "text": "two [bold]\x07", "token_ids": [7, 8], "finish": "stop"}
    rest |= {"logprobs": [-0.25, -0.5], "seed": 11}
    folder = plan.stage(GENERATED).folder
    write_shard(folder / "responses" / shard_name(0), [key | rest for key in keys], RESPONSES)
    rewards = [
        keys[0] | {"reward": 1.0, "reason": "exact", "judge": "rule"},
        keys[1] | {"reward": None, "reason": "no verdict", "judge": "rule"},
    ]
    folder = plan.stage("judge/0-large/teacher").folder
    write_shard(folder / "rewards" / shard_name(0), rewards, REWARDS)
    scores = [key | {"reference_logprobs": [-0.75, -1.0]} for key in keys]
    folder = plan.stage("score/0-large/teacher").folder
    write_shard(folder / "scores" / shard_name(0), scores, SCORES)
    answer = {"question_id": "scene-4-1", "ratio": 0, "text": "red", "correct": True, "score": 1.0}
    answer |= {"kind": "colour", "label": "red", "fields": "{}", "finish": "stop"}
    folder = plan.stage("evaluate/student").folder
    write_shard(folder / "answers" / shard_name(0), [answer], ANSWERS)


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for model loading; collects the paths asked for."""
    asked: list[str] = []

    def load(path: str, *, revision: str | None, backend: str) -> SimpleNamespace:
        asked.append(path)
        pieces = SimpleNamespace(convert_ids_to_tokens=lambda ids: [f"p{i}" for i in ids])
        return SimpleNamespace(tokenizer=pieces)

    def encode(processor: object, question: object, image: object, prompt: object) -> object:
        return SimpleNamespace(text="<image>how many?", ids=[1, 2, 3])

    fake = {"load_processor": load}
    monkeypatch.setitem(sys.modules, "masters.models.load", SimpleNamespace(**fake))
    fake = {"encode_prompt": encode, "PromptText": SimpleNamespace, "fit_pixels": lambda i, _: i}
    monkeypatch.setitem(sys.modules, "masters.models.encode", SimpleNamespace(**fake))
    return asked


def shown(plan: Plan, stage: str, question: str) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        show_question(plan, stage, question, console)
    return capture.get()


@pytest.mark.parametrize(
    "stage", [GENERATED, "judge/0-large/teacher", "score/0-large/teacher", "train/0-large"]
)
def test_everything_around_a_response_is_printed(plan, processor, stage):
    text = shown(plan, stage, QUESTION)
    for part in (
        "teacher, ratio 0.2, sample 0",
        "teacher, ratio 0.2, sample 1",
        repr("two [bold]\x07"),
        "7 8",
        "'p7' 'p8'",
        "-0.2500 -0.5000  (sum -0.7500)",
        "-0.7500 -1.0000  (sum -1.7500)",
        "1 by rule: exact",
        "missing by rule: no verdict",
        "<image>how many?",
        "1 2 3  (3 tokens)",
    ):
        assert part in text
    image = plan.out / "show" / f"{QUESTION}.png"
    assert image.exists() and "48 x 48 pixels" in text
    name = "model/large" if stage in (GENERATED, "judge/0-large/teacher") else "model/student"
    assert processor == [str(plan.stage(name).folder / "model")]


def test_answers_are_printed(plan, processor):
    text = shown(plan, "evaluate/student", "scene-4-1")
    assert "answer at ratio 0" in text and "right, label 'red'" in text
    assert processor == [str(plan.stage("train/0-large").folder / "model")]


def test_unknown_question_names_the_nearest_and_who_has_it(plan):
    with pytest.raises(StageError, match=r"nearest ids: scene-3-.*It is in: .*evaluate/student"):
        shown(plan, GENERATED, "scene-4-1")
    with pytest.raises(StageError, match="No stage of this plan has it"):
        shown(plan, GENERATED, "elsewhere")


def test_stage_without_questions_and_unknown_stage_are_refused(plan):
    with pytest.raises(StageError, match=r"no questions. Name one of: .*generate/"):
        shown(plan, "mask/large", QUESTION)
    with pytest.raises(StageError, match="no stage 'nowhere'"):
        shown(plan, "nowhere", QUESTION)


def test_nothing_stored_yet_says_so(plan, processor):
    text = shown(plan, GENERATED, "scene-3-5")
    assert "nothing is stored for this question yet" in text
    text = shown(plan, "evaluate/start", "scene-4-1")
    assert "Stored rows are in: evaluate/student." in text


def test_model_of_a_tiny_models_own_training(plan):
    stage = plan.stage("model/student")
    assert model_of(plan, stage) == (str(stage.folder / "model"), None)
    assert model_of(plan, plan.stage("judge/0-large/teacher")) is None
