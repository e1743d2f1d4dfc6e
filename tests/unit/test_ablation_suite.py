"""What a suite may say, what is refused, and what its arms come to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from masters.ablation.arms import Arms, Key, Selection, budget, check_budgets, last_training
from masters.ablation.command import ask, command_of, results_folder
from masters.ablation.suite import load_suite
from masters.errors import RecipeError
from masters.plan import Plan
from masters.recipe_file import layers_of_file
from masters.specs import TrainSpec

SUITES = Path(__file__).parents[1] / "suites"
SMALL = SUITES / "small.yaml"
EVIDENCE = Path(__file__).parents[2] / "benchmarks" / "suites"


def written(folder: Path, change: dict[str, Any]) -> Path:
    """The small suite with top-level keys replaced, beside its profile."""
    content = layers_of_file(SMALL).merged | change
    (folder / "seconds.yaml").write_text((SUITES / "seconds.yaml").read_text())
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def claim(**keys: Any) -> dict[str, Any]:
    return {
        "id": "x",
        "says": "So.",
        "expects": "up",
        "first": "labels",
        "second": "distill",
    } | keys


def plans(folder: Path, **change: Any) -> Arms:
    return Arms(load_suite(written(folder, change)), folder / "out")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": [0]}, "changed.yaml: seed is not a key. Did you mean seeds?"),
        ({"claims": [claim(expect="up")]}, "claims[0].expect is not a key. Did you mean expects?"),
        ({"claims": [claim(expects="upp")]}, "claims[0].expects is 'upp'; expected 'up'"),
        ({"claims": [claim(first="label")]}, "claims[0].first is 'label', not an arm. Did you"),
        ({"claims": [claim(data=["scene"])]}, "is 'scene', not a data set. Did you mean scenes?"),
        ({"claims": [claim(second=["distill", "masked"])]}, "expected one arm on each side"),
        ({"claims": [claim(), claim()]}, "claims has 'x' twice"),
        ({"seeds": [0, 7]}, "tune.seed is 7, one of `seeds`"),
        ({"seeds": []}, "seeds is []; expected at least 1 in the list"),
        ({"seeds": [0, 0]}, "seeds has 0 twice"),
        ({"arms": {"a": {"recipe": "sft", "tune_as": "b"}}, "claims": []}, "is 'b', not an arm"),
        ({"arms": {"a": {"recipe": "sft", "tune_as": "a"}}, "claims": []}, "is tuned itself"),
        ({"vary": ["models", "data"]}, "vary[1] is 'data'; expected 'run' or 'models'"),
        ({"arms": {"a b": {"recipe": "sft"}}, "claims": []}, "letters, digits"),
    ],
)
def test_what_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        load_suite(written(tmp_path, change))
    assert said in str(error.value)


def test_a_missing_key_and_a_missing_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("about: nothing\n")
    with pytest.raises(RecipeError, match="empty.yaml: arms is missing"):
        load_suite(path)
    with pytest.raises(RecipeError, match="no such file"):
        load_suite(tmp_path / "gone.yaml")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"arms": {"a": {"recipe": "sft", "set": {"method": {"optimizer": {}}}}}, "claims": []},
            "changed.yaml, arm a on scenes: arms.a.set: method.optimizer is not a key. Did you",
        ),
        (
            {"data": {"d": {"data": {"test": {"kind": "scenes"}}}}, "claims": []},
            "arm distill on d: data.d: data.test.count is 'many'; expected a whole number",
        ),
        ({"data": {"d": {"data": {"test": None}}}, "claims": []}, "on d: has no data.test"),
        (
            {"data": {"d": {"validation": {"every": None}}}, "claims": []},
            "on d: has no validation.every",
        ),
    ],
)
def test_mistakes_in_what_is_laid_over_a_recipe_name_the_suite(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    if "count" in said:
        change["data"]["d"]["data"]["test"]["count"] = "many"
    with pytest.raises(RecipeError) as error:
        ask(written(tmp_path, change), tmp_path / "out")
    assert said in str(error.value)


def trained(plan: Plan) -> TrainSpec:
    spec = last_training(plan).spec
    assert isinstance(spec, TrainSpec)
    return spec


def test_the_order_of_layers(tmp_path: Path) -> None:
    """Recipe < profile < data set < the arm's own < the tuned value."""
    arms = plans(
        tmp_path,
        claims=[],
        data={"d": {"method": {"optimiser": {"lr": 0.5, "eps": 0.25, "clip_norm": 2}}}},
        arms={"a": {"recipe": "sft", "set": {"method": {"optimiser": {"lr": 0.75, "eps": 0.5}}}}},
    )
    alone = arms.recipe("d", "a").method.optimiser
    assert (alone.lr, alone.eps, alone.clip_norm) == (0.75, 0.5, 2)
    assert alone.questions_per_step == 16  # of the profile
    assert arms.recipe("d", "a", 0.001).method.optimiser.lr == 0.001


def test_what_a_seed_changes(tmp_path: Path) -> None:
    def seeds(vary: list[str], seed: int, models_of: int | None = None) -> tuple[int, ...]:
        folder = tmp_path / f"{vary}{seed}{models_of}"
        folder.mkdir()
        arms = plans(folder, vary=vary)
        recipe = arms.plan(Key(data="scenes", arm="masked", seed=seed), models_of=models_of).recipe
        student, teacher = recipe.models.student.sft, recipe.models.teachers[0].sft
        assert student is not None and teacher is not None
        return recipe.method.seed, student.seed, teacher.seed

    assert seeds(["run", "models"], 0) == (0, 1, 2)
    assert seeds(["run", "models"], 3) == (3, 301, 302)
    assert seeds(["run"], 3) == (3, 1, 2)
    assert seeds(["models"], 3) == (0, 301, 302)
    assert seeds(["run", "models"], 7, models_of=0) == (7, 1, 2)


def test_arms_share_what_they_have_in_common(tmp_path: Path) -> None:
    arms = plans(tmp_path)
    made = [arms.plan(Key(data="scenes", arm=arm, seed=1)) for arm in ("labels", "masked")]
    for name in ("model/student", "model/teacher", "evaluate/start", "evaluate/teacher-teacher"):
        assert len({plan.stage(name).folder for plan in made}) == 1
    other = arms.plan(Key(data="scenes", arm="labels", seed=0))
    assert other.stage("model/student").folder != made[0].stage("model/student").folder


def test_arms_that_train_differently_are_refused_unless_the_claim_says_so(tmp_path: Path) -> None:
    longer = {"recipe": "sft", "set": {"method": {"phases": [{"epochs": 2}]}}}
    change: dict[str, Any] = {
        "arms": {"short": {"recipe": "sft"}, "long": longer},
        "claims": [claim(first="short", second="long")],
    }
    arms = plans(tmp_path, **change)
    with pytest.raises(RecipeError) as error:
        check_budgets(arms)
    said = "short: 6 steps over 96 questions; long: 12 steps over 192 questions"
    assert said in str(error.value) and "claim x on scenes" in str(error.value)
    change["claims"][0]["unequal"] = True
    check_budgets(plans(tmp_path, **change))


def test_budgets_add_up_over_phases(tmp_path: Path) -> None:
    half = {"teacher": "teacher", "epochs": "0.5"}
    ladder = {"recipe": "mask_progressive", "set": {"method": {"phases": [half, half]}}}
    arms = plans(tmp_path, arms={"whole": {"recipe": "sft"}, "parts": ladder}, claims=[])
    found = [budget(arms.plan(Key(data="scenes", arm=arm, seed=0))) for arm in ("whole", "parts")]
    assert found[0] == found[1] and str(found[0]) == "6 steps over 96 questions"


def test_what_is_chosen_to_run(tmp_path: Path) -> None:
    suite = load_suite(written(tmp_path, {}))
    assert len(Selection().keys(suite)) == 2 * 4 * 2
    few = Selection(data=("worded",), arms=("masked", "labels"), seeds=(1,)).keys(suite)
    assert [str(key) for key in few] == ["worded, labels, seed 1", "worded, masked, seed 1"]
    with pytest.raises(RecipeError, match="no seed 9; expected some of 0, 1"):
        Selection(seeds=(9,)).keys(suite)


def test_the_suite_of_the_page_is_one(tmp_path: Path) -> None:
    """Its claims can be planned with a profile beside it."""
    page = (Path(__file__).parents[2] / "docs" / "ablate.md").read_text()
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "page.yaml").write_text(text)
    (tmp_path / "medium.yaml").write_text((SUITES / "seconds.yaml").read_text())
    asked = ask(tmp_path / "page.yaml", tmp_path / "out")
    assert len(asked.keys) == 2 * 3 * 5 and asked.tuning is not None
    assert len(asked.tuning.to_do(asked.keys)) == 2 * 2 * 3


def test_where_results_go_and_the_command_beside_them(tmp_path: Path) -> None:
    inside = tmp_path / "repo" / "benchmarks" / "suites" / "a.yaml"
    (tmp_path / "repo" / "docs" / "results").mkdir(parents=True)
    assert results_folder(inside, Path("out")) == tmp_path / "repo" / "docs" / "results"
    assert command_of(inside) == "masters ablate benchmarks/suites/a.yaml"
    outside = tmp_path / "a.yaml"
    assert results_folder(outside, Path("out")) == Path("out/results")


@pytest.mark.parametrize("name", ["scenes", "scenes_parts", "scenes_fresh", "easy_vqa", "shapes"])
def test_the_suites_behind_the_results_can_be_run(name: str, tmp_path: Path) -> None:
    suite = load_suite(EVIDENCE / f"{name}.yaml")
    arms = Arms(suite, tmp_path)
    for data in suite.data:
        for arm in suite.arms:
            arms.recipe(data, arm)
    if name not in ("easy_vqa", "shapes"):  # their pictures are not in the repository
        check_budgets(arms)
