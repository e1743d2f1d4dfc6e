"""What a recipe may say of the loss and what it rewards: terms of the objective, rewards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from masters import recipe_engine_checks
from masters.recipe_judge import Judge
from masters.recipe_parts import NotNegative, Positive, Section


class AccuracyRule(Section):
    """Eq. 6: is a response right? By rule, or by an LLM judge."""

    kind: Literal["rule", "judge"] = "rule"
    rule: Literal[
        "exact", "normalised", "numeric", "choice", "yes_no",
        "relaxed", "anls", "vqa", "quantity", "list", "set", "auto",
    ] = "auto"  # fmt: skip
    """auto: choice where there are choices, numeric where the label is one,
    content where labels are worded in several ways, else normalised.
    relaxed (ChartQA), anls (DocVQA) and vqa (VQA v2) are those benchmarks' own."""
    judge: Judge | None = None
    """Who judges, with kind: judge; null: a rule does."""

    @model_validator(mode="before")
    @classmethod
    def _a_judge_for_its_kind(cls, value: Any) -> Any:
        """`kind: judge` alone means a judge with its defaults."""
        if isinstance(value, Mapping) and value.get("kind") == "judge":
            return {**value, "judge": value.get("judge") or {}}
        return value

    @model_validator(mode="after")
    def _of_one_kind(self) -> AccuracyRule:
        recipe_engine_checks.judge_in_its_seat(self)
        return self


class DistillationReward(Section):
    """Eq. 7: the closer to the teacher among a question's responses, the better."""

    min_span: Positive = 1e-4
    """Spans below this (nats) give every response 1."""
    normalise: bool = True
    """Min-max over the question's responses; otherwise -D itself."""
    earned_by: Literal["all", "right"] = "all"
    """right: times the accuracy reward, so that what is easy and wrong earns nothing."""


class Rewards(Section):
    """R = accuracy + distillation, either may be null."""

    accuracy: AccuracyRule | None = AccuracyRule()
    distillation: DistillationReward | None = DistillationReward()


class Grpo(Section):
    """The policy term (Eq. 8 to 10)."""

    kind: Literal["grpo"] = "grpo"
    weight: NotNegative = 1.0
    kl: NotNegative = 0.1
    """beta, the weight of the KL to the reference; 0: no reference is scored."""
    clip: Positive = 0.2
    """epsilon; never acts with one update per batch."""
    on: Literal["responses"] = "responses"
    students_only: bool = False
    """Only the student's own responses carry the policy term; advantages still pool both, and the
    KL stays on both."""
    reference: Literal["phase", "run"] = "phase"
    """The reference is the student at the start of the phase, or of the run."""


class Jsd(Section):
    """Generalised Jensen-Shannon divergence of teacher and student, per token (Eq. 4 and 5)."""

    kind: Literal["jsd"] = "jsd"
    weight: NotNegative = 1.0
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The teacher's share of the mixture."""
    temperature: Positive = 1.0
    on: Literal["labels", "responses"] = "responses"


class SkewKl(Section):
    """Skewed KL divergence of teacher P and student Q, per token (DistiLLM, arXiv 2402.03898)."""

    kind: Literal["skew_kl"] = "skew_kl"
    weight: NotNegative = 1.0
    direction: Literal["forward", "reverse"] = "forward"
    """forward: KL(P || alpha P + (1 - alpha) Q); reverse: KL(Q || (1 - alpha) P + alpha Q)."""
    alpha: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """0: the plain KL, forward as in classic distillation, reverse as in MiniLLM."""
    temperature: Positive = 1.0
    on: Literal["labels", "responses"] = "responses"


class Nll(Section):
    """Negative log-likelihood: supervised fine-tuning, on labels or on responses."""

    kind: Literal["nll"] = "nll"
    weight: NotNegative = 1.0
    on: Literal["labels", "responses"] = "labels"
    keep: Literal["all", "correct"] = "all"
    """Which responses: all, or those whose accuracy reward is 1 (rejection sampling)."""


Term = Annotated[Grpo | Jsd | SkewKl | Nll, Field(discriminator="kind")]
"""One summand of the objective."""
