"""What must hold of who computes: the engine that trains, those that answer, and the judges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from masters import lineage
from masters.ratios import ratio_parts, ratio_text
from masters.recipe_errors import wrong
from masters.recipe_needs import judges

if TYPE_CHECKING:
    from masters.recipe import Recipe
    from masters.recipe_objective import AccuracyRule

#: Arguments of ``vllm.LLM`` that are no runtime settings.
_NOT_RUNTIME = frozenset(
    {
        "model", "tokenizer", "revision", "dtype", "quantization", "kv_cache_dtype",
        "generation_config", "override_generation_config", "logprobs_mode", "hf_overrides", "seed",
        "enable_lora", "speculative_config",
    }
)  # fmt: skip


def trainable_by_engine(recipe: Recipe) -> None:
    """What the engine that trains cannot do."""
    runtime, models = recipe.runtime, (recipe.models.student, *recipe.models.teachers)
    if runtime.activation_offload and runtime.gradient_checkpointing is False:
        raise wrong(
            ("runtime", "activation_offload"),
            "is true with gradient_checkpointing false; expected layers to be run again, or all "
            "that each of them keeps would travel",
        )
    if runtime.engine == "single":
        return
    if any(model.lora for model in models):
        raise wrong(
            ("runtime", "engine"),
            f"is {runtime.engine!r}, which trains whole weights or some parts of them, no low-rank "
            "adapters; expected lora: null, or 'single'",
        )
    if recipe.method.optimiser.moments != "fp32":
        raise wrong(
            ("runtime", "engine"),
            f"is {runtime.engine!r}, which keeps Adam's moments in float32; expected moments: "
            "fp32, or 'single'",
        )
    if runtime.teacher_device not in ("same", "offload"):
        raise wrong(
            ("runtime", "teacher_device"),
            f"is {runtime.teacher_device!r} with engine {runtime.engine}, which spreads the "
            "teacher over the ranks' own devices; expected 'same' or 'offload'",
        )


def judge_in_its_seat(accuracy: AccuracyRule) -> None:
    """A judge comes with ``kind: judge``, and a name with the server that knows it."""
    judge = accuracy.judge
    if judge is None:
        return
    if accuracy.kind == "rule":
        raise wrong(("judge",), "is set, but kind is 'rule'; expected kind: judge beside it")
    if judge.model == "server" and judge.name is None:
        raise wrong(
            ("judge", "name"),
            "is missing, and model is 'server'; expected the name the server serves the model by",
        )
    if judge.model == "teacher" and judge.name is not None:
        raise wrong(
            ("judge", "name"),
            f"is {judge.name!r}, but model is 'teacher': the phase's own teacher judges; expected "
            "model: server, or no name",
        )


def judges_at_hand(recipe: Recipe) -> None:
    """Every judge can be had: a teacher in each phase, or a server."""
    rewarded, measured = recipe.method.rewards.accuracy, recipe.evaluation.rule
    if measured.judge is not None and measured.judge.model == "teacher":
        raise wrong(
            ("evaluation", "rule", "judge", "model"),
            "is 'teacher', but an evaluation belongs to no phase and has no teacher; expected "
            "model: server and its name",
        )
    for at, accuracy in {
        ("method", "rewards", "accuracy"): rewarded,
        ("evaluation", "rule"): measured,
    }.items():
        judge = None if accuracy is None else accuracy.judge
        if judge is not None and judge.model == "server" and recipe.runtime.server is None:
            raise wrong(
                (*at, "judge", "model"),
                "is 'server', but there is no runtime.server; expected its address: --set "
                "runtime.server.url=http://localhost:8000/v1",
            )
    judge = None if rewarded is None else rewarded.judge
    if judge is None or judge.model != "teacher" or not judges(recipe.method):
        return
    for index, phase in enumerate(recipe.method.phases):
        if phase.teacher is None:
            raise wrong(
                ("method", "rewards", "accuracy", "judge", "model"),
                f"is 'teacher', but method.phases[{index}] has none; expected teacher: <name> "
                "there, or model: server",
            )


def engines_at_hand(recipe: Recipe) -> None:
    """The engine can be had, and a server has a name for all that it will be asked for."""
    responses, runtime = recipe.method.responses, recipe.runtime
    at = ("method", "responses")
    for key in runtime.vllm.options if runtime.vllm else ():
        if key in _NOT_RUNTIME:
            raise wrong(
                ("runtime", "vllm", "options", key),
                "is set, but it is more than a way to run: it changes what is computed; expected "
                "the recipe's models, precision and sampling to say it",
            )
    addresses = {"vllm": runtime.vllm, "server": runtime.server}
    example = {"vllm": "python=/opt/vllm/bin/python", "server": "url=http://localhost:8000/v1"}
    engine = responses.engine
    if engine in addresses and addresses[engine] is None:
        raise wrong(
            (*at, "engine"),
            f"is {engine!r}, but there is no runtime.{engine}; expected --set "
            f"runtime.{engine}.{example[engine]}",
        )
    if engine != "server" and responses.served:
        raise wrong((*at, "served"), f"is set, but engine is {engine!r}; expected engine: server")
    if engine != "server":
        return
    if not responses.served:
        raise wrong(
            (*at, "served"),
            "is empty, and engine is 'server'; expected what it calls each model: [{model: "
            "student, name: ...}, {model: <teacher>, ratio: ..., name: ...}]",
        )
    wanted = _answering(recipe)
    named = [(served.model, ratio_parts(served.ratio)) for served in responses.served]
    for index, one in enumerate(named):
        if named.index(one) != index:
            raise wrong((*at, "served", index), f"is a second name for {_masked(*one)}")
        if one not in wanted:
            raise wrong(
                (*at, "served", index),
                f"is {_masked(*one)}, which no phase asks as it came; expected one of "
                f"{', '.join(_masked(*other) for other in sorted(wanted)) or 'none'}",
            )
    for model, ratio in sorted(wanted):
        if model in {name for name, _ in named} and (model, ratio) not in named:
            raise wrong(
                (*at, "served"),
                f"has no name for {_masked(model, ratio)}, which a phase asks; expected one for "
                "each of its ratios. `masters mask RECIPE --materialise RATIO` writes a masked "
                "checkpoint to serve; or leave the model out, and transformers answers for it",
            )


def _answering(recipe: Recipe) -> set[tuple[str, int]]:
    """(model, ratio per 10,000) of all that answer as they came, untouched by any phase."""
    method = recipe.method
    found: set[tuple[str, int]] = set()
    if not any(term.on == "responses" for term in method.objective):
        return found
    for index, phase in enumerate(method.phases):
        teacher, learner = (
            lineage.teacher(method.phases, index),
            lineage.learner(method.phases, index),
        )
        if teacher is not None and teacher.phase is None and method.responses.teacher:
            found |= {(teacher.model, r) for r in (phase.mask.ratios if phase.mask else (0,))}
        if learner.phase is None and method.responses.student:
            found.add((learner.model, 0))
    return found


def _masked(model: str, ratio: int) -> str:
    return f"{model} at ratio {ratio_text(ratio)}"
