"""The documents say what is so: snippets run, commands exist, the page of keys is the schema's."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import typer
from PIL import Image

import masters.run
from masters.calibration.teacher import find_subject
from masters.cli import app
from masters.data.sources import open_questions
from masters.measuring.output import are_evaluations
from masters.measuring.speed_subjects import find_subjects
from masters.plan import Plan, make_plan
from masters.recipe import Recipe, load_recipe, resolved_yaml

ROOT = Path(__file__).parents[2]
CONFIGS = "tests/configs/SOURCES.md"
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    *(
        f"docs/{name}.md"
        for name in (
            "ablate",
            "architecture",
            "benchmarks",
            "calibrate",
            "data",
            "decisions",
            "engines",
            "evaluation",
            "families",
            "gpu",
            "judge",
            "judging",
            "masks",
            "methods",
            "scaling",
            "serving",
            "training_engines",
            "verifiers",
        )  # fmt: skip
    ),
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SOURCE = ROOT / "src" / "masters"


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [body for found, body in FENCE.findall(text) if found == language]


def commands(page: str) -> Iterator[list[str]]:
    """The words of every ``masters`` command in the shell blocks of a page."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["masters"]:
                yield words[1:]


def recipes_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "generate_recipes", ROOT / "docs" / "generate_recipes.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_page_of_keys_is_that_of_the_schema() -> None:
    committed = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert committed == recipes_generator().page(), "run `make recipes` and commit docs/recipes.md"


def test_the_page_of_keys_has_every_key() -> None:
    page = recipes_generator().page()
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    anchors = {recipes_generator()._anchor(heading) for heading in headings}
    assert set(re.findall(r"\(#([\w-]+)\)", page)) <= anchors
    for name in ("max_ratio", "min_span", "questions_per_step", "on_bad", "trackers", "rule"):
        assert f"| `{name}` |" in page
    assert set(Recipe.model_fields) <= set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))


@pytest.mark.parametrize("number", range(len(blocks("README.md", "python"))))
def test_python_of_the_readme_runs(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Plan] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(masters.run, "run_plan", ran.append)
    code = blocks("README.md", "python")[number]
    exec(compile(code, f"README.md, python block {number}", "exec"), {"__name__": "__main__"})
    assert len(ran) == code.count("run_plan(")
    assert all(stage.status == "to do" for plan in ran for stage in plan.stages)


def test_settings_of_the_readme_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in blocks("README.md", "yaml"):
        name = text.splitlines()[0].removeprefix("# ")
        (tmp_path / name).write_text(text)
    for recipe in ("sft", "distill", "distill_responses", "mask_progressive", "masters"):
        made = make_plan(load_recipe(recipe, "qwen.yaml", ["data.count=10000"]), tmp_path)
        assert made.absent and made.stages[-1].kind == "evaluate"
    grown = make_plan(load_recipe("grown.yaml", None, ["data.count=10000"]), tmp_path)
    assert {"train/0-mid", "train/1-large"} <= set(grown.by_name)


def test_ladders_of_the_methods_page_plan(tmp_path: Path) -> None:
    setting = tmp_path / "setting.yaml"
    named = ", ".join(f"{{name: {name}, path: o/{name}}}" for name in ("mid", "teacher"))
    setting.write_text(
        f"models: {{student: {{path: o/s}}, teachers: [{named}]}}\n"
        "data: {train: t.jsonl, test: e.jsonl, count: 10000}\n"
    )
    ladders = blocks("docs/methods.md", "yaml")
    last = []
    for text in ladders:
        (tmp_path / "ladder.yaml").write_text(text)
        plan = make_plan(load_recipe(tmp_path / "ladder.yaml", setting), tmp_path)
        last.append(plan.stage("evaluate/student").inputs["model"])
    assert last == ["train/1-teacher", "train/1-mid", "train/2-student@0"]


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs, options and recipes of every command; the settings load."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen.yaml").write_text(blocks("README.md", "yaml")[0])
    (tmp_path / "calibrated.yaml").write_text(resolved_yaml(load_recipe("masters", "qwen.yaml")))
    verbs: Any = typer.main.get_command(app)
    for words in commands(page):
        verb = verbs.commands[words[0]]
        if hasattr(verb, "commands"):
            words = words[1:]
            verb = verb.commands[words[0]]
        context = verb.make_context(words[0], list(words[1:]))
        given = context.params
        named = given.get("recipes") or ([given["recipe"]] if given.get("recipe") else [])
        evaluations = words[0] == "compare" and are_evaluations(named)
        for recipe in () if evaluations else named:
            load_recipe(recipe, given["profile"], given["set_"] or ())
        if words[0] == "speed":
            find_subjects(
                given["models"], data=given["data"], profile=given["profile"],
                overrides=given["set_"] or (),
            )  # fmt: skip
        if words[0] == "calibrate":
            find_subject(
                given["teacher"],
                name=given["name"],
                questions=given["questions"],
                profile=given["profile"],
                overrides=given["set_"] or (),
            )


def test_stage_names_of_the_commands_exist(tmp_path: Path) -> None:
    plan = make_plan(load_recipe("masters", "tiny"), tmp_path)
    shown = [words[1] for page in PAGES for words in commands(page) if words[0] == "show"]
    assert shown and set(shown) <= set(plan.by_name)
    listed = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert all(name in listed for name in plan.by_name)


@pytest.mark.parametrize("page", ("README.md", "docs/data.md"))
def test_rows_of_questions_are_read(page: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("chart.png", "street.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name)
    for text in blocks(page, "jsonl"):
        (tmp_path / "rows.jsonl").write_text(text)
        source = SimpleNamespace(kind="jsonl", path=str(tmp_path / "rows.jsonl"))
        assert len(open_questions(source)) == len(text.splitlines())
    for text in blocks(page, "json"):
        (tmp_path / "rows.json").write_text(text)
        turns = sum(len(row["conversations"]) for row in json.loads(text))
        source = SimpleNamespace(kind="llava", path=str(tmp_path / "rows.json"))
        assert len(open_questions(source)) == turns // 2


@pytest.mark.parametrize("page", (*PAGES, "docs/sizes.md", "docs/verifiers.md", CONFIGS))
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        file, _, anchor = target.partition("#")
        if target.startswith("http"):
            continue
        path = ((ROOT / page).parent / file) if file else ROOT / page
        assert path.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {recipes_generator()._anchor(heading) for heading in headings}, target


def test_files_and_functions_of_the_methods_page_exist() -> None:
    """Every ``file.py`` is there, and defines each `name` that stands before "in `file.py`"."""
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for file in set(re.findall(r"`([\w/]+\.py)`", text)):
        assert (SOURCE / file).is_file(), file
    named = re.findall(r"((?:`[\w.]+`(?:, | and )?)+) in `([\w/]+\.py)`", text)
    assert len(named) >= 15
    for names, file in named:
        defined = (SOURCE / file).read_text(encoding="utf-8")
        for name in re.findall(r"`(?:\w+\.)?(\w+)`", names):
            assert re.search(rf"(?:def|class) {name}\b", defined), f"{name} in {file}"
