"""What is refused before any work: two models that do not fit, on disk or on the hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from masters.errors import ModelError
from masters.models.load import DESCRIPTIONS, WEIGHT_SUFFIXES, local_folder
from masters.plan import make_plan
from masters.recipe import load_recipe
from masters.stages.preflight import check

TEXTS = ["what colour is the box?", "red", "green", "blue", "yellow"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from masters.models.tiny import write_tiny_model

    folder = tmp_path_factory.mktemp("models")
    write_tiny_model(folder / "student", "qwen3_vl_100k", seed=0, texts=TEXTS)
    write_tiny_model(folder / "teacher", "qwen3_vl_250k", seed=1, texts=TEXTS)
    return folder


def look(student: object, *teachers: object, out: Path) -> None:
    """The checks of a run of ``masters`` with a phase for each teacher."""
    named = [f"{{name: t{i}, path: {path}}}" for i, path in enumerate(teachers)]
    phases = [
        f"{{teacher: t{i}, mask: {{max_ratio: 0, step: '0.05'}}}}" for i in range(len(teachers))
    ]
    recipe = load_recipe(
        "masters",
        "tiny",
        [
            f"models.student={{path: {student}, tiny: null, sft: null}}",
            f"models.teachers=[{', '.join(named)}]",
            f"method.phases=[{', '.join(phases)}]",
            "evaluation.masking_ratios=[]",
            "data.train.count=64",
        ],
    )
    check(stage.spec for stage in make_plan(recipe, out).stages)  # type: ignore[misc]


def swap_words(folder: Path) -> None:
    """Two words of the tokenizer change places: the same tokens, other ids."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    words = content["model"]["vocab"]
    words["x"], words["y"] = words["y"], words["x"]
    path.write_text(json.dumps(content))


def other_end(folder: Path) -> None:
    """As a -Base model beside an -Instruct one."""
    for name, change in (
        ("generation_config.json", {"eos_token_id": 0}),
        ("tokenizer_config.json", {"eos_token": "<|endoftext|>"}),
    ):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>", "<|endoftext|>"))


def fewer_rows(folder: Path) -> None:
    """Rows of the head are cut off, and ordinary words with them."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["text_config"]["vocab_size"] = 300
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (swap_words, ("different vocabularies: 2 of", "'x' to the", "models of one family")),
        (other_end, ("end a response differently", "'<|im_end|>'", "'<|endoftext|>'")),
        (fewer_rows, ("different vocabularies", "lacks", "tokens of text", "(id 300)")),
    ],
)
@pytest.mark.parametrize("victim", ["student", "teacher"])
def test_a_pair_that_does_not_fit(
    spoil: Callable[[Path], None], said: tuple[str, ...], victim: str, models: Path, tmp_path: Path
) -> None:
    folders = {name: tmp_path / name for name in ("student", "teacher")}
    for name, folder in folders.items():
        shutil.copytree(models / name, folder)
    look(folders["student"], folders["teacher"], out=tmp_path / "out")
    spoil(folders[victim])
    with pytest.raises(ModelError) as error:
        look(folders["student"], folders["teacher"], out=tmp_path / "out")
    named = [f"{name} {folder}" for name, folder in folders.items()]
    assert all(part in str(error.value) for part in (*said, *named)), str(error.value)


def test_the_teacher_of_a_later_phase(models: Path, tmp_path: Path) -> None:
    """It meets a student that an earlier phase has trained: its vocabulary is that of the first."""
    large = tmp_path / "large"
    shutil.copytree(models / "teacher", large)
    look(models / "student", models / "teacher", large, out=tmp_path / "out")
    swap_words(large)
    with pytest.raises(ModelError, match=f"teacher {large} .*different vocabularies"):
        look(models / "student", models / "teacher", large, out=tmp_path / "out")


# ------------------------------------------------------------------------------------ on the hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, models: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """A hub with two models, ``org/student`` and ``org/teacher``; what was asked of it."""
    asked: list[dict[str, Any]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str] | None) -> str:
        asked.append({"name": name, "revision": revision, "patterns": allow_patterns})
        folder = tmp_path / "cache" / name
        if not folder.exists():
            ignored = None
            if allow_patterns is not None:
                ignored = shutil.ignore_patterns(*(f"*{suffix}" for suffix in WEIGHT_SUFFIXES))
            shutil.copytree(models / name.split("/")[1], folder, ignore=ignored)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def test_models_of_the_hub_are_looked_at_without_their_weights(
    hub: list[dict[str, Any]], tmp_path: Path
) -> None:
    look("org/student", "org/teacher", out=tmp_path / "out")
    assert {call["name"] for call in hub} == {"org/student", "org/teacher"}
    assert all(call["patterns"] == list(DESCRIPTIONS) for call in hub)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    swap_words(tmp_path / "cache" / "org" / "teacher")
    with pytest.raises(ModelError, match="teacher org/teacher and student org/student have diff"):
        look("org/student", "org/teacher", out=tmp_path / "out")


def test_the_patterns_bring_all_but_the_weights(models: Path) -> None:
    from fnmatch import fnmatch

    for path in (models / "student").iterdir():
        wanted = any(fnmatch(path.name, pattern) for pattern in DESCRIPTIONS)
        assert wanted == (path.suffix not in WEIGHT_SUFFIXES), path.name


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (errors.GatedRepoError, "access must be asked for"),
        (errors.RepositoryNotFoundError, "no model of that name"),
        (errors.HFValidationError, "no model of that name"),
        (errors.RevisionNotFoundError, "correct models.*.revision"),
        (errors.LocalEntryNotFoundError, "unset HF_HUB_OFFLINE"),
        (OSError, "would give: the first line"),
    ],
)
def test_what_the_hub_answers(
    kind: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = kind.__new__(kind, "the first line\nand more")  # its own __init__ wants a response

    def download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelError) as raised:
        local_folder("org/model", weights=False)
    message = str(raised.value)
    assert message.startswith("org/model: neither a local folder nor a model the hub would give")
    assert said in message
    assert "\n" not in message
