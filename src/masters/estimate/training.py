"""A train stage as a job: alone on a GPU, or sharded over many."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from masters.drafts import Draft
from masters.estimate import memory, passes
from masters.estimate.jobs import Job
from masters.estimate.memory import Bytes
from masters.estimate.passes import ITEM, Trained
from masters.estimate.shapes import shape_of_source
from masters.estimate.work import Work
from masters.models import counts
from masters.models.counts import ModelShape
from masters.recipe import ModelSource
from masters.specs import GenerateSpec, TinyInit, TrainSpec

if TYPE_CHECKING:
    from masters.estimate.stages import Jobs

#: Bytes of a parameter in a checkpoint: weight and two moments in float32.
CHECKPOINT_BYTES = 12


def train_job(jobs: Jobs, draft: Draft, spec: TrainSpec) -> Job:
    """The job of a train stage."""
    stage = _Training(jobs, draft, spec)
    runtime = jobs.recipe.runtime
    apart = stage.teacher is not None and stage.live and runtime.teacher_device.startswith("cuda")
    return Job(
        precision=spec.optimiser.precision,
        work=stage.work,
        memory=stage.memory,
        each=2 if apart else 1,
        shared=stage.sharded,
        disk_gb=stage.kept_bytes / 1e9,
    )


@dataclass(frozen=True)
class _Training:
    """One train stage's numbers."""

    jobs: Jobs
    draft: Draft
    spec: TrainSpec

    # ------------------------------------------------------------------------------ what it is

    @property
    def source(self) -> ModelSource:
        """The model that is trained."""
        jobs, name = self.jobs, self.draft.name.split("/")[1]
        if isinstance(self.spec.init, TinyInit):
            models = jobs.recipe.models
            return next(one for one in (models.student, *models.teachers) if one.name == name)
        return jobs.source(self.draft, self.spec.init, "student")

    @property
    def student(self) -> ModelShape:
        return shape_of_source(self.source)

    @property
    def teacher(self) -> ModelShape | None:
        """The model whose distribution is compared with; None where none is."""
        if self.spec.teacher is None:
            return None
        return self.jobs.shape(self.draft, self.spec.teacher, "teacher")

    @property
    def live(self) -> bool:
        return self.spec.signal == "live"

    @property
    def compared(self) -> ModelShape | None:
        """The teacher whose head is run on the tokens."""
        return None if self.spec.signal == "topk" else self.teacher

    @property
    def sharded(self) -> bool:
        tiny = isinstance(self.spec.init, TinyInit)
        return getattr(self.jobs.recipe.runtime, "engine", "single") != "single" and not tiny

    @property
    def trained_parameters(self) -> float:
        source, shape = self.source, self.student
        if source.lora is not None:
            return (memory.trained_weights(source, shape, "fp32") - 4 * shape.parameters) / 16
        return shape.parameters - memory.frozen_parameters(source, shape)

    @property
    def how(self) -> Trained:
        """A question's group, and how it is taken."""
        jobs, runtime, workload = self.jobs, self.jobs.recipe.runtime, self.jobs.workload
        stored = [jobs.drafts[name].spec for name in self.draft.inputs.values()]
        answers = [one for one in stored if isinstance(one, GenerateSpec)]
        group, tokens = 0.0, 0.0
        if any(term.on == "responses" for term in self.spec.objective) and answers:
            group = max(1.0, sum(one.samples for one in answers) * workload.distinct)
            tokens = group * workload.answer(self.spec.max_new_tokens)[0]
        if any(term.on == "labels" for term in self.spec.objective):
            group, tokens = group + 1, tokens + workload.label_tokens
        split = runtime.micro_batch_responses
        checkpointing = runtime.gradient_checkpointing
        frozen = "vision" in self.source.freeze
        lora = self.source.lora
        return Trained(
            group=group,
            response=tokens / group,
            checkpointing=(
                jobs.cluster.device == "cuda" if checkpointing == "auto" else checkpointing
            ),
            frozen_tower=frozen or (lora is not None and "vision" not in lora.parts),
            pieces=1 if split is None else math.ceil(group / split),
            lora=lora is not None,
        )

    # ------------------------------------------------------------------------------- its work

    def work(self, processes: int) -> Work:
        """Of one process among so many."""
        jobs, spec = self.jobs, self.spec
        steps = spec.stop - spec.start
        own = math.ceil(spec.schedule.questions_per_step / processes)
        step = self._passes(own, processes)
        step += Work(updates=self.trained_parameters / processes)
        opened = jobs.loaded(self.student, "fp32", processes)
        if self.teacher is not None and self.live:
            opened += jobs.loaded(self.teacher, spec.optimiser.precision, processes)
            falls = len(spec.schedule.ratios) - 1
            opened += Work(disk_bytes=2 * falls * self.teacher.parameters, stages=-1)
        return step * steps + self._validated() + self._written(steps) + opened

    def _passes(self, own: int, processes: int) -> Work:
        """Forward and backward passes of a process's questions of a step."""
        jobs, spec = self.jobs, self.spec
        runtime, precision = jobs.recipe.runtime, spec.optimiser.precision
        how, item = self.how, ITEM[spec.optimiser.precision]
        one = passes.trained(
            self.student, self.compared, self.live, jobs.workload, how, runtime,
            jobs.cluster.device, precision,
        )  # fmt: skip
        together = math.ceil(own / runtime.micro_batch_questions) if how.pieces == 1 else own
        found = Work(
            train_flops=one.train_flops * own,
            forward_flops=one.forward_flops * own,
            head_flops=one.head_flops * own,
            layer_passes=one.layer_passes * together,
            passes=one.passes * together,
        )
        teacher = self.teacher if self.live else None
        for reader in (self.student, teacher):
            if reader is not None:
                found += jobs.encoded(reader, own)
        if teacher is not None and jobs.streamed("teacher"):
            found += Work(host_bytes=together * item * teacher.layer_parameters)
        if processes > 1:
            # Weights are gathered for forward and backward, gradients sent in float32.
            moved = 2 * item * self.student.parameters + 4 * self.trained_parameters
            if teacher is not None and not jobs.streamed("teacher"):
                moved += item * teacher.parameters
            found += Work(link_bytes=together * how.pieces * moved)
        return found

    def _validated(self) -> Work:
        """Greedy answers while training; every process gives all of them."""
        jobs, validation = self.jobs, self.spec.validation
        if validation is None:
            return Work()
        count = jobs.size(validation.data, validation.questions or jobs.workload.test_questions)
        count = min(count, validation.questions or count)
        times = (self.spec.stop - self.spec.start) // validation.every + 1
        answered = passes.generated(
            self.student, jobs.workload, jobs.cluster, prompts=count, samples=1,
            batch=jobs.recipe.runtime.generation_batch, limit=validation.max_new_tokens,
            precision=self.spec.optimiser.precision, sampled=False,
        )  # fmt: skip
        return answered * times + jobs.encoded(self.student, count)

    def _written(self, steps: int) -> Work:
        every = self.jobs.recipe.runtime.checkpoint_every
        checkpoints = steps // every * CHECKPOINT_BYTES * self.trained_parameters
        return Work(disk_bytes=checkpoints + 4 * self.student.parameters)

    @property
    def kept_bytes(self) -> float:
        """Bytes on disk at its fullest: the models, and two checkpoints."""
        models = 1 if self.spec.validation is None else 2
        checkpoints = 2 * CHECKPOINT_BYTES * self.trained_parameters
        return 4 * models * self.student.parameters + checkpoints

    # ----------------------------------------------------------------------------- its memory

    def memory(self, processes: int) -> Bytes:
        """Bytes of each GPU; where the teacher has one of its own, of the fuller of both."""
        jobs, spec, student = self.jobs, self.spec, self.student
        runtime, precision = jobs.recipe.runtime, spec.optimiser.precision
        item, n = ITEM[precision], processes
        state = memory.trained_weights(self.source, student, spec.optimiser.moments)
        found: Bytes = {"trained weights, gradients, moments": state / n}
        if n > 1:
            gathered = max(student.largest_layer, student.head)
            found["gathered layers"] = 2 * item * gathered
        elif precision == "bf16":
            found["bf16 copies of weights"] = item * student.parameters
        teacher: Bytes = {}
        if self.teacher is not None:
            teacher = self._teacher(self.teacher, n)
        passing = memory.training(
            student, self.compared, self.live, jobs.workload, self.how, runtime,
            jobs.cluster.device, precision,
        )  # fmt: skip
        if spec.validation is not None:
            answers = memory.answering(
                student, jobs.workload, precision, rows=runtime.generation_batch,
                longest=jobs.workload.answer(spec.validation.max_new_tokens)[1],
                prompt=jobs.workload.prompt, image=jobs.workload.image_tokens,
            )  # fmt: skip
            passing["activations"] = max(passing["activations"], sum(answers.values()))
        if runtime.teacher_device.startswith("cuda") and self.live and teacher:
            alone = {**teacher, "activations": passing["activations"]}
            here = {**found, **passing}
            return max(here, alone, key=lambda one: sum(one.values()))
        return {**found, **teacher, **passing}

    def _teacher(self, shape: ModelShape, processes: int) -> Bytes:
        """What of the teacher lies beside the student, or on its own GPU."""
        jobs, precision = self.jobs, self.spec.optimiser.precision
        if self.spec.signal == "hidden":
            return {"teacher's head": ITEM[precision] * counts.logits(shape, 1) / 2}
        if self.spec.signal == "topk" or jobs.recipe.runtime.teacher_device == "cpu":
            return {}
        streamed = jobs.streamed("teacher")
        held = memory.weights(shape, precision, offload=streamed)
        if processes > 1 and not streamed:
            held = held / processes + 2 * ITEM[precision] * max(shape.largest_layer, shape.head)
        return {"teacher": held}
