"""Recipes: layers, defaults, and what is refused with which words."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from masters.errors import RecipeError
from masters.recipe import (
    DatasetsSource,
    JsonlSource,
    LlavaSource,
    Recipe,
    load_recipe,
    recipe_from_yaml,
    resolved_yaml,
)

MINIMAL = """
models: {student: {path: a/b}, teachers: [{name: large, path: c/d}]}
data: {train: train.jsonl}
method:
  phases: [{teacher: large, mask: {}}]
  objective: [{kind: grpo}, {kind: jsd}]
"""


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_defaults_are_the_papers(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL))
    assert recipe.name == "mine"
    mask = recipe.method.phases[0].mask
    assert mask is not None
    assert mask.ratios == (2000, 1500, 1000, 500, 0)
    responses = recipe.method.responses
    assert (responses.teacher, responses.student) == (4, 4)
    assert (responses.temperature, responses.top_p) == (1.0, 0.9)
    assert (responses.top_k, responses.repetition_penalty) == (50, 1.05)
    policy, divergence = recipe.method.objective
    assert policy.kind == "grpo"
    assert (policy.weight, policy.kl) == (1.0, 0.1)
    assert divergence.kind == "jsd"
    assert (divergence.weight, divergence.beta, divergence.on) == (1.0, 0.5, "responses")
    optimiser = recipe.method.optimiser
    assert (optimiser.lr, optimiser.schedule, optimiser.warmup_steps) == (1e-6, "constant", 0)
    assert (optimiser.weight_decay, optimiser.clip_norm) == (0.0, 1.0)
    assert recipe.method.phases[0].epochs == 1


def test_resolved_recipe_loads_back(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL))
    again = recipe_from_yaml(resolved_yaml(recipe), "mine")
    assert again == recipe
    again = load_recipe(write(tmp_path, resolved_yaml(recipe), "again.yaml"))
    assert again.named("mine") == recipe


def test_layers_in_order(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL + "  seed: 1\n  optimiser: {lr: 1.0e-5, eps: 1.0e-7}\n", "below.yaml")
    mine = write(tmp_path, "extends: below.yaml\nmethod: {seed: 2, responses: {student: 2}}\n")
    profile = write(
        tmp_path,
        "method: {seed: 3}\nrecipes: {mine: {method: {signal: live, optimiser: {lr: 4.0e-5}}}}\n",
        "profile.yaml",
    )
    assert load_recipe(mine).method.seed == 2
    recipe = load_recipe(mine, profile)
    assert recipe.method.seed == 3
    assert recipe.method.optimiser.lr == 4e-5
    assert recipe.method.optimiser.eps == 1e-7
    assert recipe.method.responses.student == 2
    assert load_recipe(mine, profile, ["method.seed=4"]).method.seed == 4


def test_profile_speaks_to_the_nearest_recipe_of_the_chain(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL, "below.yaml")
    mine = write(tmp_path, "extends: below.yaml\n")
    profile = write(
        tmp_path, "recipes: {below: {method: {seed: 5}}, other: {method: {seed: 6}}}", "p.yaml"
    )
    assert load_recipe(mine, profile).method.seed == 5
    profile = write(
        tmp_path, "recipes: {below: {method: {seed: 5}}, mine: {validation: {every: 3}}}", "p.yaml"
    )
    assert load_recipe(mine, profile).method.seed == 0


def test_overrides_reach_into_lists(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    recipe = load_recipe(
        path,
        overrides=[
            "method.phases.0.mask.max_ratio=0.4",
            "method.objective[0].kl=1e-2",
            "prompt.suffix=null",
            "evaluation.masking_ratios=[0.3, 0]",
        ],
    )
    mask = recipe.method.phases[0].mask
    assert mask is not None
    assert mask.max_ratio == Decimal("0.4")
    assert recipe.method.objective[0].kl == 1e-2  # pyright: ignore[reportAttributeAccessIssue]
    assert recipe.prompt.suffix is None
    assert recipe.evaluation.masking_ratios == (Decimal("0.3"), Decimal(0))


def test_lists_replace(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL, "below.yaml")
    mine = write(tmp_path, "extends: below.yaml\nmethod: {objective: [{kind: jsd, weight: 2}]}\n")
    assert [term.kind for term in load_recipe(mine).method.objective] == ["jsd"]


def test_another_kind_or_origin_replaces_the_map(tmp_path: Path) -> None:
    recipe = load_recipe("masters", "tiny", ["data.train=my.jsonl"])
    assert isinstance(recipe.data.train, JsonlSource)
    mine = write(
        tmp_path,
        "extends: masters\nmodels: {student: {path: a/b}}\n"
        "data: {train: {kind: scenes, count: 3}}\n",
    )
    over = write(tmp_path, "models: {student: {tiny: t, sft: {}}, teachers: []}", "p.yaml")
    with pytest.raises(RecipeError, match=r"expected one of models\.teachers: none"):
        load_recipe(mine, over)
    over = write(
        tmp_path,
        "data: {train: x.json}\nmodels: {teachers: [{name: teacher, path: c/d}]}",
        "p.yaml",
    )
    assert isinstance(load_recipe(mine, over).data.train, LlavaSource)


@pytest.mark.parametrize(
    ("text", "kind"),
    [("a.jsonl", JsonlSource), ("a.json", LlavaSource), ("folder", DatasetsSource)],
)
def test_shorthand_sources(tmp_path: Path, text: str, kind: type) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL), overrides=[f"data.test={text}"])
    source = recipe.data.test
    assert type(source) is kind
    assert source is not None
    assert source.model_dump()["path"] == text


REFUSED = [
    (
        "method.phases.0.mask.max_ratio=1.3",
        "method.phases[0].mask.max_ratio is 1.3; expected a number in [0, 1). Did you mean 0.13?",
    ),
    (
        "method.phases.0.mask.max_ratio=0.23",
        "max_ratio is 0.23; expected a whole multiple of step 0.05. The nearest are 0.2 and 0.25",
    ),
    ("method.phases.0.mask.step=0", "step is 0; expected a number in (0, 1)"),
    ("method.phase=1", "method.phase is not a key. Did you mean phases?"),
    ("method.objective.0.clop=1", "method.objective[0].clop is not a key. Did you mean clip?"),
    ("method.objective.0.kind=grop", "objective[0].kind is 'grop'; expected one of"),
    ("method.optimiser.lr=-1", "method.optimiser.lr is -1; expected a number above 0"),
    ("method.optimiser.lr=fast", "method.optimiser.lr is 'fast'; expected a number"),
    ("method.optimiser.precision=fp16", "is 'fp16'; expected 'bf16' or 'fp32'"),
    ("method.phases=[]", "method.phases is []; expected at least 1 in the list"),
    ("method.phases.0.teacher=lrge", "is 'lrge'; expected one of models.teachers: large"),
    ("method.phases.0.teacher=null", "has no teacher, but"),
    ("method.phases.4.epochs=1", "method.phases is a list of 1"),
    ("method.phases.0.epochs=0", "method.phases[0].epochs is 0; expected a number above 0"),
    ("method.responses={teacher: 0, student: 1}", "expected method.responses.teacher + student"),
    ("method.responses={teacher: 0, student: 0}", "method.responses asks for none"),
    ("method.rewards={accuracy: null, distillation: null}", "is grpo without a reward"),
    (
        "method.rewards.accuracy.judge.model=server",
        "method.rewards.accuracy.judge is set, but kind is 'rule'; expected kind: judge",
    ),
    (
        "method.rewards.accuracy={kind: judge, judge: {model: server}}",
        "judge.name is missing, and model is 'server'; expected the name the server serves",
    ),
    (
        "method.rewards.accuracy={kind: judge, judge: {model: server, name: m}}",
        "judge.model is 'server', but there is no runtime.server; expected its address: --set "
        "runtime.server.url=http",
    ),
    (
        "method.rewards.accuracy={kind: judge, judge: {name: m}}",
        "judge.name is 'm', but model is 'teacher'",
    ),
    (
        "method.rewards.accuracy={kind: judge, judge: {max_missing: 1.5}}",
        "judge.max_missing is 1.5; expected a number at most 1",
    ),
    ("runtime.server.url=localhost:8000", "runtime.server.url is 'localhost:8000'; expected http"),
    ("runtime.server.url=http://me:key@host/v1", "expected http(s)://HOST:PORT/v1 without a user"),
    ("runtime.server={}", "runtime.server.url is missing"),
    (
        "evaluation.rule.kind=judge",
        "evaluation.rule.judge.model is 'teacher', but an evaluation belongs to no phase",
    ),
    ("method.signal=some", "method.signal is 'some'"),
    ("method.signal_k=0", "method.signal_k is 0; expected a number at least 1"),
    ("method.objective=[{kind: jsd}, {kind: jsd}]", "is a second jsd on responses"),
    ("method.objective=[{kind: jsd, weight: 0}]", "has only weights of 0"),
    ("method.objective=[{kind: nll}]", "mask is set, but no term"),
    ("method.objective=[]", "method.objective is []"),
    ("models.student.tiny=x", "models.student has both path and tiny"),
    ("models.teachers=[{path: c/d}]", "models.teachers[0] has no name"),
    ("models.teachers=[{name: large, tiny: x}]", "is tiny without sft"),
    ("evaluation.checkpoint=best", "nothing is validated"),
    ("evaluation.masking_ratios=[0.3, 2]", "masking_ratios[1] is 2; expected a number in [0, 1)"),
    ("runtime.jobs=0", "runtime.jobs is 0; expected a number at least 1"),
    ("runtime=null", "runtime is None; expected keys and values"),
    ("nonsense", "expected key=value"),
]


@pytest.mark.parametrize(("override", "says"), REFUSED)
def test_refused(tmp_path: Path, override: str, says: str) -> None:
    path = write(tmp_path, MINIMAL)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides=[override])
    assert says in str(caught.value)
    assert str(caught.value).startswith(("--set", "mine.yaml: "))
    assert len(str(caught.value).splitlines()) == 1, "one mistake, one line"


def test_errors_name_the_file_at_fault(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL, "below.yaml")
    mine = write(tmp_path, "extends: below.yaml\nvalidation: {every: -1}\n")
    with pytest.raises(RecipeError, match=r"^mine\.yaml: validation\.every is -1"):
        load_recipe(mine)
    mine = write(tmp_path, "extends: below.yaml\n")
    profile = write(tmp_path, "runtime: {threds: 1}\n", "cluster.yaml")
    with pytest.raises(RecipeError, match=r"^cluster\.yaml: runtime\.threds .* threads\?"):
        load_recipe(mine, profile)


def test_several_mistakes_are_all_told(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides=["runtime.jobs=0", "method.optimiser.lr=0"])
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a\n", "expected keys and values"),
        ("a: [", "not valid YAML"),
        ("method: {seed: 1, seed: 2}", "stands twice"),
        ("extends: mine.yaml", "runs in a circle"),
        ("extends: mastres", "Did you mean masters?"),
        ("", "models is missing"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text))
    assert says in str(caught.value)


def test_yaml_words_mean_what_they_say(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL.replace("{kind: jsd}", "{kind: jsd, on: labels}"))
    assert load_recipe(path).method.objective[1].on == "labels"
    assert yaml.safe_load(resolved_yaml(load_recipe(path)))["method"]["objective"][1]["on"]


def test_a_judge_with_its_defaults_and_without_a_teacher(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    recipe = load_recipe(path, overrides=["method.rewards.accuracy.kind=judge"])
    accuracy = recipe.method.rewards.accuracy
    assert accuracy is not None and accuracy.judge is not None
    assert (accuracy.judge.model, accuracy.judge.max_missing) == ("teacher", 0.05)
    assert recipe_from_yaml(resolved_yaml(recipe), "mine") == recipe
    alone = [
        "method.rewards={accuracy: {kind: judge}, distillation: null}",
        "method.objective=[{kind: grpo}]",
        "method.responses.teacher=0",
        "method.phases=[{}]",
    ]
    with pytest.raises(RecipeError, match=r"is 'teacher', but method.phases\[0\] has none"):
        load_recipe(path, overrides=alone)
    labels = ["method.rewards.accuracy.kind=judge", "method.objective=[{kind: nll}]"]
    load_recipe(path, overrides=[*labels, "method.phases=[{}]"])  # nothing is judged


def test_recipe_is_frozen(tmp_path: Path) -> None:
    recipe: Recipe = load_recipe(write(tmp_path, MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        recipe.method.seed = 3  # pyright: ignore[reportAttributeAccessIssue]
    assert recipe.with_seed(3).method.seed == 3
    assert recipe.with_seed(3).name == "mine"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "evaluation.rule={kind: rule, judge: {}}",
            "evaluation.rule.judge is set, but kind is 'rule'",
        ),
        (
            "method.objective=[{kind: jsd, beta: 0.1, on: labels}, {kind: jsd, beta: 0.9}]",
            "jsd terms of different beta",
        ),
    ],
)
def test_what_would_be_ignored_is_refused(override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe("masters", "tiny", [override])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["method.signal=hidden", "method.objective=[{kind: jsd, on: labels}]"],
            "method.signal is 'hidden', which is stored for responses only, but jsd is on labels",
        ),
        (
            ["method.signal=topk", "method.objective=[{kind: nll}, {kind: jsd}]"],
            "method.signal is 'topk', which is stored for responses only, but nll is on labels",
        ),
        (
            [
                "method.signal=topk", "method.objective=[{kind: grpo}]",
                "method.rewards.distillation=null",
            ],
            "method.signal is 'topk', but no divergence and no distillation reward reads it",
        ),
    ],
)  # fmt: skip
def test_a_stored_signal_that_nothing_reads_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe("masters_no_mask", "tiny", overrides)
