"""What one stage is asked to do: torch-free, frozen, and all that its output depends on.

A spec plus the fingerprints of its inputs determine what a stage folder holds. Models appear as
`ModelRef`: a path, or the role of the input stage whose folder holds them in ``model/``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from masters.artifacts import RunInfo
from masters.parts import PARTS, Part
from masters.recipe import (
    AccuracyRule,
    DataSource,
    Lora,
    Optimiser,
    Precision,
    Prompt,
    Rewards,
    Term,
)

NUMERICS: dict[str, int] = {
    "train": 3,
    "mask": 1,
    "generate": 2,
    "judge": 4,
    "score": 1,
    "signal": 1,
    "evaluate": 4,
}
"""Raised by one whenever a stage's code starts to give other numbers for the same spec."""

Side = Literal["teacher", "student"]


class Spec(BaseModel):
    """A frozen block of a stage's spec."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelRef(Spec):
    """A model on disk or on the hub (``path``), or in an input stage's folder (``role``)."""

    path: str | None = None
    revision: str | None = None
    role: str | None = None


class TinyInit(Spec):
    """A tiny model with fresh weights; its tokenizer is trained on the texts of ``texts``."""

    kind: Literal["tiny"] = "tiny"
    preset: str
    seed: int
    texts: DataSource


class Schedule(Spec):
    """Which question is trained in which iteration, at which mask ratio: see `curriculum`.

    Args:
        key: what the shuffle is drawn for, besides seed and epoch: the phase's index.
        epochs: a decimal as text.
        ratios: per 10,000, in the order of the mask stages: falling to 0, or rising from it.
        iterations: optimiser steps; None: floor(epochs x questions / questions_per_step).
        smoke: fewer iterations than mask stages are fine: some ratios are skipped.
    """

    key: str
    seed: int
    epochs: str
    questions_per_step: int
    ratios: tuple[int, ...] = (0,)
    iterations: int | None = None
    smoke: bool = False


class ValidationSpec(Spec):
    """Greedy answers to the first ``questions`` of ``data``, every so many steps and at the end."""

    data: DataSource
    questions: int | None
    every: int
    max_new_tokens: int
    rule: AccuracyRule


class TrainSpec(Spec):
    """Iterations ``start`` to ``stop`` (exclusive) of ``schedule`` on the weighted ``objective``.

    Roles: ``student`` (the init, unless a path or tiny), ``teacher``, ``thresholds``, ``signal``
    (unless live: the teacher then only says of whom it must be), and ``responses|rewards|scores``
    each ``.teacher`` and ``.student``. With ``carry_optimiser`` the folder of ``student`` holds the
    optimiser too, and with ``lora`` the adapters.
    """

    kind: Literal["train"] = "train"
    name: str
    init: TinyInit | ModelRef
    teacher: ModelRef | None = None
    data: DataSource
    prompt: Prompt
    seed: int
    schedule: Schedule
    start: int
    stop: int
    objective: tuple[Term, ...]
    optimiser: Optimiser
    rewards: Rewards | None = None
    signal: Literal["live", "hidden", "topk"] = "live"
    min_group: int = 2
    validation: ValidationSpec | None = None
    carry_optimiser: bool = False
    max_new_tokens: int
    freeze: tuple[Part, ...] = ()
    lora: Lora | None = None


class MaskSpec(Spec):
    """Thresholds of every masked layer of ``teacher`` at every one of ``ratios``. Role: teacher.

    Args:
        masking: None: by magnitude. Not ``kind``, which says what stage it is.
        temperatures: of a softness mask, one for each ratio.
    """

    kind: Literal["mask"] = "mask"
    teacher: ModelRef
    ratios: tuple[int, ...]
    parts: tuple[Part, ...] = PARTS
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    masking: Literal["random", "softness"] | None = None
    temperatures: tuple[float, ...] | None = None


class ServedRatio(Spec):
    """What a server calls a model at one masking ratio (per 10,000).

    Not ``name``: names are labels of ours, which fingerprints leave out.
    """

    ratio: int
    model: str


class GenerateSpec(Spec):
    """``samples`` responses to every (question, ratio) of iterations ``start`` to ``stop``.

    With ``on_full_cross`` every ratio of the schedule answers every question of that stretch.
    Roles: ``model``, ``thresholds`` (when a ratio is above 0).

    Args:
        served: with the engine ``server``, its name for the model at each ratio asked.
    """

    kind: Literal["generate"] = "generate"
    source: Side
    model: ModelRef
    data: DataSource
    prompt: Prompt
    seed: int
    schedule: Schedule
    start: int
    stop: int
    samples: int
    round: int = 0
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    max_new_tokens: int
    engine: Literal["transformers", "vllm", "server"] = "transformers"
    served: tuple[ServedRatio, ...] | None = None
    precision: Precision
    on_full_cross: bool = False
    shard_questions: int = 256


class LocalJudge(Spec):
    """A model that judges in the stage itself; ``name`` is what verdicts call it."""

    name: str
    model: ModelRef
    precision: Precision


class JudgeSpec(Spec):
    """The accuracy reward of every response.

    Roles: responses, and ``judge`` where ``judge`` is the model of a stage; it is None where a rule
    judges, or a server.
    """

    kind: Literal["judge"] = "judge"
    source: Side
    data: DataSource
    rule: AccuracyRule
    judge: LocalJudge | None = None


class ScoreSpec(Spec):
    """Log-probabilities of every stored token under ``reference``. Roles: reference, responses."""

    kind: Literal["score"] = "score"
    source: Side
    reference: ModelRef
    data: DataSource
    prompt: Prompt
    precision: Precision


class SignalSpec(Spec):
    """What ``teacher`` says of every response that iterations ``start`` to ``stop`` train on.

    At each (question, ratio) of the plan it reads the teacher's responses at that ratio and the
    student's. Roles: teacher, student (for its vocabulary), thresholds, responses.teacher,
    responses.student.

    Args:
        k: kept tokens of each distribution; None for hidden states.
        temperature: of the JSD; None for hidden states, which hold it for all of them.
    """

    kind: Literal["signal"] = "signal"
    signal: Literal["hidden", "topk"]
    k: int | None = None
    temperature: float | None = None
    teacher: ModelRef
    student: ModelRef
    data: DataSource
    prompt: Prompt
    schedule: Schedule
    start: int
    stop: int
    precision: Precision
    shard_questions: int = 64


class EvaluateSpec(Spec):
    """Greedy answers to held-out questions at each of ``ratios`` (0 included).

    ``side`` says only on which device. Roles: ``model``, ``thresholds`` (when a ratio is above 0).
    """

    kind: Literal["evaluate"] = "evaluate"
    model: ModelRef
    side: Side = "student"
    checkpoint: Literal["last", "best"] = "last"
    data: DataSource
    prompt: Prompt
    benchmark: str
    rule: AccuracyRule
    max_new_tokens: int
    precision: Precision
    ratios: tuple[int, ...] = (0,)


class ReportSpec(Spec):
    """The report over ``runs``; it lies beside the stages and is rewritten when they change."""

    kind: Literal["report"] = "report"
    runs: tuple[RunInfo, ...]
    out: Path | None = None
    """The output folder; its benchmarks and speed.json are shown too."""


StageSpec = Annotated[
    TrainSpec | MaskSpec | GenerateSpec | JudgeSpec | ScoreSpec | SignalSpec | EvaluateSpec,
    Field(discriminator="kind"),
]
"""Every stage that has a fingerprinted folder."""

AnySpec = StageSpec | ReportSpec
"""Every stage there is."""
