"""LoRA and a frozen tower through the command line: merged on disk, resumable, carried over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from masters.plan import read_plan
from masters.specs import TrainSpec
from masters.workers import Task
from tests.invariant.killing import Job, Moment, Nursery
from tests.invariant.test_resume import Reference, kill_and_go_on
from tests.running import SMALL, fails, folders, lines, succeeds

ADAPTED = (
    *SMALL,
    "models.student.freeze=[vision]",
    "models.student.lora={rank: 4, alpha: 8, dropout: 0.1, parts: [language, projector]}",
    "method.optimiser.precision=bf16",
    "runtime.gradient_checkpointing=true",
    "runtime.teacher_device=offload",
)
TRAIN = "train/0-teacher"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of `masters` with adapters; for reading only."""
    folder = tmp_path_factory.mktemp("adapted")
    succeeds("run", "masters", "--profile", "tiny", "--out", str(folder), sets=ADAPTED)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_the_student_is_an_ordinary_checkpoint(out: Path) -> None:
    from transformers import AutoModelForImageTextToText

    stages = folders(out)
    start, end = weights(stages["model/student"] / "model"), weights(stages[TRAIN] / "model")
    assert start.keys() == end.keys()
    assert {t.dtype for t in end.values()} == {torch.float32}
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert any("language_model" in name for name in changed)
    assert any("merger" in name for name in changed)
    tower = {name for name in start if "visual" in name and "merger" not in name}
    assert tower and not tower & changed
    assert not any(word in name for name in changed for word in ("norm", "embed", "lm_head"))
    _, report = AutoModelForImageTextToText.from_pretrained(
        stages[TRAIN] / "model", output_loading_info=True
    )
    assert not any(report.values())


def test_the_adapter_over_the_start_is_the_student(out: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    stages = folders(out)
    base = AutoModelForImageTextToText.from_pretrained(stages["model/student"] / "model")
    adapted = PeftModel.from_pretrained(base, stages[TRAIN] / "adapter").merge_and_unload()
    merged = weights(stages[TRAIN] / "model")
    for name, tensor in adapted.state_dict().items():
        torch.testing.assert_close(tensor, merged[name], rtol=0, atol=1e-6)


def test_training_starts_at_the_reference_in_bf16(out: Path) -> None:
    """Score and train are two processes with batches of their own: KL below 1e-4 nats a token."""
    log = lines(folders(out)[TRAIN] / "metrics.jsonl")
    assert log[0]["loss/kl"] < 1e-4 < log[-1]["loss/kl"]
    assert log[0]["grad_norm/total"] > 0


def test_the_optimiser_holds_adapters_only(out: Path) -> None:
    state = torch.load(folders(out)[TRAIN] / "optimiser.pt", weights_only=True)["state"]
    sizes = [moments["exp_avg"].numel() for moments in state.values()]
    adapter = load_file(folders(out)[TRAIN] / "adapter" / "adapter_model.safetensors")
    assert sorted(sizes) == sorted(tensor.numel() for tensor in adapter.values())


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    started = Nursery()
    yield started
    started.close()


def test_a_killed_training_of_adapters_goes_on(out: Path, nursery: Nursery, tmp_path: Path) -> None:
    plan = read_plan(out / "masters.plan.json")
    stage = plan.by_name[TRAIN]
    assert isinstance(stage.spec, TrainSpec) and stage.spec.lora is not None
    task = Task(
        name=TRAIN,
        spec=stage.spec,
        fingerprint=stage.fingerprint,
        folder=tmp_path / "whole",
        inputs={role: plan.by_name[name].folder for role, name in stage.inputs.items()},
        input_fingerprints=dict.fromkeys(stage.inputs, ""),
        runtime=plan.recipe.runtime,
    )
    outcome = nursery.run(Job(task=task, log=tmp_path / "whole.log"))
    reference = Reference(task=task, folder=task.folder, outcome=outcome)
    for moment in (
        Moment(event="step", call=4, torn=True),
        Moment(event="checkpoint", call=2, torn=True),
        Moment(event="export", call=2, torn=True),
        Moment(event="rename", call=outcome.calls["rename"]),
    ):
        kill_and_go_on(reference, nursery, tmp_path / "killed", [moment])


def test_adapters_run_on_within_a_phase(out: Path) -> None:
    """Each mask stage trains the same A and B on: one base under all, moments carried."""
    sets = (*ADAPTED, "method.responses.resample=mask_stage")
    succeeds("run", "masters", "--profile", "tiny", "--out", str(out), sets=sets)
    stages = folders(out)
    parts = [stages[name] for name in stages if name.startswith(f"{TRAIN}/")]
    assert len(parts) == 5
    start = weights(stages["model/student"] / "model")
    last: dict[str, torch.Tensor] = {}
    for part in parts:
        merged = weights(part / "model")
        adapter = load_file(part / "adapter" / "adapter_model.safetensors")
        for name in {key.rpartition(".lora_")[0] for key in adapter}:
            a, b = adapter[f"{name}.lora_A.weight"], adapter[f"{name}.lora_B.weight"]
            own = f"{name.removeprefix('base_model.model.')}.weight"
            torch.testing.assert_close(merged[own] - 2 * b @ a, start[own], rtol=0, atol=1e-6)
            assert b.any() and not torch.equal(b, last.get(name, torch.zeros_like(b)))
            last[name] = b
    steps = [
        torch.load(part / "optimiser.pt", weights_only=True)["state"][0]["step"].item()
        for part in parts
    ]
    assert steps == sorted(set(steps)) and steps[-1] == 6


@pytest.mark.parametrize(
    "setting, said",
    [
        ("models.teachers.0.freeze=[vision]", "no phase trains this teacher"),
        ("models.student.freeze=[vision, projector, language]", "names every part"),
        ("models.student.freeze=[language]", "which lora.parts adapts"),
        ("models.student.lora.rank=0", "rank"),
        ("runtime.teacher_device=gpu1", "teacher_device"),
    ],
)
def test_settings_that_contradict_each_other(setting: str, said: str, tmp_path: Path) -> None:
    sets = (*ADAPTED, setting)
    words = ("masters", "--profile", "tiny", "--out", str(tmp_path))
    assert said in fails("plan", *words, sets=sets)


def test_targets_that_match_nothing(out: Path, tmp_path: Path) -> None:
    """Said by the stage for a model it makes, and before any work for one on disk."""
    sets = (*ADAPTED, "models.student.lora.targets=['*query*']")
    words = ("masters", "--profile", "tiny", "--out")
    message = fails("run", *words, str(out), "--only", TRAIN, sets=sets)
    said = "lora.targets pattern '*query*' matches none of the 18 Linear layers"
    assert said in message and "names look like model.visual.merger" in message
    kept = [s for s in ADAPTED if not s.startswith("models.student.sft")]
    folder = folders(out)["model/student"] / "model"
    sets = (*kept, "models.student.sft=null", "models.student.tiny=null", *sets[-1:])
    sets = (*sets, f"models.student.path={folder}")
    message = fails("run", *words, str(tmp_path), sets=sets)
    assert said in message and not list(tmp_path.glob("stages/*/record.json"))
