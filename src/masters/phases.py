"""From a recipe to its stages: names, specs, and which stage reads which.

A draft knows nothing of folders or fingerprints; `plan` adds those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from masters.curriculum import iterations, mask_stages
from masters.ratios import ratio_parts
from masters.recipe import (
    DataSource,
    ModelSource,
    Nll,
    Optimiser,
    Phase,
    Precision,
    Recipe,
    Sft,
)
from masters.specs import (
    EvaluateSpec,
    GenerateSpec,
    JudgeSpec,
    MaskSpec,
    ModelRef,
    Schedule,
    ScoreSpec,
    Side,
    StageSpec,
    TinyInit,
    TrainSpec,
    ValidationSpec,
)

WHOLE_ONLY = (0,)


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A stage before it has a folder; ``inputs``: role -> name of the stage it reads."""

    name: str
    spec: StageSpec
    inputs: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """The part of a phase that one train stage covers; ``suffix`` goes behind stage names."""

    suffix: str
    start: int
    stop: int
    round: int


def limited(source: DataSource, *limits: int | None) -> DataSource:
    """The first questions of the source, as many as the tightest limit allows."""
    given = [limit for limit in (source.limit, *limits) if limit is not None]
    return source.model_copy(update={"limit": min(given)}) if given else source


def phase_name(index: int, phase: Phase) -> str:
    """``0-large``, or ``0`` where no teacher takes part."""
    return str(index) if phase.teacher is None else f"{index}-{phase.teacher}"


def phase_schedule(recipe: Recipe, index: int) -> Schedule:
    """The schedule of the phase: its shuffle depends on seed and index, not on the teacher."""
    phase = recipe.method.phases[index]
    return Schedule(
        key=str(index),
        seed=recipe.method.seed,
        epochs=format(phase.epochs.normalize(), "f"),
        questions_per_step=recipe.method.optimiser.questions_per_step,
        ratios=phase.mask.ratios if phase.mask else WHOLE_ONLY,
        iterations=phase.iterations,
        smoke=recipe.data.limit is not None,
    )


def draft_stages(recipe: Recipe, n_questions: int) -> tuple[Draft, ...]:
    """Every stage the recipe needs, each after the ones it reads.

    Args:
        n_questions: the size of ``data.train``, limits applied.
    """
    return tuple(_Drafting(recipe, n_questions).everything())


class _Drafting:
    """Collects the drafts of one recipe."""

    def __init__(self, recipe: Recipe, n_questions: int) -> None:
        self.recipe = recipe
        self.n_questions = n_questions
        self.drafts: dict[str, Draft] = {}
        self.train = limited(recipe.data.train, recipe.data.limit)
        self.precision: Precision = recipe.method.optimiser.precision

    def everything(self) -> Sequence[Draft]:
        student, student_inputs = self.model(self.recipe.models.student, "student")
        for teacher in self.recipe.models.teachers:
            self.model(teacher, "teacher")
        run_start = (student, dict(student_inputs))
        start = run_start
        for index in range(len(self.recipe.method.phases)):
            last = self.phase(index, start, run_start)
            start = (ModelRef(role="student"), {"student": last})
        self.evaluations(run_start, start)
        return list(self.drafts.values())

    def add(self, name: str, spec: StageSpec, inputs: Mapping[str, str]) -> str:
        self.drafts[name] = Draft(name=name, spec=spec, inputs=dict(inputs))
        return name

    # ---------------------------------------------------------------------------------- models

    def model(self, source: ModelSource, role: str) -> tuple[ModelRef, dict[str, str]]:
        """How a stage refers to the model in ``role``, and the inputs that takes."""
        if source.tiny is None:
            return ModelRef(path=source.path, revision=source.revision), {}
        name = f"model/{source.name}"
        if name not in self.drafts:
            assert source.sft is not None
            self.add(name, self.taught(name, source.tiny, source.sft), {})
        return ModelRef(role=role), {role: name}

    def taught(self, name: str, preset: str, sft: Sft) -> TrainSpec:
        """A tiny model's supervised training; smoke-run limits don't touch it."""
        recipe = self.recipe
        return TrainSpec(
            name=name,
            init=TinyInit(preset=preset, seed=sft.seed, texts=recipe.data.train),
            data=sft.data or recipe.data.train,
            prompt=recipe.prompt,
            seed=sft.seed,
            schedule=Schedule(
                key="sft",
                seed=sft.seed,
                epochs="1",
                questions_per_step=sft.questions_per_step,
                iterations=sft.steps,
            ),
            start=0,
            stop=sft.steps,
            objective=(Nll(on="labels"),),
            optimiser=Optimiser(
                lr=sft.lr,
                questions_per_step=sft.questions_per_step,
                weight_decay=sft.weight_decay,
                precision="fp32",
                betas=sft.betas,
                schedule=sft.schedule,
                warmup_steps=sft.warmup_steps,
            ),
            min_group=1,
            validation=self.watched(sft.validate_every or max(1, sft.steps // 10), None),
            max_new_tokens=recipe.method.responses.max_new_tokens,
        )

    def mask(self, teacher: str, ratios: tuple[int, ...], phase: Phase | None) -> dict[str, str]:
        """The ``thresholds`` input for these ratios; empty where none is above 0."""
        above = tuple(ratio for ratio in ratios if ratio > 0)
        if not above:
            return {}
        reference, inputs = self.model(self.teacher(teacher), "teacher")
        mask = phase.mask if phase else None
        spec = MaskSpec(
            teacher=reference,
            ratios=above,
            **({} if mask is None else mask.model_dump(include={"parts", "include", "exclude"})),
        )
        same = (d.name for d in self.drafts.values() if d.spec == spec and d.inputs == inputs)
        found = next(same, None)
        if found is None:
            taken = sum(name.split("/")[:2] == ["mask", teacher] for name in self.drafts)
            name = f"mask/{teacher}" + (f"/{taken}" if taken else "")
            found = self.add(name, spec, inputs)
        return {"thresholds": found}

    def teacher(self, name: str) -> ModelSource:
        return next(teacher for teacher in self.recipe.models.teachers if teacher.name == name)

    # ---------------------------------------------------------------------------------- phases

    def phase(
        self,
        index: int,
        start: tuple[ModelRef, dict[str, str]],
        run_start: tuple[ModelRef, dict[str, str]],
    ) -> str:
        """Adds one phase; returns the name of its last train stage.

        Args:
            start: the student that starts the phase; ``run_start``: the one that starts the run.
        """
        phase, method = self.recipe.method.phases[index], self.recipe.method
        name = phase_name(index, phase)
        schedule = phase_schedule(self.recipe, index)
        total = iterations(self.n_questions, schedule)
        asks = any(term.on == "responses" for term in method.objective)
        policy = next((term for term in method.objective if term.kind == "grpo"), None)
        reference = run_start if policy and policy.reference == "run" else start
        resampled = asks and method.responses.student > 0 and method.responses.resample != "phase"
        stretches = [Stretch(suffix="", start=0, stop=total, round=0)]
        if resampled:
            stretches = [
                Stretch(suffix=f"/{m}", start=first, stop=stop, round=m)
                for m, (_, first, stop) in enumerate(mask_stages(schedule, total))
            ]
        thresholds = self.mask(phase.teacher, schedule.ratios, phase) if phase.teacher else {}
        shared: dict[str, str] = {}
        if asks and method.responses.teacher > 0:
            assert phase.teacher is not None
            model, model_inputs = self.model(self.teacher(phase.teacher), "model")
            whole = Stretch(suffix="", start=0, stop=total, round=0)
            stage = self.generate(
                "teacher", name, whole, model, {**model_inputs, **thresholds}, schedule
            )
            shared = self.judged_and_scored("teacher", name, "", stage, reference)
        previous = ""
        student, student_inputs = start
        for stretch in stretches:
            own: dict[str, str] = {}
            if asks and method.responses.student > 0:
                model, model_inputs = _as_role("model", student, student_inputs)
                stage = self.generate("student", name, stretch, model, model_inputs, schedule)
                own = self.judged_and_scored("student", name, stretch.suffix, stage, reference)
            inputs = {**student_inputs, **thresholds, **shared, **own}
            previous = self.trained(index, stretch, student, inputs, schedule)
            student, student_inputs = ModelRef(role="student"), {"student": previous}
        return previous

    def generate(
        self,
        source: Side,
        phase: str,
        stretch: Stretch,
        model: ModelRef,
        inputs: Mapping[str, str],
        schedule: Schedule,
    ) -> str:
        responses = self.recipe.method.responses
        if source == "student":
            schedule = schedule.model_copy(update={"ratios": WHOLE_ONLY})
        spec = GenerateSpec(
            source=source,
            model=model,
            data=self.train,
            prompt=self.recipe.prompt,
            seed=self.recipe.method.seed,
            schedule=schedule,
            start=stretch.start,
            stop=stretch.stop,
            samples=responses.teacher if source == "teacher" else responses.student,
            round=stretch.round,
            temperature=responses.temperature,
            top_p=responses.top_p,
            top_k=responses.top_k,
            repetition_penalty=responses.repetition_penalty,
            max_new_tokens=responses.max_new_tokens,
            engine=responses.engine,
            precision=responses.precision or self.precision,
            on_full_cross=responses.full_cross and source == "teacher",
        )
        return self.add(f"generate/{phase}/{source}{stretch.suffix}", spec, inputs)

    def judged_and_scored(
        self,
        source: Side,
        phase: str,
        suffix: str,
        responses: str,
        reference: tuple[ModelRef, dict[str, str]],
    ) -> dict[str, str]:
        """The train inputs that come from one store of responses."""
        method = self.recipe.method
        policy = next((term for term in method.objective if term.kind == "grpo"), None)
        found = {f"responses.{source}": responses}
        if policy and method.rewards.accuracy:
            judge = JudgeSpec(source=source, data=self.train, rule=method.rewards.accuracy)
            name = f"judge/{phase}/{source}{suffix}"
            found[f"rewards.{source}"] = self.add(name, judge, {"responses": responses})
        if policy and policy.kl > 0:
            model, inputs = _as_role("reference", *reference)
            score = ScoreSpec(
                source=source,
                reference=model,
                data=self.train,
                prompt=self.recipe.prompt,
                precision=self.precision,
            )
            name = f"score/{phase}/{source}{suffix}"
            found[f"scores.{source}"] = self.add(name, score, {**inputs, "responses": responses})
        return found

    def trained(
        self,
        index: int,
        stretch: Stretch,
        student: ModelRef,
        inputs: Mapping[str, str],
        schedule: Schedule,
    ) -> str:
        recipe, method = self.recipe, self.recipe.method
        phase = method.phases[index]
        policy = any(term.kind == "grpo" for term in method.objective)
        live = any(term.kind == "jsd" for term in method.objective)
        live = live or (policy and method.rewards.distillation is not None)
        teacher: ModelRef | None = None
        inputs = dict(inputs)
        if live and phase.teacher:
            teacher, teacher_inputs = self.model(self.teacher(phase.teacher), "teacher")
            inputs |= teacher_inputs
        else:
            inputs.pop("thresholds", None)
        name = f"train/{phase_name(index, phase)}{stretch.suffix}"
        spec = TrainSpec(
            name=name,
            init=student,
            teacher=teacher,
            data=self.train,
            prompt=recipe.prompt,
            seed=method.seed,
            schedule=schedule,
            start=stretch.start,
            stop=stretch.stop,
            objective=method.objective,
            optimiser=method.optimiser,
            rewards=method.rewards if policy else None,
            signal=method.signal,
            min_group=2 if policy else 1,
            validation=self.watched(recipe.validation.every, recipe.data.limit),
            carry_optimiser=stretch.start > 0,
            max_new_tokens=method.responses.max_new_tokens,
            freeze=recipe.models.student.freeze,
            lora=recipe.models.student.lora,
        )
        return self.add(name, spec, inputs)

    # ---------------------------------------------------------------------------------- checks

    def watched(self, every: int | None, limit: int | None) -> ValidationSpec | None:
        recipe = self.recipe
        if recipe.data.validation is None or recipe.validation.every is None or every is None:
            return None
        return ValidationSpec(
            data=limited(recipe.data.validation, limit),
            questions=recipe.validation.questions,
            every=every,
            max_new_tokens=self.answer_tokens(),
            rule=recipe.evaluation.rule,
        )

    def answer_tokens(self) -> int:
        return self.recipe.evaluation.max_new_tokens or self.recipe.method.responses.max_new_tokens

    def evaluations(
        self,
        start: tuple[ModelRef, dict[str, str]],
        final: tuple[ModelRef, dict[str, str]],
    ) -> None:
        """The untouched student, the trained one, and the teachers at every ratio of the curve."""
        evaluation = self.recipe.evaluation
        self.evaluate("start", _as_role("model", *start), "last", WHOLE_ONLY, {})
        self.evaluate("student", _as_role("model", *final), evaluation.checkpoint, WHOLE_ONLY, {})
        for teacher in self.recipe.models.teachers:
            own = [p for p in self.recipe.method.phases if p.teacher == teacher.name and p.mask]
            ratios = self.curve(own)
            thresholds = self.mask(teacher.name, ratios, own[0] if own else None)
            model = self.model(teacher, "model")
            self.evaluate(f"teacher-{teacher.name}", model, "last", ratios, thresholds)

    def curve(self, phases: Sequence[Phase]) -> tuple[int, ...]:
        """The ratios of a teacher's masking curve, falling, 0 included."""
        evaluation = self.recipe.evaluation
        ratios = {0}
        if evaluation.masking_curve and evaluation.masking_ratios is not None:
            ratios |= {ratio_parts(ratio) for ratio in evaluation.masking_ratios}
        elif evaluation.masking_curve:
            ratios |= {ratio for phase in phases if phase.mask for ratio in phase.mask.ratios}
        return tuple(sorted(ratios, reverse=True))

    def evaluate(
        self,
        name: str,
        model: tuple[ModelRef, dict[str, str]],
        checkpoint: str,
        ratios: tuple[int, ...],
        thresholds: Mapping[str, str],
    ) -> None:
        recipe = self.recipe
        if recipe.data.test is None:
            return
        reference, inputs = model
        spec = EvaluateSpec(
            model=reference,
            side="teacher" if name.startswith("teacher-") else "student",
            checkpoint="best" if checkpoint == "best" else "last",
            data=limited(recipe.data.test, recipe.data.limit, recipe.evaluation.questions),
            prompt=recipe.prompt,
            benchmark=recipe.evaluation.benchmark,
            rule=recipe.evaluation.rule,
            max_new_tokens=self.answer_tokens(),
            precision=self.precision,
            ratios=ratios,
        )
        self.add(f"evaluate/{name}", spec, {**inputs, **thresholds})


def _as_role(
    role: str, model: ModelRef, inputs: Mapping[str, str]
) -> tuple[ModelRef, dict[str, str]]:
    """The same model under another role."""
    if model.role is None:
        return model, {}
    return ModelRef(role=role), {role: inputs[model.role]}
