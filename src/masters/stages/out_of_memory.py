"""Out of memory, said as what was being done and which settings to lower, the mildest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from masters.errors import StageError
from masters.models.memory import is_out_of_memory

if TYPE_CHECKING:
    from masters.recipe import Runtime
    from masters.specs import StageSpec

#: What helps, by the first word of what was being done.
_HELPS: dict[str, tuple[str, ...]] = {
    "training": (
        "micro_batch", "checkpointing", "activations", "jobs", "group", "pixels", "tokens",
        "teacher_device", "moments", "fewer_trained",
    ),
    "running": ("micro_batch", "jobs", "group", "pixels", "tokens", "teacher_device"),
    "updating": ("jobs", "teacher_device", "moments", "fewer_trained"),
    "validating": ("generation_batch", "jobs", "teacher_device", "pixels", "tokens"),
    "generating": ("generation_batch", "jobs", "teacher_device", "pixels", "tokens"),
    "scoring": ("micro_batch", "jobs", "group", "pixels", "tokens"),
    "loading": ("jobs", "teacher_device", "moments", "fewer_trained"),
}  # fmt: skip


@contextmanager
def explained(spec: StageSpec, runtime: Runtime) -> Iterator[None]:
    """Turns an out-of-memory error into a StageError that names the settings to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise StageError(_said(spec, runtime, error)) from error


def _said(spec: StageSpec, runtime: Runtime, error: BaseException) -> str:
    notes = list(getattr(error, "__notes__", ()))
    doing = notes[0] if notes else f"computing the stage {spec.kind}"
    where = f" ({', '.join(notes[1:])})" if notes[1:] else ""
    settings = to_lower(spec, runtime, doing)
    if settings:
        numbered = "; ".join(f"{n}. {text}" for n, text in enumerate(settings, start=1))
        advice = f"Lower, in this order: {numbered}. With another runtime.* the stage goes on "
        advice += "where it stopped; other keys begin a new one"
    else:
        advice = "Close what else runs here, or take a machine with more memory"
    first = (str(error).strip() or "no room").splitlines()[0]
    reason = ". ".join(first.split(". ")[:2]).rstrip(".")
    return f"out of memory while {doing}{where}: {reason}. {advice}"


def to_lower(spec: StageSpec, runtime: Runtime, doing: str) -> Sequence[str]:
    """The settings that would take less memory, with their values, the mildest first."""
    helps = _HELPS.get(doing.split(" ", 1)[0], tuple(_SETTINGS))
    said = (_SETTINGS[name](spec, runtime) for name in helps)
    return list(dict.fromkeys(text for text in said if text))


def _micro_batch(spec: Any, runtime: Runtime) -> str | None:
    size = runtime.micro_batch_questions
    if size == 1 or spec.kind not in ("train", "score", "signal"):
        return None
    return f"runtime.micro_batch_questions ({size})"


def _generation_batch(spec: Any, runtime: Runtime) -> str | None:
    size = runtime.generation_batch
    judges = spec.kind == "judge" and spec.judge is not None
    if size == 1 or not (judges or spec.kind in ("train", "generate", "evaluate")):
        return None
    return f"runtime.generation_batch ({size})"


def _checkpointing(spec: Any, runtime: Runtime) -> str | None:
    setting = runtime.gradient_checkpointing
    if spec.kind != "train" or setting is True or (setting == "auto" and runtime.device != "cpu"):
        return None
    return f"runtime.gradient_checkpointing ({str(setting).lower()}) to true"


def _activations(spec: Any, runtime: Runtime) -> str | None:
    if spec.kind != "train" or runtime.activation_offload or runtime.device == "cpu":
        return None
    return "runtime.activation_offload (false) to true"


def _jobs(spec: Any, runtime: Runtime) -> str | None:
    return f"runtime.jobs ({runtime.jobs}): stages share the memory" if runtime.jobs > 1 else None


def _teacher_device(spec: Any, runtime: Runtime) -> str | None:
    teachers = {
        "train": "teacher", "signal": "teacher", "judge": "judge", "generate": "source",
        "evaluate": "side",
    }  # fmt: skip
    asked = getattr(spec, teachers.get(spec.kind, ""), None)
    if spec.kind == "train" and spec.signal != "live":
        asked = None
    if asked in (None, "student") or runtime.teacher_device in ("offload", "cpu"):
        return None
    other = "" if runtime.engine != "single" else "another GPU or "
    return f"runtime.teacher_device ({runtime.teacher_device}) to {other}offload"


def _pixels(spec: Any, runtime: Runtime) -> str | None:
    prompt = getattr(spec, "prompt", None)
    if prompt is None:
        return None
    now = "null: as the processor has it" if prompt.max_pixels is None else prompt.max_pixels
    return f"prompt.max_pixels ({now})"


def _group(spec: Any, runtime: Runtime) -> str | None:
    if spec.kind not in ("train", "score", "signal"):
        return None
    if spec.kind == "train" and all(term.on == "labels" for term in spec.objective):
        return None
    limit = runtime.micro_batch_responses
    return None if limit == 1 else f"runtime.micro_batch_responses ({limit or 'null'})"


def _tokens(spec: Any, runtime: Runtime) -> str | None:
    if spec.kind == "judge" and spec.judge is not None:
        tokens = spec.rule.judge.max_new_tokens
        return f"method.rewards.accuracy.judge.max_new_tokens ({tokens})"
    if spec.kind in ("train", "generate", "evaluate"):
        return f"method.responses.max_new_tokens ({spec.max_new_tokens})"
    return "method.responses.max_new_tokens" if spec.kind in ("score", "signal") else None


def _moments(spec: Any, runtime: Runtime) -> str | None:
    if spec.kind != "train" or spec.optimiser.moments == "8bit" or runtime.engine != "single":
        return None
    return f"method.optimiser.moments ({spec.optimiser.moments}) to 8bit"


def _fewer_trained(spec: Any, runtime: Runtime) -> str | None:
    if spec.kind != "train" or spec.lora is not None:
        return None
    if runtime.engine != "single":
        return "models.student.freeze: fewer trained weights"
    return "models.student.lora (null) or .freeze: fewer trained weights"


_SETTINGS: dict[str, Callable[[Any, Runtime], str | None]] = {
    "micro_batch": _micro_batch,
    "generation_batch": _generation_batch,
    "checkpointing": _checkpointing,
    "activations": _activations,
    "jobs": _jobs,
    "pixels": _pixels,
    "group": _group,
    "tokens": _tokens,
    "teacher_device": _teacher_device,
    "moments": _moments,
    "fewer_trained": _fewer_trained,
}
