"""Stage 5: responses and rewards (or labels) -> a trained student."""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, assert_never

import torch

from masters import curriculum, ranks
from masters.artifacts import StageContext
from masters.data.questions import Questions
from masters.data.sources import open_questions, verify_images
from masters.evaluation.statistics import mean_score
from masters.generation.engine import TransformersEngine
from masters.models.feature_cache import FeatureCache
from masters.models.load import DTYPES
from masters.recipe import Grpo, Jsd, Nll, SkewKl
from masters.recipe_needs import compared_by
from masters.rewards.verifiers import verify
from masters.specs import TrainSpec, ValidationSpec
from masters.stages.engines import open_engine
from masters.stages.features import keep_features
from masters.stages.opening import (
    OpenedModel,
    Prompts,
    greedy_answers,
    label_ids,
    model_folder,
    model_identity,
    open_model,
    open_teacher,
    stage_identity,
)
from masters.stages.pairing import Pair, check_stored, pair, pair_of_signal
from masters.stages.responses_index import ResponseIndex
from masters.stages.sight import check_sees_image
from masters.stages.trained_student import open_student
from masters.training.engine import Engine, Single
from masters.training.groups import LABEL, Group, Response
from masters.training.loop import LoopSettings, Trainer
from masters.training.losses import skew_divergence
from masters.training.objective import (
    GrpoTerm,
    JsdTerm,
    NllTerm,
    RewardSettings,
    Term,
    needs,
)
from masters.training.optimiser import OptimiserSettings
from masters.training.step import StepSettings
from masters.training.stored_signal import StoredSignal, check_manifest
from masters.training.trackers import open_trackers


def run(spec: TrainSpec, context: StageContext) -> dict[str, Any]:
    """Trains the student over iterations [start, stop) and writes ``model/`` and ``best/``."""
    # For models that drop out, and others on every rank; a checkpoint holds the state.
    torch.manual_seed(spec.seed + ranks.rank())
    engine = open_engine(context.runtime)
    with ranks.main_first():
        questions = open_questions(spec.data)
        verify_images(questions, context.runtime.images_checked)
        opened, student = open_student(spec, context)
    stored = _open_signal(spec, context)
    teacher_model = None if stored else _open_teacher_model(spec, context, engine)
    both = pair_of_signal(opened, stored.manifest) if stored else pair(opened, teacher_model)
    groups = PlannedGroups(spec, context, questions, opened, teacher_model, both)
    terms = tuple(_term(term) for term in spec.objective)
    compared = compared_by(spec.objective) or Jsd()
    teacher = None if teacher_model is None else open_teacher(teacher_model, context)
    features: dict[str, FeatureCache] = {}
    if isinstance(engine, Single):  # a tower that is spread must run as often on every rank
        features = keep_features(spec, context.runtime, len(questions), opened.model, teacher)
    groups.keyed = frozenset(features)
    main = ranks.rank() == 0
    trainer = Trainer(
        student=engine.prepare_student(student),
        teacher=stored or teacher,
        curriculum=groups,
        ids=both.ids,
        step=StepSettings(
            terms=terms,
            rewards=_rewards(spec),
            beta=compared.beta if isinstance(compared, Jsd) else Jsd().beta,
            temperature=compared.temperature,
            divergence=None
            if isinstance(compared, Jsd)
            else skew_divergence(compared.direction, compared.alpha),
            clip_norm=spec.optimiser.clip_norm,
            micro_batch=context.runtime.micro_batch_questions,
            micro_batch_responses=context.runtime.micro_batch_responses,
            vocabulary=opened.ids.vocabulary,
            common=both.common,
        ),
        optimiser=OptimiserSettings(
            lr=spec.optimiser.lr,
            weight_decay=spec.optimiser.weight_decay,
            betas=spec.optimiser.betas,
            eps=spec.optimiser.eps,
            schedule=spec.optimiser.schedule,
            warmup=spec.optimiser.warmup_steps,
            moments=spec.optimiser.moments,
        ),
        loop=LoopSettings(
            start=spec.start,
            stop=spec.stop,
            total=groups.total,
            checkpoint_every=context.runtime.checkpoint_every,
            validate_every=0 if spec.validation is None else spec.validation.every,
            workers=context.runtime.workers,
        ),
        folder=context.folder,
        source=opened.folder,
        validate=_validator(spec, spec.validation, opened, context),
        progress=context.progress,
        trackers=open_trackers(context.runtime.trackers, context.folder) if main else (),
        group_forward=context.runtime.group_forward,
        features=features,
        engine=engine,
    )
    if spec.carry_optimiser:
        trainer.carry_optimiser(context.inputs["student"] / "optimiser.pt")
    metrics = trainer.run()
    left_out = Counter[str]()
    for counted in ranks.gathered(groups.left_out()):
        left_out.update(counted)
    return {**metrics, **left_out, "skipped_rows": questions.skipped}


def _open_teacher_model(
    spec: TrainSpec, context: StageContext, engine: Engine
) -> OpenedModel | None:
    if spec.teacher is None:
        return None
    opened = open_model(
        model_folder(spec.teacher, context.inputs),
        spec.prompt,
        context.runtime,
        precision=spec.optimiser.precision,
        teacher=True,
        spread=not isinstance(engine, Single),
    )
    return replace(opened, model=engine.prepare_teacher(opened.model))


def _open_signal(spec: TrainSpec, context: StageContext) -> StoredSignal | None:
    """The stored signal, if it is of the teacher and method that are trained with."""
    if spec.signal == "live" or spec.teacher is None:
        return None
    stored = StoredSignal(folder := context.inputs["signal"])
    total = curriculum.iterations(len(open_questions(spec.data)), spec.schedule)
    ratios = {curriculum.ratio_at(i, spec.schedule, total) for i in range(spec.start, spec.stop)}
    check_manifest(
        folder,
        stored.manifest,
        kind=spec.signal,
        teacher=model_identity(spec.teacher, context.inputs),
        thresholds=stage_identity("thresholds", context.inputs),
        precision=spec.optimiser.precision,
        ratios=ratios,
    )
    if spec.signal == "topk":
        compared = compared_by(spec.objective) or Jsd()
        check_manifest(folder, stored.manifest, temperature=compared.temperature)
    return stored


def _term(term: Grpo | Jsd | SkewKl | Nll) -> Term:
    match term:
        case Grpo():
            return GrpoTerm(
                weight=term.weight,
                kl=term.kl,
                clip=term.clip,
                students_only=term.students_only,
            )
        case Jsd():
            return JsdTerm(weight=term.weight, on=term.on)
        case SkewKl():
            return JsdTerm(weight=term.weight, on=term.on, name="skew_kl")
        case Nll():
            return NllTerm(weight=term.weight, on=term.on, correct=term.keep == "correct")
        case _:
            assert_never(term)


def _rewards(spec: TrainSpec) -> RewardSettings:
    rewards = spec.rewards
    if rewards is None:
        return RewardSettings(accuracy=False, distillation=False)
    distillation = rewards.distillation
    return RewardSettings(
        accuracy=rewards.accuracy is not None,
        distillation=distillation is not None,
        min_span=1e-4 if distillation is None else distillation.min_span,
        normalise=distillation is None or distillation.normalise,
        earned_by_right=distillation is not None and distillation.earned_by == "right",
    )


class PlannedGroups:
    """The groups of each iteration: the plan's questions with their labels or responses.

    Attributes:
        keyed: the models that will ask for their prompts' keys; threads make them ahead.
    """

    def __init__(
        self,
        spec: TrainSpec,
        context: StageContext,
        questions: Questions,
        student: OpenedModel,
        teacher: OpenedModel | None,
        both: Pair,
    ) -> None:
        self.keyed: frozenset[str] = frozenset()
        self.total = curriculum.iterations(len(questions), spec.schedule)
        self._spec, self._questions, self._student = spec, questions, student
        self._prompts = Prompts(questions, student.processor, spec.prompt)
        precision = DTYPES[spec.optimiser.precision]
        check_sees_image(student, self._prompts, role="student", precision=precision)
        self._teacher_prompts = None
        if teacher is not None:
            self._teacher_prompts = Prompts(questions, teacher.processor, spec.prompt)
            check_sees_image(teacher, self._teacher_prompts, role="teacher", precision=precision)
        terms = tuple(_term(term) for term in spec.objective)
        self._on_labels = needs(terms, "labels")
        self._on_responses = needs(terms, "responses")
        grpo = any(isinstance(term, GrpoTerm) for term in terms)
        self._least = spec.min_group if grpo else 1
        self._index = {
            side: self._open_index(side, context, both)
            for side in ("teacher", "student")
            if f"responses.{side}" in context.inputs
        }
        if teacher is not None:
            for side in self._index:
                check_stored(context.inputs[f"responses.{side}"], teacher, student, both.common)
        self._long_labels = 0
        # Its own tokenizer: reading special tokens as text is a setting that tokenizers keep.
        self._label_tokenizer = copy.deepcopy(student.processor.tokenizer)
        self._lock = threading.Lock()

    def _open_index(self, side: str, context: StageContext, both: Pair) -> ResponseIndex:
        return ResponseIndex(
            context.inputs[f"responses.{side}"],
            context.inputs.get(f"rewards.{side}"),
            context.inputs.get(f"scores.{side}"),
            limit=self._spec.max_new_tokens,
            vocabulary=both.common,
            banned=both.banned,
        )

    def ratio(self, iteration: int) -> int:
        """The masking ratio of an iteration (Eq. 3), per 10,000."""
        return curriculum.ratio_at(iteration, self._spec.schedule, self.total)

    def groups(self, iteration: int) -> tuple[list[Group], int]:
        """The kept groups of an iteration and how many questions were dropped, of this rank."""
        step = curriculum.step_questions(self._spec.schedule, len(self._questions), iteration)
        indices = ranks.share(step)
        ratio = self.ratio(iteration)
        groups = [group for i in indices if (group := self._group(i, ratio)) is not None]
        return groups, len(indices) - len(groups)

    def _group(self, index: int, ratio: int) -> Group | None:
        question = self._questions[index]
        responses: list[Response] = []
        if self._on_responses:
            for side, stored in self._index.items():
                responses += stored.get(question.id, ratio if side == "teacher" else 0)
            if len(responses) < self._least:
                return None
        if self._on_labels:
            text = question.training_label or question.label or ""
            with self._lock:
                ids = label_ids(self._label_tokenizer, self._student.ids, text)
            if len(ids) > self._spec.max_new_tokens:
                with self._lock:
                    self._long_labels += 1
                return None
            responses.append(Response(token_ids=ids, source=LABEL))
        prompts = {"student": self._prompts(index)}
        if self._teacher_prompts is not None:
            prompts["teacher"] = self._teacher_prompts(index)
        for role in self.keyed:
            _ = prompts[role].image_key
        return Group(
            question_id=question.id,
            student_prompt=prompts["student"],
            teacher_prompt=prompts.get("teacher"),
            responses=tuple(responses),
        )

    def left_out(self) -> dict[str, int]:
        """Responses and labels that left their group, by reason."""
        stored = self._index.values()
        return {
            "responses_without_verdict": sum(index.missing for index in stored),
            "responses_over_limit": sum(index.too_long for index in stored),
            "responses_empty": sum(index.empty for index in stored),
            "responses_outside_vocabulary": sum(index.outside for index in stored),
            "labels_over_limit": self._long_labels,
        }


def _validator(
    spec: TrainSpec, validation: ValidationSpec | None, opened: OpenedModel, context: StageContext
) -> Callable[[Any], tuple[float, float, float, int]] | None:
    if validation is None:
        return None
    questions = open_questions(validation.data)
    prompts = Prompts(questions, opened.processor, spec.prompt)
    indices = list(range(min(validation.questions or len(questions), len(questions))))
    precision = DTYPES[spec.optimiser.precision]

    def validate(model: Any) -> tuple[float, float, float, int]:
        engine = TransformersEngine(
            model,
            opened.processor,
            opened.ids,
            batch_rows=context.runtime.generation_batch,
            precision=precision,
        )
        mine = ranks.share(indices)
        with prompts.ahead(mine, context.runtime.workers) as encoded:
            answers = greedy_answers(
                engine, prompts, mine, max_new_tokens=validation.max_new_tokens,
                chunk=max(1, len(mine)), encoded=encoded,
            )  # fmt: skip
            own = [
                verify(validation.rule.rule, completion.text, question).reward
                for _, question, completion in answers
            ]
        scores = [score for theirs in ranks.gathered(own) for score in theirs]
        value, low, high = mean_score(scores)
        return value, low, high, len(indices)

    return validate
