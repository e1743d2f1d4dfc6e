"""The first change that makes a stage fit: settings first, then other GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from masters.errors import RecipeError
from masters.estimate.cluster import Cluster
from masters.estimate.jobs import place
from masters.estimate.stages import Jobs
from masters.recipe import Recipe
from masters.recipe_file import merge
from masters.specs import EvaluateSpec, GenerateSpec, ScoreSpec, SignalSpec, StageSpec, TrainSpec

Settings = tuple[tuple[str, object], ...]
_MOST_GPUS = 4096


@dataclass(frozen=True, kw_only=True)
class Change:
    """What to change.

    Args:
        sets: ``key=value`` of the recipe, as ``--set`` takes them.
        gpus: as many of the cluster's GPUs.
        memory_gb: GPUs with so much memory.
    """

    sets: tuple[str, ...] = ()
    gpus: int | None = None
    memory_gb: float | None = None

    def __str__(self) -> str:
        parts = [f"--set {text}" for text in self.sets]
        if self.gpus is not None:
            parts.append(f"{self.gpus} GPUs")
        if self.memory_gb is not None:
            parts.append(f"GPUs of {self.memory_gb:.0f} GB")
        return " and ".join(parts)


def first_change(jobs: Jobs, name: str) -> Change | None:
    """The mildest change under which the stage fits; None where none was found.

    Settings that move no number come before those that do, one alone before several together, and
    the cluster is changed last.
    """
    tried: Settings = ()
    candidates = list(_candidates(jobs.drafts[name].spec, jobs))
    for settings in candidates:
        if (changed := _with(jobs, settings)) and _fits(changed, name):
            return Change(sets=_written(settings))
    for settings in candidates:
        together = {**dict(tried), **dict(settings)}
        if changed := _with(jobs, tuple(together.items())):
            tried = tuple(together.items())
            if _fits(changed, name):
                return Change(sets=_written(_needed(jobs, name, tried)))
    return _other_cluster(jobs, name)


def _needed(jobs: Jobs, name: str, settings: Settings) -> Settings:
    """Without those that the stage fits without."""
    for one in settings:
        fewer = tuple(other for other in settings if other != one)
        if (changed := _with(jobs, fewer)) and _fits(changed, name):
            settings = fewer
    return settings


def _candidates(spec: StageSpec, jobs: Jobs) -> Iterator[Settings]:
    runtime, many = jobs.recipe.runtime, jobs.cluster.gpus > 1
    reads = isinstance(spec, (TrainSpec, ScoreSpec, SignalSpec))
    if isinstance(spec, TrainSpec) and runtime.gradient_checkpointing is False:
        yield (("runtime.gradient_checkpointing", True),)
    if reads and runtime.micro_batch_questions > 1:
        yield (("runtime.micro_batch_questions", 1),)
    if reads:
        for size in (4, 2, 1):
            if (runtime.micro_batch_responses or 99) > size:
                yield (("runtime.micro_batch_responses", size),)
    if isinstance(spec, (TrainSpec, GenerateSpec, EvaluateSpec)):
        batch = runtime.generation_batch
        while batch > 1:
            batch //= 2
            yield (("runtime.generation_batch", batch),)
    if isinstance(spec, TrainSpec) and many and jobs.cluster.device == "cuda":
        yield (("runtime.engine", "fsdp2"),)
        yield (("runtime.teacher_device", "cuda:1"),)
    if isinstance(spec, GenerateSpec) and many:
        for devices in (2, 4, 8):
            if devices <= jobs.cluster.gpus:
                yield (
                    ("method.responses.engine", "vllm"),
                    ("runtime.vllm.python", "/opt/vllm/bin/python"),
                    ("runtime.vllm.tensor_parallel", devices),
                )
    if jobs.cluster.device == "cuda":
        yield (("runtime.teacher_device", "offload"),)
    if isinstance(spec, TrainSpec):
        if spec.teacher is not None and all(term.on == "responses" for term in spec.objective):
            yield (("method.signal", "hidden"),)
        yield (("runtime.activation_offload", True),)
        yield (("method.optimiser.moments", "8bit"),)
        yield (("models.student.freeze", ["vision"]),)
        yield (("models.student.lora", {"rank": 16}),)


def with_settings(recipe: Recipe, settings: Settings) -> Recipe:
    """The recipe with these keys set; maps merge.

    Raises:
        ValidationError: there is no such key, or the result is no recipe.
    """
    values = recipe.model_dump(mode="json")
    for key, value in settings:
        nested: object = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        assert isinstance(nested, dict)
        values = merge(values, nested)
    return Recipe.model_validate(values).named(recipe.name)


def _with(jobs: Jobs, settings: Settings) -> Jobs | None:
    try:
        recipe = with_settings(jobs.recipe, settings)
        return Jobs(recipe, jobs.questions, jobs.cluster, jobs.workload)
    except (RecipeError, ValidationError):
        return None  # a key of another version, or one that this recipe cannot have


def _fits(jobs: Jobs, name: str) -> bool:
    return name in jobs.drafts and place(jobs.job(name), jobs.cluster).fits


def _written(settings: Settings) -> tuple[str, ...]:
    found = []
    for key, value in settings:
        if isinstance(value, dict):
            inner = ", ".join(f"{name}: {one}" for name, one in value.items())
            value = "{" + inner + "}"
        elif isinstance(value, list):
            value = "[" + ", ".join(map(str, value)) + "]"
        elif isinstance(value, bool):
            value = str(value).lower()
        found.append(f"{key}={value}")
    return tuple(found)


def _other_cluster(jobs: Jobs, name: str) -> Change | None:
    """More GPUs for a sharded stage, else larger ones."""
    base = jobs.cluster
    sharded = _with(jobs, (("runtime.engine", "fsdp2"),))
    if sharded is not None and isinstance(jobs.drafts[name].spec, TrainSpec):
        spread = jobs.recipe.runtime.engine != "single"
        sets = () if spread else ("runtime.engine=fsdp2",)
        count = 2 if base.gpus == 1 else 2 * base.gpus
        while base.device == "cuda" and count <= _MOST_GPUS:
            per_node = base.gpus_per_node
            count = count if count <= per_node else whole_nodes(count, per_node)
            wider = base.model_copy(update={"gpus": count})
            if _fits(_on(sharded, wider), name):
                return Change(sets=sets, gpus=count)
            count *= 2
    placed = place(jobs.job(name), base)
    needed = sum(placed.memory.values()) / base.efficiency.usable.value / 1e9
    larger = Change(memory_gb=float(int(needed) + 1))
    cluster = apply_change(base, larger)
    return larger if _fits(_on(jobs, cluster), name) else None


def apply_change(cluster: Cluster, change: Change) -> Cluster:
    """The cluster as the change wants it."""
    update = {"gpus": change.gpus, "memory_gb": change.memory_gb}
    return cluster.model_copy(update={key: value for key, value in update.items() if value})


def whole_nodes(count: int, per_node: int) -> int:
    """So many GPUs, in whole nodes."""
    return -(-count // per_node) * per_node


def _on(jobs: Jobs, cluster: Cluster) -> Jobs:
    return Jobs(jobs.recipe, jobs.questions, cluster, jobs.workload)
