"""From a recipe to its stages: names, specs, and which stage reads which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from masters import lineage
from masters.curriculum import iterations, mask_stages
from masters.drafts import WHOLE_ONLY, Draft, Drafts, Opened, as_role
from masters.evaluation_drafts import draft_evaluations
from masters.lineage import STUDENT, Version
from masters.ratios import ratio_parts
from masters.recipe import Phase, Recipe
from masters.recipe_needs import compared_by, compares, judges
from masters.specs import (
    GenerateSpec,
    JudgeSpec,
    LocalJudge,
    ModelRef,
    Schedule,
    ScoreSpec,
    ServedRatio,
    Side,
    SignalSpec,
    TrainSpec,
)


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """The part of a phase that one train stage covers; ``suffix`` goes behind stage names."""

    suffix: str
    start: int
    stop: int
    round: int


def phase_name(index: int, phase: Phase) -> str:
    """``0-large``, ``0`` without a teacher; ``0-large-to-mid`` where another than the student is
    trained."""
    taught = "" if phase.teacher is None else f"-{phase.teacher}"
    learns = "" if phase.student == STUDENT else f"-to-{phase.student}"
    return f"{index}{taught}{learns}"


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
    drafts = Drafts(recipe)
    drafts.model(Version(model=STUDENT), "student")
    for source in recipe.models.teachers:
        drafts.model(Version(model=source.name), "teacher")
    for index in range(len(recipe.method.phases)):
        drafts.ends.append(_Phase(drafts, index, n_questions).drafted())
    draft_evaluations(drafts)
    return tuple(drafts.by_name.values())


class _Phase:
    """Drafts one phase: who answers, who judges and scores, who is trained.

    The phases before it have been drafted.
    """

    def __init__(self, drafts: Drafts, index: int, n_questions: int) -> None:
        recipe = drafts.recipe
        phases = recipe.method.phases
        self.drafts, self.recipe, self.method = drafts, recipe, recipe.method
        self.phase = phases[index]
        self.name = phase_name(index, self.phase)
        self.schedule = phase_schedule(recipe, index)
        self.total = iterations(n_questions, self.schedule)
        self.learner = lineage.learner(phases, index)
        self.teacher = lineage.teacher(phases, index)
        self.policy = next((t for t in recipe.method.objective if t.kind == "grpo"), None)
        self.compares = compares(recipe.method)
        self.asks = any(term.on == "responses" for term in recipe.method.objective)

    def drafted(self) -> str:
        """Adds the phase's stages; returns the name of its last train stage."""
        teacher, responses = self.teacher, self.method.responses
        mask, ratios = self.phase.mask, self.schedule.ratios
        thresholds = self.drafts.mask(teacher, ratios, mask) if teacher else {}
        shared: dict[str, str] = {}
        if self.asks and responses.teacher > 0:
            assert teacher is not None
            model, inputs = self.drafts.model(teacher, "model")
            whole = Stretch(suffix="", start=0, stop=self.total, round=0)
            opened = model, {**inputs, **thresholds}
            stage = self.generate("teacher", whole, teacher, opened)
            shared = self.judged_and_scored("teacher", "", stage)
        student = self.drafts.model(self.learner, "student")
        for stretch in self.stretches():
            own: dict[str, str] = {}
            if self.asks and responses.student > 0:
                stage = self.generate("student", stretch, self.learner, as_role("model", student))
                own = self.judged_and_scored("student", stretch.suffix, stage)
            reference, inputs = student
            read = {**inputs, **thresholds, **shared, **own}
            name = self.trained(stretch, reference, {**read, **self.signalled(stretch, read)})
            student = ModelRef(role="student"), {"student": name}
        return student[1]["student"]

    def stretches(self) -> list[Stretch]:
        """The phase as a whole, or by mask stage where the student answers anew for each."""
        responses = self.method.responses
        if not self.asks or responses.student == 0 or responses.resample == "phase":
            return [Stretch(suffix="", start=0, stop=self.total, round=0)]
        return [
            Stretch(suffix=f"/{m}", start=first, stop=stop, round=m)
            for m, (_, first, stop) in enumerate(mask_stages(self.schedule, self.total))
        ]

    def generate(self, source: Side, stretch: Stretch, version: Version, model: Opened) -> str:
        """The stage in which ``version``, opened as ``model``, answers; returns its name."""
        responses, schedule = self.method.responses, self.schedule
        if source == "student":
            schedule = schedule.model_copy(update={"ratios": WHOLE_ONLY})
        served = self.served(version, schedule.ratios)
        engine = responses.engine
        reference, inputs = model
        spec = GenerateSpec(
            source=source,
            model=reference,
            data=self.drafts.train_data,
            prompt=self.recipe.prompt,
            seed=self.method.seed,
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
            engine="transformers" if engine == "server" and served is None else engine,
            served=served,
            precision=responses.precision or self.drafts.precision,
            on_full_cross=responses.full_cross and source == "teacher",
        )
        return self.drafts.add(f"generate/{self.name}/{source}{stretch.suffix}", spec, inputs)

    def served(self, version: Version, ratios: tuple[int, ...]) -> tuple[ServedRatio, ...] | None:
        """The server's names for the model; None where no server has it, as for a trained one."""
        if version.phase is not None:
            return None
        names = {
            ratio_parts(served.ratio): served.name
            for served in self.method.responses.served
            if served.model == version.model
        }
        found = tuple(ServedRatio(ratio=r, model=names[r]) for r in ratios if r in names)
        return found or None

    def judged_and_scored(self, source: Side, suffix: str, responses: str) -> dict[str, str]:
        """The train inputs that come from one store of responses."""
        method, drafts, policy = self.method, self.drafts, self.policy
        found = {f"responses.{source}": responses}
        if judges(method):
            assert method.rewards.accuracy is not None
            judge, inputs = self.judge()
            spec = JudgeSpec(
                source=source,
                data=drafts.train_data,
                rule=method.rewards.accuracy,
                judge=judge,
            )
            name = f"judge/{self.name}/{source}{suffix}"
            read = {**inputs, "responses": responses}
            found[f"rewards.{source}"] = drafts.add(name, spec, read)
        if policy and policy.kl > 0:
            came = Version(model=self.phase.student)
            reference = came if policy.reference == "run" else self.learner
            model, inputs = drafts.model(reference, "reference")
            score = ScoreSpec(
                source=source,
                reference=model,
                data=drafts.train_data,
                prompt=self.recipe.prompt,
                precision=drafts.precision,
            )
            name = f"score/{self.name}/{source}{suffix}"
            found[f"scores.{source}"] = drafts.add(name, score, {**inputs, "responses": responses})
        return found

    def judge(self) -> tuple[LocalJudge | None, dict[str, str]]:
        """The teacher where it judges: whole, as all of its verdicts are; and the input it is."""
        accuracy = self.method.rewards.accuracy
        if accuracy is None or accuracy.judge is None or accuracy.judge.model != "teacher":
            return None, {}
        assert self.teacher is not None
        model, inputs = self.drafts.model(self.teacher, "judge")
        named = LocalJudge(
            name=self.teacher.name,
            model=model,
            precision=self.method.responses.precision or self.drafts.precision,
        )
        return named, inputs

    def signalled(self, stretch: Stretch, inputs: Mapping[str, str]) -> dict[str, str]:
        """The train input with the teacher's stored signal; empty where it is live."""
        method, drafts = self.method, self.drafts
        if method.signal == "live" or not self.compares:
            return {}
        assert self.teacher is not None
        teacher, teacher_inputs = drafts.model(self.teacher, "teacher")
        student, student_inputs = drafts.model(self.learner, "student")
        topk = method.signal == "topk"
        compared = compared_by(method.objective)
        temperature = 1.0 if compared is None else compared.temperature
        spec = SignalSpec(
            signal=method.signal,
            k=method.signal_k if topk else None,
            temperature=temperature if topk else None,
            teacher=teacher,
            student=student,
            data=drafts.train_data,
            prompt=self.recipe.prompt,
            schedule=self.schedule,
            start=stretch.start,
            stop=stretch.stop,
            precision=drafts.precision,
        )
        roles = ("thresholds", "responses.teacher", "responses.student")
        read = {role: inputs[role] for role in roles if role in inputs}
        name = f"signal/{self.name}{stretch.suffix}"
        return {"signal": drafts.add(name, spec, {**teacher_inputs, **student_inputs, **read})}

    def trained(self, stretch: Stretch, student: ModelRef, inputs: Mapping[str, str]) -> str:
        """The train stage of the stretch; returns its name."""
        recipe, method, drafts = self.recipe, self.method, self.drafts
        teacher: ModelRef | None = None
        inputs = dict(inputs)
        if self.compares and self.teacher:
            teacher, teacher_inputs = drafts.model(self.teacher, "teacher")
            inputs |= teacher_inputs
        else:
            inputs.pop("thresholds", None)
        source = drafts.source(self.learner.model)
        name = f"train/{self.name}{stretch.suffix}"
        spec = TrainSpec(
            name=name,
            init=student,
            teacher=teacher,
            data=drafts.train_data,
            prompt=recipe.prompt,
            seed=method.seed,
            schedule=self.schedule,
            start=stretch.start,
            stop=stretch.stop,
            objective=method.objective,
            optimiser=method.optimiser,
            rewards=method.rewards if self.policy else None,
            signal=method.signal,
            min_group=2 if self.policy else 1,
            validation=drafts.watched(recipe.validation.every, recipe.data.limit),
            carry_optimiser=stretch.start > 0,
            max_new_tokens=method.responses.max_new_tokens,
            freeze=source.freeze,
            lora=source.lora,
        )
        return drafts.add(name, spec, inputs)
