"""``masters plan --sizes``: counted from configurations, without weights and without training."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from masters import curriculum
from masters.cli import app
from masters.data.scenes import scene_vocabulary
from masters.models.load import load_model
from masters.models.tiny import TINY_SIZES, write_tiny_model
from masters.plan import Plan, make_plan
from masters.plan_view import byte_text
from masters.recipe import Mask, ModelSource, Phase, load_recipe
from masters.sizes import model_size, plan_sizes
from masters.specs import GenerateSpec, SignalSpec
from masters.stages.generate import planned_pairs
from tests.running import environment

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "tests" / "configs"
LADDER = ROOT / "docs" / "examples" / "internvl3_8b_ladder.yaml"
TEACHERS = ("14B", "38B", "78B")


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "generate_sizes", ROOT / "docs" / "generate_sizes.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ladder_sets() -> list[str]:
    return [f"models.student.path={CONFIGS}/InternVL3-8B-hf"] + [
        f"models.teachers.{number}.path={CONFIGS}/InternVL3-{size}-hf"
        for number, size in enumerate(TEACHERS)
    ]


def plans(*words: str, sets: Sequence[str] = ()) -> str:
    """What ``masters plan WORDS`` prints, in this process."""
    pairs = [word for value in sets for word in ("--set", value)]
    done = CliRunner().invoke(app, ["plan", *words, *pairs], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.stdout


def tiny_plan(out: Path, *overrides: str) -> Plan:
    small = ("data.train.count=96", "method.optimiser.questions_per_step=16")
    return make_plan(load_recipe("masters", "tiny", (*small, *overrides)), out)


def test_the_committed_page_is_what_its_command_prints() -> None:
    committed = (ROOT / "docs" / "sizes.md").read_text(encoding="utf-8")
    assert committed == generator().page(), "run `make recipes` and commit docs/sizes.md"


def test_the_papers_largest_setting_as_json(tmp_path: Path) -> None:
    words = (str(LADDER), "--sizes", "--json", "--out", str(tmp_path))
    got = json.loads(plans(*words, sets=ladder_sets()))
    assert len(got["stages"]) == 24 and got["stages"]["train/2-78b"]["status"] == "to do"
    student, *teachers = got["models"]
    # Worked out by hand from config.json: the language model of Qwen2.5-7B's shapes.
    attention = 3584 * (3584 + 512 + 512) + 4608 + 3584 * 3584
    layer = attention + 3 * 3584 * 18944 + 2 * 3584
    head = 151674 * 3584
    assert student["parts"]["language"] == 28 * layer + head + 3584
    assert student["parts"]["other"] == head
    assert student["largest"] == {
        "name": "model.language_model.embed_tokens.weight",
        "shape": [151674, 3584],
        "parameters": head,
        "bytes": 2 * head,
    }
    assert student["training_bytes"] == 16 * student["parameters"]
    assert student["memory_bytes"] is None and student["masked"] == []
    assert [model["parameters"] for model in teachers] == [
        15_117_256_704, 38_388_164_992, 78_408_318_336,
    ]  # fmt: skip
    for number, (model, size) in enumerate(zip(teachers, TEACHERS, strict=True)):
        assert model["checkpoint_bytes"] == model["memory_bytes"] == 2 * model["parameters"]
        (masked,) = model["masked"]
        assert masked["phase"] == f"{number}-{size.lower()}"
        assert masked["parameters"] < model["parameters"] - model["parts"]["other"]
    # 1,500,000 questions make 46,875 steps of 32, and each is asked eight times, in three phases.
    assert got["totals"] == {
        "questions": 1_500_000,
        "responses": {"teacher": 18_000_000, "student": 18_000_000, "all": 36_000_000},
        "optimiser_steps": 3 * 46_875,
    }


def test_the_mask_of_each_phase_is_what_is_counted() -> None:
    """Scope as the phase has it; a phase without mask, or with ratio 0 alone, masks nothing."""
    whole = Mask()
    phases = [
        ("0", Phase(mask=whole)),
        ("1", Phase(mask=Mask(parts=("language",), exclude=("*.mlp.*",)))),
        ("2", Phase(mask=Mask(max_ratio="0"))),  # type: ignore[arg-type]
        ("3", Phase()),
    ]
    source = ModelSource(path=str(CONFIGS / "InternVL3-2B-hf"))
    full, narrow = model_size(source, "teacher", phases=phases).masked
    assert (full.phase, narrow.phase) == ("0", "1")
    assert narrow.tensors == 28 * 4, "q, k, v and o of every layer"
    assert narrow.parameters == 28 * (2 * 1536 * 1536 + 2 * 1536 * 256)
    assert full.parameters > 10 * narrow.parameters


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("method.phases.0.epochs=2.5",),
        ("method.responses.full_cross=true", "method.responses.student=2"),
        ("method.responses.resample=mask_stage",),
        ("method.phases.0.iterations=9",),
    ],
)
def test_responses_are_those_that_the_stages_plan(
    overrides: tuple[str, ...], tmp_path: Path
) -> None:
    plan = tiny_plan(tmp_path, *overrides)
    sizes = plan_sizes(plan)
    expected = {"teacher": 0, "student": 0}
    for stage in plan.stages:
        if isinstance(stage.spec, GenerateSpec):
            expected[stage.spec.source] += stage.spec.samples * len(planned_pairs(stage.spec, 96))
    assert sizes.responses == expected
    assert sizes.questions == 96
    assert sizes.steps == plan.curriculum[-1].stop


@pytest.mark.parametrize(
    ("overrides", "pairs"),
    [
        ((), 96),
        # Two epochs of 6 steps under 5 ratios: a question comes twice, half of them at one ratio.
        (("method.phases.0.epochs=2",), None),
        (("method.responses.resample=mask_stage",), 96),
    ],
)
def test_what_a_stored_signal_takes(
    overrides: tuple[str, ...], pairs: int | None, tmp_path: Path
) -> None:
    """The tiny teacher is 128 wide in float32; each question has 4 + 4 responses of 8 tokens."""
    assert plan_sizes(tiny_plan(tmp_path)).signals == ()
    short = ("method.responses.max_new_tokens=8", *overrides)
    plan = tiny_plan(tmp_path, "method.signal=hidden", *short)
    sizes = plan_sizes(plan)
    asked = pairs or sum(
        len(curriculum.pairs(stage.spec.schedule, 96, stage.spec.start, stage.spec.stop))
        for stage in plan.stages
        if isinstance(stage.spec, SignalSpec)
    )
    rows = min(model.head_rows for model in sizes.models)
    head, stages = 4 * 128 * rows, len(sizes.signals)
    assert {one.bytes_per_token for one in sizes.signals} == {512}
    assert {one.memory_bytes for one in sizes.signals} == {head}
    assert sum(one.tokens for one in sizes.signals) == 64 * asked
    assert sum(one.disk_bytes for one in sizes.signals) == 64 * asked * 512 + stages * head
    bf16 = ("method.signal=topk", "method.signal_k=64", "method.optimiser.precision=bf16")
    (kept, *_) = plan_sizes(tiny_plan(tmp_path, *bf16, *short)).signals
    assert (kept.bytes_per_token, kept.memory_bytes) == (388, 0)
    assert kept.disk_bytes == 388 * kept.tokens


def test_a_stored_signal_is_shown() -> None:
    shown = plans("masters", "--profile", "tiny", "--sizes", sets=["method.signal=hidden"])
    # 6,400 questions, 8 responses of 16 tokens, and a head of 512 rows.
    assert "signal/0-teacher: 512 bytes a token (hidden), at most 419.7 MB on disk" in shown
    assert "beside the student 262.1 kB of the teacher's head" in shown


@pytest.mark.parametrize("preset", TINY_SIZES)
def test_a_tiny_model_is_sized_as_it_would_be_written(preset: str, tmp_path: Path) -> None:
    write_tiny_model(tmp_path, preset, seed=0, texts=scene_vocabulary())
    tiny = ModelSource(tiny=preset, sft={})  # type: ignore[arg-type]
    described = model_size(tiny, "student")
    written = model_size(ModelSource(path=str(tmp_path)), "student")
    assert described.path == f"tiny:{preset}"
    assert described.parts == written.parts
    weights = tmp_path / "model.safetensors"
    assert written.checkpoint_bytes == described.checkpoint_bytes == 4 * written.parameters
    assert 0 < weights.stat().st_size - written.checkpoint_bytes < 50_000, "the header"
    loaded = load_model(str(tmp_path))
    assert written.parameters == sum(p.numel() for p in loaded.parameters())


def checkpoint(folder: Path, *names: str) -> None:
    """A safetensors file with these tensors, one byte each."""
    tensors = {
        name: {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]}
        for i, name in enumerate(names)
    }
    header = json.dumps(tensors).encode()
    weights = struct.pack("<Q", len(header)) + header + bytes(len(names))
    (folder / "model.safetensors").write_bytes(weights)


@pytest.mark.parametrize(
    ("written", "tensors", "tied"),
    [
        (None, (), False),  # the language model's own flag, as the published files leave it
        (None, ("language_model.lm_head.weight", "embed"), False),
        (None, ("embed",), True),
        (True, (), True),
        (False, (), False),
    ],
)
def test_whether_the_head_is_tied(
    written: bool | None, tensors: tuple[str, ...], tied: bool, tmp_path: Path
) -> None:
    """InternVL's class says tied where its published files say nothing; their heads are not."""
    config = json.loads((CONFIGS / "InternVL3-2B-hf" / "config.json").read_text(encoding="utf-8"))
    assert "tie_word_embeddings" not in config
    if written is not None:
        config["tie_word_embeddings"] = written
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if tensors:
        checkpoint(tmp_path, *tensors)
    size = model_size(ModelSource(path=str(tmp_path)), "teacher")
    assert size.parameters == 2_088_957_440 - (151_674 * 1536 if tied else 0)
    assert size.parts["other"] == (0 if tied else 151_674 * 1536)
    if tensors:
        assert size.checkpoint_bytes == len(tensors), "what the file holds"


def test_an_assistant_is_trained_and_masked_in_its_later_state(tmp_path: Path) -> None:
    phases = "{teacher: teacher, student: mid}, {teacher: mid@0, mask: {}}, {teacher: student@1}"
    recipe = load_recipe("masters_ladder", "tiny", [f"method.phases=[{phases}]"])
    models = {size.name: size for size in plan_sizes(make_plan(recipe, tmp_path)).models}
    assert models["mid"].training_bytes == 16 * models["mid"].parameters
    assert models["mid"].memory_bytes == 4 * models["mid"].parameters, "tiny models: float32"
    assert [masked.phase for masked in models["mid"].masked] == ["1-mid@0"]
    assert models["teacher"].training_bytes is None


def test_the_table_of_a_plan(tmp_path: Path) -> None:
    shutil.copytree(CONFIGS / "Qwen3-VL-2B-Instruct", tmp_path / "student")
    shutil.copytree(CONFIGS / "Qwen3-VL-30B-A3B-Instruct", tmp_path / "teacher")
    recipe = tmp_path / "moe.yaml"
    recipe.write_text(
        f"extends: masters\nmodels:\n  student: {{path: {tmp_path}/student}}\n"
        f"  teachers: [{{name: teacher, path: {tmp_path}/teacher}}]\n"
        f"data: {{train: {tmp_path}/train.jsonl, count: 320}}\n"
    )
    shown = plans(str(recipe), "--sizes", "--out", str(tmp_path / "out"))
    rows = {line.split("  ")[0]: line.split()[-1] for line in shown.splitlines() if line}
    assert rows["parameters"] == "31,070,754,032"
    assert "405 (12,597)" in shown, "tensors and the matrices in them"
    assert "34.0 GB" in shown and "62.1 GB" in shown, "16 and 2 bytes a parameter"
    assert "320 questions, 2,560 responses to generate" in shown and "10 optimiser steps" in shown
    assert "this plan can't be run" in shown


def test_plans_without_sizes_import_no_torch() -> None:
    code = (
        "import sys, masters.cli\nfrom masters.cli_options import planned\n"
        "from masters.plan_view import plan_tree\nplan_tree(planned('masters', 'tiny', [], None))\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)


def test_byte_text() -> None:
    assert [byte_text(n) for n in (0, 999, 1000, 147_456, 15_888_747_520, 1_254_000_000_000)] == [
        "0 bytes", "999 bytes", "1.0 kB", "147.5 kB", "15.9 GB", "1.3 TB",
    ]  # fmt: skip


def test_what_is_trained_of_a_student_counts(tmp_path: Path) -> None:
    """16 bytes where a weight is trained, 4 where it is frozen, 10 with moments of 8 bits."""

    def state(*overrides: str) -> int:
        (student, *_) = plan_sizes(tiny_plan(tmp_path, *overrides)).models
        assert student.training_bytes is not None
        return student.training_bytes

    (student, *_) = plan_sizes(tiny_plan(tmp_path)).models
    every, tower = student.parameters, student.parts["vision"]
    assert state() == 16 * every
    assert state("method.optimiser.moments=8bit") == 10 * every
    assert state("models.student.freeze=[vision]") == 16 * every - 12 * tower
    # Two layers of hidden 64 and ffn 128: q, k, v, o are square, gate, up and down are not.
    adapters = 2 * 4 * (4 * (64 + 64) + 3 * (64 + 128))
    assert state("models.student.lora={rank: 4}") == 4 * every + 16 * adapters
