"""``masters plan --estimate``: what fits, what would make it fit, and that more is never worse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from masters.cli import app
from masters.errors import MastersError, RecipeError
from masters.estimate.changes import Change, apply_change, first_change
from masters.estimate.cluster import SHIPPED, Cluster, load_cluster, shipped_clusters
from masters.estimate.jobs import Job, place
from masters.estimate.plan import PlanEstimate, estimate_plan
from masters.estimate.stages import Jobs
from masters.estimate.work import Work, prices, seconds
from masters.estimate.workload import Workload, workload_of
from masters.plan import Plan, make_plan
from masters.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "tests" / "configs"
SIZES = ("2B", "8B", "32B")


def written(folder: Path, recipe: str, student: str, *teachers: str) -> Path:
    """A recipe file over published configurations; data are not here."""
    names = ("teacher",) if len(teachers) == 1 else ("mid", "teacher")
    path = folder / f"my_{recipe}.yaml"
    models = {
        "student": {"path": str(CONFIGS / f"Qwen3-VL-{student}-Instruct")},
        "teachers": [
            {"name": name, "path": str(CONFIGS / f"Qwen3-VL-{size}-Instruct")}
            for name, size in zip(names, teachers, strict=True)
        ],
    }
    data = {"train": "train.jsonl", "test": "test.jsonl", "count": 20_000}
    path.write_text(json.dumps({"extends": recipe, "models": models, "data": data}))
    return path


def planned(
    folder: Path, student: str = "2B", teacher: str = "8B", *sets: str, recipe: str = "masters",
    profile: str = "one_gpu",
) -> Plan:  # fmt: skip
    path = written(folder, recipe, student, teacher)
    return make_plan(load_recipe(path, profile, sets), folder / "out")


def estimated(plan: Plan, cluster: Cluster | str, *assumed: str) -> PlanEstimate:
    cluster = load_cluster(cluster) if isinstance(cluster, str) else cluster
    return estimate_plan(plan, cluster, assumed)


def hours(plan: Plan, cluster: Cluster | str, *assumed: str) -> dict[str, float]:
    return {stage.name: stage.hours for stage in estimated(plan, cluster, *assumed).stages}


# ------------------------------------------------------------------------------- the command


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app, ["plan", *words], env={"COLUMNS": "140"})


def test_the_json_of_a_plan(tmp_path: Path) -> None:
    path = written(tmp_path, "masters", "2B", "8B")
    words = (str(path), "--profile", "one_gpu", "--estimate", "a100", "--out", str(tmp_path / "o"))
    done = invoke(*words, "--json", "--gpus", "8")
    assert done.exit_code == 0, done.output
    got = json.loads(done.stdout)
    names = list(make_plan(load_recipe(path, "one_gpu"), tmp_path / "o").by_name)
    assert [stage["name"] for stage in got["stages"]] == names
    promised = {"name", "kind", "fits", "memory_gb", "gpu_hours", "hours"}
    also = {"status", "gpus", "memory", "change", "flops", "disk_gb", "notes"}  # docs/scaling.md
    of_all = {"gpu_hours", "hours", "fits", "disk_gb", "disk_fits", "cluster", "assumed"}
    assert got.keys() == {"stages", *of_all}
    for stage in got["stages"]:
        assert stage.keys() == promised | also
        assert stage["kind"] == stage["name"].split("/")[0]
        assert stage["gpu_hours"] == pytest.approx(stage["hours"] * stage["gpus"])
        assert stage["memory_gb"] == pytest.approx(sum(stage["memory"].values()), abs=0.01)
    assert got["gpu_hours"] == pytest.approx(sum(stage["gpu_hours"] for stage in got["stages"]))
    assert got["assumed"]["image_tokens"] == 900
    assert got["cluster"]["efficiency"]["train"]["source"]
    assert not (tmp_path / "o").exists(), "an estimate writes nothing"


def test_the_table_names_every_assumption_and_its_source(tmp_path: Path) -> None:
    path = str(written(tmp_path, "masters", "8B", "32B"))
    words = ("--profile", "one_gpu", "--estimate", "a100", "--gpus", "1")
    done = invoke(path, *words, "--assume", "response_tokens=33")
    assert done.exit_code == 0, done.output
    shown = " ".join(done.stdout.split())
    for name in (*load_cluster("a100").efficiency.model_dump(), "response_tokens 33"):
        assert name in shown
    assert "assumed" in shown and "train/0-teacher does not fit" in shown
    assert "first: --set" in shown


def test_options_that_belong_to_an_estimate(tmp_path: Path) -> None:
    done = invoke("masters", "--profile", "tiny", "--gpus", "8", "--out", str(tmp_path))
    assert isinstance(done.exception, MastersError)
    assert "expected --estimate CLUSTER" in str(done.exception)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("respond_tokens=3", "Did you mean response_tokens?"),
        ("response_tokens", "expected response_tokens=NUMBER"),
        ("response_tokens=many", "expected response_tokens=NUMBER"),
        ("response_tokens=0", "a number of tokens"),
        ("distinct=1.5", "above 0 and up to 1"),
    ],
)
def test_an_assumption_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        workload_of(load_recipe("masters", "tiny"), [text])
    assert said in str(error.value) and text in str(error.value)


# ----------------------------------------------------------------------------- cluster files


def test_every_shipped_cluster_loads_and_says_where_its_numbers_are_from() -> None:
    assert {"a100", "h100", "h200", "l4", "rtx4090"} <= set(shipped_clusters())
    for name in shipped_clusters():
        cluster = load_cluster(name)
        assert cluster.source, name
        for key in type(cluster.efficiency).model_fields:
            assert getattr(cluster.efficiency, key).source, (name, key)
        assert (ROOT / "docs" / "clusters" / f"{name}.yaml").is_file()


def broken(folder: Path, **changed: Any) -> Path:
    content = yaml.safe_load((SHIPPED / "a100.yaml").read_text()) | changed
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return path


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"gpu": 8}, "gpu is not a key. Did you mean gpus? Expected one of: name"),
        ({"memory_gb": None}, "memory_gb is missing"),
        ({"memory_gb": "much"}, "memory_gb is 'much'"),
        ({"memory_gb": -1}, "memory_gb is -1; expected greater than 0"),
        ({"gpus": 12}, "12 GPUs in nodes of 8; expected fewer than a node has, or whole nodes"),
        ({"tflops": {"bf16": 312}}, "tflops.fp32 is missing"),
        ({"bandwidth_gb_s": 0}, "bandwidth_gb_s is 0; expected greater than 0"),
        ({"node_gb_s": float("inf")}, "node_gb_s is inf; expected a finite number"),
        ({"memory_gb": float("nan")}, "memory_gb is nan; expected a finite number"),
        ({"tflops": {"bf16": 312, "fp32": 19, "fp8": 624}}, "tflops.fp8 is not a key"),
        ({"device": "tpu"}, "device is 'tpu'; expected 'cuda' or 'cpu'"),
        ({"efficiency": {}}, "efficiency.train is missing"),
    ],
)
def test_a_broken_cluster_file_is_told_by_file_and_key(
    changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = broken(tmp_path, **changed)
    with pytest.raises(RecipeError) as error:
        load_cluster(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_a_share_of_the_peak_is_a_share(tmp_path: Path) -> None:
    efficiency = yaml.safe_load((SHIPPED / "a100.yaml").read_text())["efficiency"]
    path = broken(tmp_path, efficiency={**efficiency, "train": 40})
    with pytest.raises(RecipeError, match=r"efficiency\.train is 40\.0; expected a share above 0"):
        load_cluster(path)
    endless = {**efficiency, "layer_seconds": float("inf")}
    with pytest.raises(RecipeError, match=r"layer_seconds\.value is inf; expected a finite"):
        load_cluster(broken(tmp_path, efficiency=endless))
    bare = broken(tmp_path, efficiency={**efficiency, "train": 0.4})
    assert load_cluster(bare).efficiency.train.source == "assumed"


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no cluster is called 'a10'.*Shipped: a100"):
        load_cluster("a10")
    with pytest.raises(RecipeError, match="no such file; shipped clusters: a100"):
        load_cluster(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(RecipeError, match="is no mapping"):
        load_cluster(tmp_path / "list.yaml")
    (tmp_path / "text.yaml").write_text("a: [\n")
    with pytest.raises(RecipeError, match="is no YAML"):
        load_cluster(tmp_path / "text.yaml")


# ------------------------------------------------------------------------------ does it fit?


def jobs_of(recipe: Recipe, plan: Plan, cluster: Cluster) -> Jobs:
    return Jobs(recipe, plan.questions, cluster, Workload())


@pytest.mark.parametrize("cluster", ["l4", "rtx4090", "a100", "h200"])
@pytest.mark.parametrize(
    ("student", "teacher"), [("2B", "8B"), ("2B", "32B"), ("8B", "32B")], ids=str
)
@pytest.mark.parametrize("gpus", [1, 2])
def test_the_first_change_makes_it_fit(
    cluster: str, student: str, teacher: str, gpus: int, tmp_path: Path
) -> None:
    """Done as told, with the recipe read anew, the stage fits; and before it did not."""
    on, did_not = load_cluster(cluster, gpus=gpus), 0
    plan = planned(tmp_path, student, teacher)
    jobs = jobs_of(plan.recipe, plan, on)
    for name in plan.by_name:
        if place(jobs.job(name), on).fits:
            continue
        did_not += 1
        change = first_change(jobs, name)
        assert change is not None, name
        path = tmp_path / "my_masters.yaml"
        recipe = load_recipe(path, "one_gpu", change.sets)
        changed = apply_change(on, change)
        assert place(jobs_of(recipe, plan, changed).job(name), changed).fits, (name, str(change))
        # None of several can be left out.
        for one in change.sets if len(change.sets) > 1 else ():
            fewer = [text for text in change.sets if text != one]
            recipe = load_recipe(path, "one_gpu", fewer)
            assert not place(jobs_of(recipe, plan, changed).job(name), changed).fits, (name, one)
    fits_all = [stage.fits for stage in estimated(plan, on).stages]
    assert fits_all.count(False) == did_not
    assert did_not or (student, teacher, cluster) in {("2B", "8B", "a100"), ("2B", "8B", "h200"),
                                                      ("2B", "32B", "h200")}  # fmt: skip


def test_memory_of_a_train_stage_by_hand(tmp_path: Path) -> None:
    """docs/gpu.md: 16 bytes a trained parameter, 2 of a teacher; a node shares them out."""
    sets = ("runtime.engine=single",)
    student, teacher = 2_127_532_032, 8_767_123_696

    def memory(cluster: Cluster, *sets: str) -> dict[str, float]:
        found = estimated(planned(tmp_path, "2B", "8B", *sets), cluster)
        stage = next(stage for stage in found.stages if stage.kind == "train")
        return {**stage.memory, "all": stage.memory_gb, "gpus": stage.gpus}

    node = load_cluster("a100")
    alone = memory(node, *sets)
    assert alone["gpus"] == 1
    assert alone["trained weights, gradients, moments"] == pytest.approx(16e-9 * student, abs=1e-3)
    assert alone["teacher"] == pytest.approx(2e-9 * teacher, abs=1e-3)
    smaller = node.model_copy(update={"memory_gb": 16.0})
    shared = memory(smaller, "runtime.engine=fsdp2")
    assert shared["gpus"] > 1
    key = "trained weights, gradients, moments"
    assert shared[key] == pytest.approx(alone[key] / shared["gpus"], abs=1e-3)
    eight = memory(node, *sets, "method.optimiser.moments=8bit")
    assert eight[key] == pytest.approx(10e-9 * student, abs=1e-3)
    offload = memory(node, *sets, "runtime.teacher_device=offload")
    assert offload["teacher"] < 4, "3.0 GB of docs/gpu.md: embeddings, head and a layer"
    assert "teacher" not in memory(node, *sets, "method.signal=topk")
    stored = memory(node, *sets, "method.signal=hidden")
    assert stored["teacher's head"] == pytest.approx(2e-9 * 151_936 * 4096, abs=1e-3)


def test_a_settings_effect_on_memory(tmp_path: Path) -> None:
    """Each setting that errors and docs name as saving memory saves some."""

    def activations(kind: str, *sets: str) -> float:
        found = estimated(planned(tmp_path, "2B", "8B", *sets), "h200")
        stage = next(stage for stage in found.stages if stage.kind == kind)
        return stage.memory["activations"]

    whole = activations("train", "runtime.gradient_checkpointing=false")
    assert activations("train", "runtime.gradient_checkpointing=true") < whole / 3
    many = activations("train", "runtime.micro_batch_questions=8")
    assert many > 4 * activations("train", "runtime.micro_batch_questions=1")
    assert activations("train", "runtime.micro_batch_responses=1") < activations("train")
    assert activations("generate") > activations("generate", "runtime.generation_batch=8")


# ------------------------------------------------------------------------------- how long?


@pytest.mark.parametrize("profile", ["one_gpu", "node", "cluster"])
@pytest.mark.parametrize("name", ["a100", "h100", "rtx4090"])
def test_more_gpus_never_take_longer(name: str, profile: str, tmp_path: Path) -> None:
    plan = planned(tmp_path, "2B", "8B", profile=profile)
    per_node = load_cluster(name).gpus_per_node
    before: dict[str, Any] = {}
    for gpus in (1, 2, 3, per_node, 2 * per_node, 8 * per_node, 32 * per_node):
        found = {s.name: s for s in estimated(plan, load_cluster(name, gpus=gpus)).stages}
        for stage, one in found.items():
            if stage in before and before[stage].fits:
                assert one.fits, (stage, gpus)
                assert one.hours <= before[stage].hours * (1 + 1e-9), (stage, gpus)
        before = found


@pytest.mark.parametrize(
    ("key", "factor"), [("memory_gb", 4), ("bandwidth_gb_s", 2), ("node_gb_s", 2), ("disk_gb_s", 2)]
)
def test_better_hardware_never_takes_longer(key: str, factor: float, tmp_path: Path) -> None:
    plan = planned(tmp_path, profile="node")
    base = load_cluster("a100")
    better = base.model_copy(update={key: factor * getattr(base, key)})
    slow, fast = hours(plan, base), hours(plan, better)
    for stage, taken in slow.items():
        # A larger memory may let a stage do with fewer GPUs, at most a tenth slower.
        assert fast[stage] <= taken * (1.1 if key == "memory_gb" else 1 + 1e-9), stage


def test_longer_work_takes_longer(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    base = hours(plan, "a100")
    for assumed in ("image_tokens=1800", "response_tokens=120", "longest_response=320"):
        longer = hours(plan, "a100", assumed)
        assert all(longer[name] >= taken for name, taken in base.items())
        assert sum(longer.values()) > sum(base.values()), assumed
    twice = hours(planned(tmp_path, "2B", "8B", "data.count=40000"), "a100")
    name = "train/0-teacher"
    assert twice[name] == pytest.approx(2 * base[name], rel=0.05)
    stored = hours(planned(tmp_path, "2B", "8B", "method.signal=hidden"), "a100")
    assert stored[name] < base[name] and stored["signal/0-teacher"] > 0
    larger = hours(planned(tmp_path, "2B", "32B"), "h200")
    smaller = hours(planned(tmp_path, "2B", "8B"), "h200")
    assert larger["generate/0-teacher/teacher"] > 2 * smaller["generate/0-teacher/teacher"]


def test_training_flops_by_hand(tmp_path: Path) -> None:
    """PERFORMANCE's setting, counted once more: packed rows, live teacher, no checkpointing."""
    sets = ("runtime.gradient_checkpointing=false", "runtime.group_forward=attention")
    found = estimated(planned(tmp_path, "2B", "32B", *sets), load_cluster("h200", gpus=1))
    train = next(stage for stage in found.stages if stage.kind == "train")
    each = train.flops / (20_000 // 32 * 32)
    tokens, teacher, student = 1000 + 8 * 60, 31.2e9, 1.41e9
    plain = 2 * tokens * (teacher + 3 * student)
    assert plain < each < 1.35 * plain, "the towers, attention and the heads come on top"


def test_a_job_is_placed_on_the_fewest_gpus_that_pay() -> None:
    cluster = load_cluster("a100", gpus=64)

    def placed(work: Any, memory: float = 0.0) -> int:
        job = Job(precision="bf16", work=work, memory=lambda n: {"weights": memory / n})
        return place(job, cluster).gpus

    assert placed(lambda n: Work(stages=1)) == 1, "nothing to share"
    assert placed(lambda n: Work(train_flops=1e20 / n)) > 56
    assert placed(lambda n: Work(train_flops=5e16 / n + 1e18)) == 1, "a twentieth is not worth it"
    assert placed(lambda n: Work(stages=1), memory=200e9) == 3, "as many as it fits on"


def test_what_comes_over_a_link_hides_behind_arithmetic() -> None:
    price = prices(load_cluster("a100"), "bf16")
    flops = Work(train_flops=1.0 / price["train_flops"])
    link = Work(link_bytes=0.5 / price["link_bytes"])
    assert seconds(flops, price) == pytest.approx(1.0)
    assert seconds(flops + link, price) == pytest.approx(1.0)
    assert seconds(flops + link * 3, price) == pytest.approx(1.5)


def test_a_judge_and_what_runs_elsewhere(tmp_path: Path) -> None:
    rule = hours(planned(tmp_path), "a100")
    judged = planned(tmp_path, "2B", "8B", "method.rewards.accuracy={kind: judge}")
    found = {stage.name: stage for stage in estimated(judged, "a100").stages}
    name = "judge/0-teacher/teacher"
    assert found[name].hours > 10 * rule[name]
    assert found[name].memory["weights"] == pytest.approx(2e-9 * 8_767_123_696, abs=1e-3)
    sets = (
        "method.rewards.accuracy={kind: judge, judge: {model: server, name: big}}",
        "runtime.server.url=http://localhost:8000/v1",
    )
    served = {s.name: s for s in estimated(planned(tmp_path, "2B", "8B", *sets), "a100").stages}
    assert "by a server" in served[name].notes[0]
    assert served[name].hours < found[name].hours, "an engine that fills its batches"


def test_tiny_models_and_ladders(tmp_path: Path) -> None:
    for recipe in ("masters", "masters_ladder", "sft"):
        found = estimated(make_plan(load_recipe(recipe, "tiny"), tmp_path), "l4")
        assert all(stage.fits for stage in found.stages)
        assert all(stage.hours > 0 for stage in found.stages)


def test_a_change_reads_as_it_is_typed() -> None:
    change = Change(sets=("a.b=1", "c=[x]"), gpus=16)
    assert str(change) == "--set a.b=1 and --set c=[x] and 16 GPUs"
