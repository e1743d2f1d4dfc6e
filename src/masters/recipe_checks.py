"""What several keys of a recipe must agree on; all of it is checked when the recipe is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic_core import PydanticCustomError

from masters import lineage
from masters.errors import RecipeError
from masters.lineage import MARK, STUDENT
from masters.parts import PARTS
from masters.ratios import mask_ratios, ratio_parts, ratio_text

if TYPE_CHECKING:
    from masters.recipe import AccuracyRule, Mask, Method, ModelSource, Phase, Recipe


#: Arguments of ``vllm.LLM`` that are no runtime settings.
_NOT_RUNTIME = frozenset(
    {
        "model", "tokenizer", "revision", "dtype", "quantization", "kv_cache_dtype",
        "generation_config", "override_generation_config", "logprobs_mode", "hf_overrides", "seed",
        "enable_lora", "speculative_config",
    }
)  # fmt: skip


def _wrong(at: tuple[str | int, ...], said: str) -> PydanticCustomError:
    return PydanticCustomError("said", "{said}", {"at": at, "said": said})


def one_origin(model: ModelSource) -> None:
    """A model has exactly one of ``path`` and ``tiny``; only tiny ones are taught first."""
    if (model.path is None) == (model.tiny is None):
        got = "neither path nor tiny" if model.path is None else "both path and tiny"
        raise _wrong((), f"has {got}; expected exactly one of them")
    if model.path is not None and model.sft is not None:
        raise _wrong(("sft",), "is set, but the model has a path; expected it with tiny only")
    if model.tiny is not None and model.sft is None:
        raise _wrong((), "is tiny without sft; expected sft: {steps: ..., lr: ...} to teach it")
    if model.tiny is not None and model.revision is not None:
        raise _wrong(("revision",), "is set, but the model is tiny; expected it with path only")


def whole_multiple(mask: Mask) -> None:
    """``max_ratio`` is a whole multiple of ``step``, on integers."""
    try:
        mask_ratios(mask.max_ratio, mask.step)
    except RecipeError as error:
        key, _, said = str(error).partition(" ")
        raise _wrong((key,), said) from None


def consistent(recipe: Recipe) -> None:
    """Teachers exist, terms have what they need, and nothing asked for is without effect."""
    _teachers_named(recipe)
    _trainable_by(recipe)
    _judges(recipe)
    _engines(recipe)
    _terms_fed(recipe.method)
    _storable(recipe.method)
    for index, phase in enumerate(recipe.method.phases):
        _phase(recipe, index, phase)
    for index in range(len(recipe.method.phases)):
        _has_use(recipe.method, index)
    if recipe.evaluation.checkpoint == "best" and not (
        recipe.data.validation and recipe.validation.every
    ):
        raise _wrong(
            ("evaluation", "checkpoint"),
            "is 'best', but nothing is validated; expected data.validation and validation.every",
        )


def _trainable_by(recipe: Recipe) -> None:
    """What the engine that trains cannot do."""
    runtime, models = recipe.runtime, (recipe.models.student, *recipe.models.teachers)
    if runtime.activation_offload and runtime.gradient_checkpointing is False:
        raise _wrong(
            ("runtime", "activation_offload"),
            "is true with gradient_checkpointing false; expected layers to be run again, or all "
            "that each of them keeps would travel",
        )
    if runtime.engine == "single":
        return
    if any(model.lora for model in models):
        raise _wrong(
            ("runtime", "engine"),
            f"is {runtime.engine!r}, which trains whole weights or some parts of them, no low-rank "
            "adapters; expected lora: null, or 'single'",
        )
    if recipe.method.optimiser.moments != "fp32":
        raise _wrong(
            ("runtime", "engine"),
            f"is {runtime.engine!r}, which keeps Adam's moments in float32; expected moments: "
            "fp32, or 'single'",
        )
    if runtime.teacher_device not in ("same", "offload"):
        raise _wrong(
            ("runtime", "teacher_device"),
            f"is {runtime.teacher_device!r} with engine {runtime.engine}, which spreads the "
            "teacher over the ranks' own devices; expected 'same' or 'offload'",
        )


def _teachers_named(recipe: Recipe) -> None:
    names: set[str] = set()
    for index, teacher in enumerate(recipe.models.teachers):
        if "name" not in teacher.model_fields_set:
            raise _wrong(("models", "teachers", index), "has no name; expected one for phases")
        if teacher.name in names or teacher.name == STUDENT:
            raise _wrong(
                ("models", "teachers", index, "name"),
                f"is {teacher.name!r}, which is taken; expected every model to have its own",
            )
        names.add(teacher.name)
        trained = any(phase.student == teacher.name for phase in recipe.method.phases)
        for key in ("freeze", "lora"):
            if getattr(teacher, key) and not trained:
                raise _wrong(
                    ("models", "teachers", index, key),
                    "is set, but no phase trains this teacher; expected it with what is trained",
                )
        _left_to_train(teacher, ("models", "teachers", index))
    _left_to_train(recipe.models.student, ("models", "student"))
    if recipe.models.student.name != STUDENT:
        raise _wrong(("models", "student", "name"), "cannot be chosen; expected it left out")


def _left_to_train(model: ModelSource, where: tuple[str | int, ...]) -> None:
    at = (*where, "freeze")
    if set(model.freeze) == set(PARTS):
        raise _wrong(at, "names every part; expected one that is left to train")
    both = [part for part in model.freeze if model.lora and part in model.lora.parts]
    if both:
        raise _wrong(at, f"names {both[0]}, which lora.parts adapts; expected one of the two")


def judge_in_its_seat(accuracy: AccuracyRule) -> None:
    """A judge comes with ``kind: judge``, and a name with the server that knows it."""
    judge = accuracy.judge
    if judge is None:
        return
    if accuracy.kind == "rule":
        raise _wrong(("judge",), "is set, but kind is 'rule'; expected kind: judge beside it")
    if judge.model == "server" and judge.name is None:
        raise _wrong(
            ("judge", "name"),
            "is missing, and model is 'server'; expected the name the server serves the model by",
        )
    if judge.model == "teacher" and judge.name is not None:
        raise _wrong(
            ("judge", "name"),
            f"is {judge.name!r}, but model is 'teacher': the phase's own teacher judges; expected "
            "model: server, or no name",
        )


def _judges(recipe: Recipe) -> None:
    """Every judge can be had: a teacher in each phase, or a server."""
    rewarded, measured = recipe.method.rewards.accuracy, recipe.evaluation.rule
    if measured.judge is not None and measured.judge.model == "teacher":
        raise _wrong(
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
            raise _wrong(
                (*at, "judge", "model"),
                "is 'server', but there is no runtime.server; expected its address: --set "
                "runtime.server.url=http://localhost:8000/v1",
            )
    judge = None if rewarded is None else rewarded.judge
    rewards_count = any(term.kind == "grpo" for term in recipe.method.objective)
    if judge is None or judge.model != "teacher" or not rewards_count:
        return
    for index, phase in enumerate(recipe.method.phases):
        if phase.teacher is None:
            raise _wrong(
                ("method", "rewards", "accuracy", "judge", "model"),
                f"is 'teacher', but method.phases[{index}] has none; expected teacher: <name> "
                "there, or model: server",
            )


def _engines(recipe: Recipe) -> None:
    """The engine can be had, and a server has a name for all that it will be asked for."""
    responses, runtime = recipe.method.responses, recipe.runtime
    at = ("method", "responses")
    for key in runtime.vllm.options if runtime.vllm else ():
        if key in _NOT_RUNTIME:
            raise _wrong(
                ("runtime", "vllm", "options", key),
                "is set, but it is more than a way to run: it changes what is computed; expected "
                "the recipe's models, precision and sampling to say it",
            )
    addresses = {"vllm": runtime.vllm, "server": runtime.server}
    example = {"vllm": "python=/opt/vllm/bin/python", "server": "url=http://localhost:8000/v1"}
    engine = responses.engine
    if engine in addresses and addresses[engine] is None:
        raise _wrong(
            (*at, "engine"),
            f"is {engine!r}, but there is no runtime.{engine}; expected --set "
            f"runtime.{engine}.{example[engine]}",
        )
    if engine != "server" and responses.served:
        raise _wrong((*at, "served"), f"is set, but engine is {engine!r}; expected engine: server")
    if engine != "server":
        return
    if not responses.served:
        raise _wrong(
            (*at, "served"),
            "is empty, and engine is 'server'; expected what it calls each model: [{model: "
            "student, name: ...}, {model: <teacher>, ratio: ..., name: ...}]",
        )
    wanted = _answering(recipe)
    named = [(served.model, ratio_parts(served.ratio)) for served in responses.served]
    for index, one in enumerate(named):
        if named.index(one) != index:
            raise _wrong((*at, "served", index), f"is a second name for {_masked(*one)}")
        if one not in wanted:
            raise _wrong(
                (*at, "served", index),
                f"is {_masked(*one)}, which no phase asks as it came; expected one of "
                f"{', '.join(_masked(*other) for other in sorted(wanted)) or 'none'}",
            )
    for model, ratio in sorted(wanted):
        if model in {name for name, _ in named} and (model, ratio) not in named:
            raise _wrong(
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


def _terms_fed(method: Method) -> None:
    divergences = {(t.beta, t.temperature) for t in method.objective if t.kind == "jsd"}
    if len(divergences) > 1:
        raise _wrong(
            ("method", "objective"),
            "has jsd terms of different beta or temperature; expected the same for all",
        )
    group = method.responses.teacher + method.responses.student
    kinds = [(term.kind, term.on) for term in method.objective]
    for index, term in enumerate(method.objective):
        at = ("method", "objective", index)
        if kinds.index((term.kind, term.on)) != index:
            raise _wrong(at, f"is a second {term.kind} on {term.on}; expected one with its weight")
        if term.on == "responses" and group == 0:
            raise _wrong(
                (*at, "on"),
                "is 'responses', but method.responses asks for none; expected teacher or student "
                "to be at least 1",
            )
        if term.kind == "grpo" and group < 2:
            raise _wrong(
                at,
                f"is grpo with {group} response a question; expected method.responses.teacher + "
                f"student to be at least 2",
            )
        if term.kind == "grpo" and not (method.rewards.accuracy or method.rewards.distillation):
            raise _wrong(
                at,
                "is grpo without a reward; expected method.rewards.accuracy or "
                "method.rewards.distillation",
            )
    if all(term.weight == 0 for term in method.objective):
        raise _wrong(("method", "objective"), "has only weights of 0; expected one above 0")


def _storable(method: Method) -> None:
    """A stored signal is of responses, and something is compared with it."""
    if method.signal == "live":
        return
    for term in method.objective:
        if term.on == "labels":
            raise _wrong(
                ("method", "signal"),
                f"is {method.signal!r}, which is stored for responses only, but {term.kind} is on "
                "labels; expected 'live', or every term on responses",
            )
    if not compares(method):
        raise _wrong(
            ("method", "signal"),
            f"is {method.signal!r}, but no jsd term and no distillation reward reads it; expected "
            "'live'",
        )


def compares(method: Method) -> bool:
    """Whether training compares the student with its teacher, token by token."""
    kinds = {term.kind for term in method.objective}
    return "jsd" in kinds or ("grpo" in kinds and method.rewards.distillation is not None)


def _phase(recipe: Recipe, index: int, phase: Phase) -> None:
    at = ("method", "phases", index)
    names = [teacher.name for teacher in recipe.models.teachers]
    if phase.student not in (STUDENT, *names):
        raise _wrong(
            (*at, "student"),
            f"is {phase.student!r}; expected {STUDENT} or one of models.teachers: "
            f"{', '.join(names) or 'none'}",
        )
    if phase.teacher is not None:
        _teacher(recipe.method, index, phase.teacher, names)
    need = teacher_needed_by(recipe.method)
    if phase.teacher is None and need is not None:
        raise _wrong(at, f"has no teacher, but {need} needs one; expected teacher: <name>")
    if phase.mask is not None and phase.teacher is None:
        raise _wrong((*at, "mask"), "is set without a teacher; expected teacher: <name> beside it")
    if phase.mask is not None and need is None:
        raise _wrong(
            (*at, "mask"),
            "is set, but no term of method.objective asks a teacher; expected no mask",
        )


def _teacher(method: Method, index: int, named: str, names: list[str]) -> None:
    """``named`` is a model, in a state that it has reached when the phase begins."""
    at = ("method", "phases", index, "teacher")
    model, mark, after = named.partition(MARK)
    if model not in (STUDENT, *names):
        raise _wrong(
            at, f"is {named!r}; expected one of models.teachers: {', '.join(names) or 'none'}"
        )
    earlier = [k for k, phase in enumerate(method.phases[:index]) if phase.student == model]
    states = [f"{model}{MARK}{k}" for k in earlier]
    if mark and after not in [str(k) for k in earlier]:
        raise _wrong(
            at,
            f"is {named!r}, but no phase of that number before this one trains {model}; expected "
            f"{' or '.join(states) or 'a model as it came, by its name alone'}",
        )
    if model == STUDENT and not states:
        raise _wrong(
            at,
            f"is {named!r}, which no phase before this one has trained; expected one of "
            f"models.teachers: {', '.join(names) or 'none'}",
        )


def _has_use(method: Method, index: int) -> None:
    """Who is trained can learn something there, and an assistant teaches later."""
    phases = method.phases
    phase, teacher = phases[index], lineage.teacher(phases, index)
    masked = phase.mask is not None and phase.mask.max_ratio > 0
    only_compared = all(term.kind == "jsd" for term in method.objective)
    if teacher == lineage.learner(phases, index) and only_compared and not masked:
        raise _wrong(
            ("method", "phases", index, "teacher"),
            f"is {phase.teacher!r}, whole and the very model that this phase starts from, so no "
            f"divergence is left to learn from; expected an earlier state, a mask or a grpo term",
        )
    if phase.student == STUDENT:
        return
    left = lineage.Version(model=phase.student, phase=index)
    later = range(index + 1, len(phases))
    if not any(left in (lineage.teacher(phases, k), lineage.learner(phases, k)) for k in later):
        raise _wrong(
            ("method", "phases", index, "student"),
            f"is {phase.student!r}, which neither teaches nor learns in a later phase; expected a "
            f"later phase with teacher: {phase.student}",
        )


def teacher_needed_by(method: Method) -> str | None:
    """The first thing in the method that asks a teacher, or None."""
    for index, term in enumerate(method.objective):
        where = f"method.objective[{index}] ({term.kind})"
        if term.kind == "jsd":
            return where
        if term.kind == "grpo" and method.rewards.distillation is not None:
            return f"the distillation reward of {where}"
        if term.on == "responses" and method.responses.teacher > 0:
            return f"method.responses.teacher ({method.responses.teacher})"
    return None
