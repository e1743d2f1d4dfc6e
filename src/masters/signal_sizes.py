"""What a teacher's stored signal takes at most, on disk and in memory: planned, not run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from masters import lineage
from masters.curriculum import count_pairs
from masters.phases import phase_name
from masters.plan import Plan, Stage
from masters.specs import GenerateSpec, SignalSpec

if TYPE_CHECKING:
    from masters.sizes import ModelSize

ITEM = {"fp32": 4, "bf16": 2}
#: An int32 for each kept token's id; a float32 for all other tokens together.
ID, REST = 4, 4


@dataclass(frozen=True, kw_only=True)
class SignalSize:
    """One stored signal of a plan.

    Args:
        stage: its name.
        signal: hidden or topk.
        bytes_per_token: of a response.
        tokens: of every response to every (question, ratio) that is trained on, each as long as it
            may be; duplicates, which are stored once, and shorter ones make it less.
        disk_bytes: of so many tokens, and the head.
        memory_bytes: of the head beside the student while it trains; 0 for topk.
    """

    stage: str
    signal: str
    bytes_per_token: int
    tokens: int
    disk_bytes: int
    memory_bytes: int


def signal_sizes(plan: Plan, models: Mapping[str, ModelSize]) -> Iterator[SignalSize]:
    """The size of each stored signal of the plan.

    Args:
        models: by name.
    """
    phases = plan.recipe.method.phases
    teachers = {
        phase_name(index, phase): lineage.teacher(phases, index)
        for index, phase in enumerate(phases)
    }
    student = plan.recipe.models.student.name
    for stage in plan.stages:
        spec = stage.spec
        if not isinstance(spec, SignalSpec):
            continue
        version = teachers[stage.name.split("/")[1]]
        assert version is not None
        teacher, item = models[version.model], ITEM[spec.precision]
        common = min(teacher.head_rows, models[student].head_rows)
        if spec.k is None:
            each, head = teacher.head_width * item, common * teacher.head_width * item
        else:
            each, head = min(spec.k, common) * (item + ID) + REST, 0
        tokens = _tokens(plan, stage, spec)
        yield SignalSize(
            stage=stage.name,
            signal=spec.signal,
            bytes_per_token=each,
            tokens=tokens,
            disk_bytes=tokens * each + head,
            memory_bytes=head,
        )


def _tokens(plan: Plan, stage: Stage, spec: SignalSpec) -> int:
    """Of all responses that the stage reads, were none shorter than it may be."""
    answers = [plan.by_name[name].spec for name in stage.inputs.values()]
    of_a_question = sum(
        one.samples * one.max_new_tokens for one in answers if isinstance(one, GenerateSpec)
    )
    return of_a_question * count_pairs(spec.schedule, plan.questions, spec.start, spec.stop)
