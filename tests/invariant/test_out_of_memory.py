"""A stage that runs out of memory says what it was doing and which settings to lower."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from masters import load_recipe, make_plan
from masters.artifacts import StageContext
from masters.dispatch import dispatch_stage
from masters.errors import StageError
from masters.generation.engine import TransformersEngine
from masters.models.memory import doing, is_out_of_memory
from masters.plan import read_plan
from masters.stages import opening, out_of_memory
from masters.training import student, teacher_signal
from masters.training.token_scores import token_scores

CUDA = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB"


def full(*_: Any, **__: Any) -> Any:
    """What a device without room does."""
    raise torch.OutOfMemoryError(CUDA)


def full_in_a_step(hidden_S: Any, head_S: Any, hidden_T: Any, *rest: Any) -> Any:
    """Room for the first use, which asks no teacher, and none for the step."""
    return full() if hidden_T is not None else token_scores(hidden_S, head_S, hidden_T, *rest)


@pytest.fixture
def runs(whole: Path, tmp_path: Path) -> Callable[..., str]:
    """Runs a stage of the finished run again, elsewhere; the message it fails with."""
    plan = read_plan(whole / "masters.plan.json")

    def run(name: str, spec: Mapping[str, Any] | None = None, **runtime: Any) -> str:
        stage = plan.by_name[name]
        context = StageContext(
            folder=tmp_path,
            inputs={role: plan.by_name[other].folder for role, other in stage.inputs.items()},
            runtime=plan.recipe.runtime.model_copy(update={"jobs": 1, **runtime}),
            progress=lambda done, total, note: None,
        )
        with pytest.raises(StageError) as caught:
            dispatch_stage(stage.spec.model_copy(update=dict(spec or {})), context)
        assert is_out_of_memory(caught.value.__cause__ or caught.value)
        return str(caught.value)

    return run


def listed(message: str) -> list[str]:
    """The settings of a message, each without its value, in order."""
    advice = message.split("Lower, in this order: ")[1].split(". With another")[0]
    return [part.split(". ", 1)[1].split(" ")[0] for part in advice.split("; ")]


TRAINING = [
    "runtime.micro_batch_questions",
    "runtime.gradient_checkpointing",
    "runtime.micro_batch_responses",
    "prompt.max_pixels",
    "method.responses.max_new_tokens",
    "runtime.teacher_device",
    "method.optimiser.moments",
    "models.student.lora",
]


def test_training(runs: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(student, "token_scores", full_in_a_step)
    message = runs("train/0-teacher", micro_batch_questions=6, gradient_checkpointing=False)
    assert message.startswith(
        "out of memory while training on step 1: CUDA out of memory. Tried to allocate 2.50 GiB. "
        "Lower, in this order: 1. runtime.micro_batch_questions (6); "
    )
    assert listed(message) == TRAINING
    assert "2. runtime.gradient_checkpointing (false) to true; " in message
    assert "method.responses.max_new_tokens (8)" in message


def test_only_what_can_still_go_down(
    runs: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(student, "token_scores", full_in_a_step)
    message = runs(
        "train/0-teacher",
        micro_batch_questions=1,
        gradient_checkpointing=True,
        teacher_device="offload",
    )
    rest = [TRAINING[i] for i in (2, 3, 4, 6, 7)]
    assert listed(message) == rest


def test_the_teachers_pass(runs: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_signal, "response_states", full)
    message = runs("train/0-teacher", jobs=3)
    assert message.startswith("out of memory while running the teacher (training on step 1): ")
    assert "runtime.jobs" in listed(message) and "runtime.teacher_device" in listed(message)
    assert not {"method.optimiser.moments", "models.student.lora"} & set(listed(message))


def test_the_update(runs: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    message = runs("train/0-teacher")
    assert message.startswith("out of memory while updating the weights in step 1: ")
    assert listed(message) == TRAINING[5:]


@pytest.mark.parametrize(
    "name, doing_what, first",
    [
        ("train/0-teacher", "validating after step 0", ["runtime.generation_batch"]),
        ("generate/0-teacher/teacher", "generating responses", ["runtime.generation_batch"]),
        ("generate/0-teacher/student", "generating responses", ["runtime.generation_batch"]),
        ("evaluate/teacher-teacher", "generating answers", ["runtime.generation_batch"]),
    ],
)
def test_generation(
    name: str,
    doing_what: str,
    first: list[str],
    runs: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TransformersEngine, "_run", full)
    message = runs(name, generation_batch=256)
    assert f"while {doing_what}: " in message and "runtime.generation_batch (256)" in message
    teacher = "runtime.teacher_device" in listed(message)
    assert teacher == ("student" not in name)
    assert listed(message)[:1] == first


def test_scoring(runs: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(student, "token_scores", full)
    message = runs("score/0-teacher/teacher")
    assert message.startswith("out of memory while scoring responses: ")
    assert listed(message) == [TRAINING[i] for i in (0, 2, 3, 4)]


def test_a_signal_and_a_split_group_have_the_same_settings(whole: Path) -> None:
    """The stage that stores a teacher's signal reads groups as a step does."""
    plan = make_plan(
        load_recipe("masters", profile="tiny", overrides=["method.signal=hidden"]), whole
    )
    (stage,) = (stage for stage in plan.stages if stage.spec.kind == "signal")
    said = out_of_memory.to_lower(stage.spec, plan.recipe.runtime, "running the teacher")
    named = [text.split(" ")[0] for text in said]
    assert [name for name in named if name != "runtime.jobs"][:2] == [TRAINING[0], TRAINING[2]]


def test_loading(runs: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "load_model", full)
    message = runs("generate/0-teacher/teacher")
    assert message.startswith("out of memory while loading the teacher ")
    assert listed(message) == ["runtime.teacher_device"]


def test_the_host_is_full(runs: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    from masters.stages import jury

    def host(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(jury, "verify", host)
    message = runs("judge/0-teacher/teacher")
    assert message.startswith("out of memory while computing the stage judge: no room. Close ")


def test_a_real_allocation_that_fails_is_told_apart() -> None:
    with pytest.raises(RuntimeError) as caught, doing("reserving"), doing("asking"):
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert caught.value.__notes__ == ["asking", "reserving"]
    for other in (RuntimeError("shapes differ"), ValueError("CUDA out of memory")):
        assert not is_out_of_memory(other)
        with pytest.raises(type(other)) as same, doing("nothing"):
            raise other
        assert not hasattr(same.value, "__notes__")


def test_every_kind_of_work_has_its_settings() -> None:
    for helps in out_of_memory._HELPS.values():
        assert set(helps) <= set(out_of_memory._SETTINGS)
