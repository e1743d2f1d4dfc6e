"""``masters speed``: time to the first token, tokens a second and memory, through our engine."""

from __future__ import annotations

import json
import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from masters.artifacts import atomic_write_text, versions
from masters.data.sources import open_questions
from masters.display import Display
from masters.errors import RecipeError, StageError
from masters.evaluation.speed import SPEED, Speed, Speeds, Spread
from masters.measuring.speed_subjects import Measured, Subjects

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from masters.generation.engine import TransformersEngine
    from masters.models.encode import EncodedPrompt
    from masters.stages.opening import OpenedModel, Prompts

_NO_END = (-1,)
"""No token ends an answer: all models decode the same number."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of each model.

    Args:
        tokens: decoded for each question, at least 2.
        batches: how many questions at a time, one measurement each.
        repeats: timed, at least 1, after ``warm_up`` that are not.
    """

    tokens: int = 64
    batches: tuple[int, ...] = (1, 8)
    repeats: int = 5
    warm_up: int = 1


def read_load(*, tokens: int, batches: str, repeats: int, warm_up: int) -> Load:
    """The numbers of the command line, checked.

    Raises:
        RecipeError: one is out of range or no number.
    """
    try:
        sizes = tuple(dict.fromkeys(int(text) for text in batches.split(",")))
    except ValueError:
        raise RecipeError(f"--batches {batches!r}: expected numbers such as 1,8") from None
    if min(sizes) < 1 or tokens < 2 or repeats < 1 or warm_up < 0:
        raise RecipeError(
            f"--batches {batches} --tokens {tokens} --repeats {repeats} --warm-up {warm_up}: "
            "expected at least 1, 2, 1 and 0"
        )
    return Load(tokens=tokens, batches=sizes, repeats=repeats, warm_up=warm_up)


def measure_speed(subjects: Subjects, load: Load, out: Path, command: Sequence[str]) -> Speeds:
    """Measures every model, one after the other, and writes OUT/speed.json.

    Raises:
        MastersError: a model or the data cannot be opened, or nothing can be told.
    """
    from masters.dispatch import quiet_libraries
    from masters.workers import configure

    quiet_libraries()
    configure(subjects.recipe.runtime)
    rows: list[Speed] = []
    with Display(Console(stderr=True), len(subjects.models)) as display:
        for model in subjects.models:
            begin = time.monotonic()
            name = f"speed/{model.name}"
            display.start(name)
            try:
                rows += _measured(subjects, model, load, _progress(display, name))
            except BaseException:
                display.fail(name)
                raise
            display.end(name, time.monotonic() - begin)
    found = Speeds(
        command=shlex.join(command),
        machine=_machine(subjects),
        settings={
            "new_tokens": load.tokens,
            "repeats": load.repeats,
            "warm_up": load.warm_up,
            "questions": subjects.data.model_dump(mode="json"),
        },
        rows=tuple(rows),
    )
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found.as_json(), indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write_text(out / SPEED, text + "\n")
    return found


def _progress(display: Display, name: str) -> Callable[[int, int, str], None]:
    return lambda done, total, note: display.update(name, done, total, note)


def _measured(
    subjects: Subjects, model: Measured, load: Load, progress: Callable[[int, int, str], None]
) -> list[Speed]:
    """The model at every batch size; its memory is free again afterwards."""
    import torch

    from masters.models.memory import doing
    from masters.stages.opening import Prompts, open_model

    recipe = subjects.recipe
    rows = []
    with _folder(model) as folder, doing(f"measuring the speed of {model.name}"):
        opened = open_model(
            folder, recipe.prompt, recipe.runtime, precision=recipe.method.optimiser.precision
        )
        questions = open_questions(subjects.data, need_label=False)
        prompts = Prompts(questions, opened.processor, recipe.prompt, cache=0)
        for index, batch in enumerate(load.batches):
            progress(index, len(load.batches), f"batch {batch}")
            rows.append(_at_batch(opened, prompts, model, load, batch, recipe))
        del opened, prompts
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return rows


def _at_batch(
    opened: OpenedModel, prompts: Prompts, model: Measured, load: Load, batch: int, recipe: Any
) -> Speed:
    from masters.generation.engine import TransformersEngine
    from masters.models.load import DTYPES

    device = opened.model.device
    clock = _Clock(device)
    engine = TransformersEngine(
        opened.model,
        opened.processor,
        replace(opened.ids, end=_NO_END),
        batch_rows=batch,
        precision=DTYPES[recipe.method.optimiser.precision],
        watch=clock.token,
    )
    encode, asked = [], []
    for index in range(batch):
        begin = time.perf_counter()
        asked.append(prompts(index % len(prompts.questions)))
        encode.append(time.perf_counter() - begin)
    for _ in range(load.warm_up):
        _seconds(engine, clock, asked, load.tokens)
    peak = _Peak(device)
    timed = [_seconds(engine, clock, asked, load.tokens) for _ in range(load.repeats)]
    return Speed(
        model=model.name,
        role=model.role,
        parameters=opened.model.num_parameters(),
        batch=batch,
        prompt_tokens=max(len(prompt.ids) for prompt in asked),
        new_tokens=load.tokens,
        encode=Spread.of(encode),
        first=Spread.of([first for first, _ in timed]),
        decode=Spread.of([batch * (load.tokens - 1) / (end - first) for first, end in timed]),
        answer=Spread.of([batch * load.tokens / end for _, end in timed]),
        peak_bytes=peak.read(),
    )


def _seconds(
    engine: TransformersEngine, clock: _Clock, asked: Sequence[EncodedPrompt], tokens: int
) -> tuple[float, float]:
    """Seconds to the first token and to the last of one greedy batch, ``tokens`` each."""
    from masters.generation.engine import Request
    from masters.generation.sampling import SampleKey, Sampling

    requests = [
        Request(prompt=prompt, keys=(SampleKey(
            seed=0, question_id=str(i), source="greedy", ratio=0, round=0, sample=0,
        ),))
        for i, prompt in enumerate(asked)
    ]  # fmt: skip
    clock.start()
    answers = engine.generate(requests, Sampling.greedy(tokens))
    seconds = clock.stop()
    lengths = {len(completion.token_ids) for found in answers for completion in found}
    if lengths != {tokens}:
        raise StageError(f"answers of {sorted(lengths)} tokens; expected {tokens} each")
    return seconds


class _Clock:
    """Times a batch and its first token; waits for the device at those moments and no others."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begin = 0.0
        self._first: float | None = None

    def start(self) -> None:
        """A batch begins."""
        self._begin, self._first = self._now(), None

    def token(self) -> None:
        """A token of the batch was chosen."""
        if self._first is None:
            self._first = self._now()

    def stop(self) -> tuple[float, float]:
        """Seconds from the start to the first token, and to now."""
        assert self._first is not None
        return self._first - self._begin, self._now() - self._begin

    def _now(self) -> float:
        import torch

        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class _Peak:
    """The most memory from here on: of the device, or of this process on a CPU."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._device = device
        self._known = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            try:
                Path("/proc/self/clear_refs").write_text("5")
            except OSError:
                self._known = False  # no Linux, or not allowed

    def read(self) -> int | None:
        """Bytes; None where the system does not say."""
        import torch

        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if not self._known:
            return None
        status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        line = next((line for line in status if line.startswith("VmHWM:")), None)
        return None if line is None else int(line.split()[1]) * 1024


@contextmanager
def _folder(model: Measured) -> Iterator[Path]:
    """The model's folder; a tiny one is written with fresh weights, which cost the same time."""
    from masters.data.scenes import scene_vocabulary
    from masters.models.load import local_folder
    from masters.models.tiny import write_tiny_model

    if model.tiny is None:
        assert model.path is not None
        yield local_folder(model.path, revision=model.revision)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / model.name
        write_tiny_model(folder, model.tiny, seed=0, texts=scene_vocabulary())
        yield folder


def _machine(subjects: Subjects) -> dict[str, Any]:
    import platform

    import torch

    from masters.stages.opening import device_of

    recipe = subjects.recipe
    device = device_of(recipe.runtime)
    cuda = device.type == "cuda"
    return {
        "device": str(device),
        "name": torch.cuda.get_device_name(device) if cuda else _processor(platform.processor()),
        "threads": torch.get_num_threads(),
        "precision": recipe.method.optimiser.precision,
        "attention": recipe.runtime.attention,
        "versions": versions(),
    }


def _processor(known: str) -> str:
    """What the CPU calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
    return found or known or "CPU"
