"""The objective: which terms, and the ONE reducer that weighs every response token.

Token weights are 1 / (Q G_q T_j): Q questions of the whole optimiser step (over micro-batches and
ranks), G_q responses of the question, T_j tokens of the response, so a step's gradient does not
depend on how it was split. Shape suffixes: N tokens of distinct rows, M tokens of all responses,
G responses of a group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, assert_never

import torch

from masters.rewards.advantages import group_advantages
from masters.rewards.distillation import distillation_reward
from masters.training.groups import LABEL, TEACHER, Response, Rows
from masters.training.losses import k3, policy_term

On = Literal["labels", "responses"]


@dataclass(frozen=True, kw_only=True)
class GrpoTerm:
    """L_GRPO of Eq. 8: policy term with group advantages, plus ``kl`` times k3 to the reference.

    ``students_only`` leaves the teacher's responses out of the policy term, not out of the KL.
    """

    weight: float = 1.0
    kl: float = 0.1
    clip: float = 0.2
    students_only: bool = False


@dataclass(frozen=True, kw_only=True)
class JsdTerm:
    """D of Eq. 4 (labels) or Eq. 5 (responses): the divergence of the step's settings.

    ``name`` is what the log calls it.
    """

    weight: float = 1.0
    on: On = "responses"
    name: Literal["jsd", "skew_kl"] = "jsd"


@dataclass(frozen=True, kw_only=True)
class NllTerm:
    """- log pi of the tokens: supervised fine-tuning.

    With ``correct`` of the responses whose accuracy reward is 1 alone (rejection sampling): G_q
    counts those, and Q the questions without any too.
    """

    weight: float = 1.0
    on: On = "labels"
    correct: bool = False


Term = GrpoTerm | JsdTerm | NllTerm


@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """R = R_acc + R_distill, each switchable."""

    accuracy: bool = True
    distillation: bool = True
    min_span: float = 1e-4
    normalise: bool = True
    earned_by_right: bool = False


@dataclass(kw_only=True)
class StepSums:
    """What one optimiser step adds up over its micro-batches, for the log."""

    loss: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    squared_norm: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    rewards: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    silent_groups: int = 0
    groups: int = 0
    tokens: int = 0
    kl_max: float = 0.0
    bounded: int = 0
    bound_sum: float = 0.0
    bound_max: float = 0.0
    entropy: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    scored: int = 0

    def add(self, other: StepSums) -> None:
        """Adds what another rank summed up over its part of the step."""
        for mine, theirs in (
            (self.loss, other.loss),
            (self.squared_norm, other.squared_norm),
            (self.entropy, other.entropy),
        ):
            for name, value in theirs.items():
                mine[name] += value
        for name, values in other.rewards.items():
            self.rewards[name] += values
        self.silent_groups += other.silent_groups
        self.groups += other.groups
        self.tokens += other.tokens
        self.scored += other.scored
        self.bounded += other.bounded
        self.bound_sum += other.bound_sum
        self.kl_max = max(self.kl_max, other.kl_max)
        self.bound_max = max(self.bound_max, other.bound_max)

    def add_bounds(self, bound_N: torch.Tensor | None) -> None:
        """What may be missing from the divergences of a forward pass, in nats; None: nothing."""
        if bound_N is not None and len(bound_N):
            self.bounded += len(bound_N)
            self.bound_sum += bound_N.sum().item()
            self.bound_max = max(self.bound_max, bound_N.max().item())

    def add_entropies(self, *, student: torch.Tensor | None, teacher: torch.Tensor | None) -> None:
        """Entropies [N] of the distributions at tokens that a forward pass scored once each."""
        assert student is not None
        self.scored += len(student)
        self.entropy["student"] += student.sum().item()
        if teacher is not None:
            self.entropy["teacher"] += teacher.sum().item()


def token_weights(questions: int, responses: int, tokens: int) -> float:
    """THE reducer: the weight of one token of a response, 1 / (Q G_q T_j)."""
    return 1.0 / (questions * responses * tokens)


@dataclass(frozen=True, kw_only=True)
class Expanded:
    """Response tokens with duplicates counted: index into N, weight, advantage, reference.

    ``right_weight_M`` is the weight where G_q counts right responses alone; 0 for the others.
    """

    index_M: torch.Tensor
    from_teacher_M: torch.Tensor
    weight_M: torch.Tensor
    right_weight_M: torch.Tensor
    advantage_M: torch.Tensor
    reference_M: torch.Tensor | None


def needs(terms: Sequence[Term], on: On) -> bool:
    """Whether any term looks at labels or at responses."""
    return any((term.on if not isinstance(term, GrpoTerm) else "responses") == on for term in terms)


def micro_batch_loss(
    rows: Rows,
    jsd_N: torch.Tensor,
    logp_N: torch.Tensor,
    *,
    terms: Sequence[Term],
    rewards: RewardSettings,
    questions: int,
    sums: StepSums,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(loss of a micro-batch to call backward on, d loss / d per-token score of each term).

    Args:
        rows: the micro-batch.
        jsd_N, logp_N: from the student's forward.
        terms: of the objective.
        rewards: which rewards make R.
        questions: Q, kept questions of the whole optimiser step.
        sums: added to.
    """
    sums.groups += len(rows.groups)
    sums.tokens += sum(len(r.token_ids) for g in rows.groups for r in g.responses)
    grpo = next((term for term in terms if isinstance(term, GrpoTerm)), None)
    parts = {}
    if needs(terms, "labels"):
        parts["labels"] = _expand(rows, None, questions, labels=True)
    if needs(terms, "responses"):
        advantages = None
        if grpo is not None:
            advantages = _advantages(rows, jsd_N.detach(), rewards, sums)
        parts["responses"] = _expand(rows, advantages, questions, labels=False)
    if grpo is None and any(isinstance(term, NllTerm) and term.correct for term in terms):
        _log_verdicts(rows, sums)
    total = jsd_N.new_zeros(())
    slopes: dict[str, torch.Tensor] = {}
    for term in terms:
        name, loss, score_N = _term_loss(term, parts, jsd_N, logp_N, sums)
        sums.loss[name] += loss.item()
        (slope_N,) = torch.autograd.grad(loss, score_N, retain_graph=True)
        slopes[name] = slopes.get(name, 0) + term.weight * slope_N
        total = total + term.weight * loss
    sums.loss["total"] += total.item()
    return total, slopes


def _term_loss(
    term: Term,
    parts: dict[str, Expanded],
    jsd_N: torch.Tensor,
    logp_N: torch.Tensor,
    sums: StepSums,
) -> tuple[str, torch.Tensor, torch.Tensor]:
    match term:
        case JsdTerm():
            part = parts[term.on]
            return term.name, (part.weight_M * jsd_N[part.index_M]).sum(), jsd_N
        case NllTerm():
            part = parts[term.on]
            weight_M = part.right_weight_M if term.correct else part.weight_M
            return "nll", -(weight_M * logp_N[part.index_M]).sum(), logp_N
        case GrpoTerm():
            part = parts["responses"]
            logp_M = logp_N[part.index_M]
            advantage_M = part.advantage_M
            if term.students_only:
                advantage_M = advantage_M.masked_fill(part.from_teacher_M, 0.0)
            policy = policy_term(logp_M, advantage_M, clip=term.clip)
            gain = (part.weight_M * policy).sum()
            kl = logp_N.new_zeros(())
            if term.kl > 0:
                if part.reference_M is None:
                    raise ValueError(
                        "a KL weight above 0 needs reference log-probs of every response"
                    )
                kl_M = k3(part.reference_M, logp_M)
                kl = (part.weight_M * kl_M).sum()
                sums.kl_max = max(sums.kl_max, kl_M.max().item())
            sums.loss["policy"] -= gain.item()
            sums.loss["kl"] += kl.item()
            return "grpo", term.kl * kl - gain, logp_N
        case _:
            assert_never(term)


def _expand(
    rows: Rows, advantages: list[torch.Tensor] | None, questions: int, *, labels: bool
) -> Expanded:
    index: list[torch.Tensor] = []
    weight: list[float] = []
    right_weight: list[float] = []
    advantage: list[float] = []
    teachers: list[bool] = []
    counts: list[int] = []
    reference: list[float] | None = []
    for g, group in enumerate(rows.groups):
        chosen = [j for j, r in enumerate(group.responses) if (r.source == LABEL) == labels]
        right = {j for j in chosen if group.responses[j].accuracy == 1.0}
        for k, j in enumerate(chosen):
            start, stop = rows.spans[rows.row_of[g][j]]
            index.append(torch.arange(start, stop))
            weight.append(token_weights(questions, len(chosen), stop - start))
            kept = token_weights(questions, len(right), stop - start) if j in right else 0.0
            right_weight.append(kept)
            advantage.append(0.0 if advantages is None else advantages[g][k].item())
            teachers.append(group.responses[j].source == TEACHER)
            counts.append(stop - start)
            own = group.responses[j].reference
            reference = None if own is None or reference is None else [*reference, *own]
    device = rows.targets_N.device
    repeats = torch.tensor(counts)

    def spread(values: list[float] | list[bool]) -> torch.Tensor:
        return torch.tensor(values).repeat_interleave(repeats).to(device)

    return Expanded(
        index_M=torch.cat(index).to(device),
        from_teacher_M=spread(teachers),
        weight_M=spread(weight),
        right_weight_M=spread(right_weight),
        advantage_M=spread(advantage),
        reference_M=None if reference is None else torch.tensor(reference, device=device),
    )


def _advantages(
    rows: Rows, jsd_N: torch.Tensor, rewards: RewardSettings, sums: StepSums
) -> list[torch.Tensor]:
    """Advantages [G] of each group from its rewards, in the order of its responses."""
    divergence_U = [jsd_N[start:stop].double().mean() for start, stop in rows.spans]
    advantages = []
    for g, group in enumerate(rows.groups):
        chosen = [j for j, r in enumerate(group.responses) if r.source != LABEL]
        reward_G = torch.zeros(len(chosen), dtype=torch.float64)
        accuracy = [_verdict(group.responses[j]) for j in chosen] if rewards.accuracy else []
        if rewards.distillation:
            d_G = torch.stack([divergence_U[rows.row_of[g][j]] for j in chosen]).cpu()
            distilled_G = distillation_reward(
                d_G, min_span=rewards.min_span, normalise=rewards.normalise
            )
            if rewards.earned_by_right:
                distilled_G *= torch.tensor(accuracy, dtype=torch.float64)
            reward_G += distilled_G
            _log_rewards(sums, "distillation", group.responses, chosen, distilled_G.tolist())
        if rewards.accuracy:
            reward_G += torch.tensor(accuracy, dtype=torch.float64)
            _log_rewards(sums, "accuracy", group.responses, chosen, accuracy)
        advantage_G = group_advantages(reward_G)
        sums.silent_groups += int(not advantage_G.any())
        advantages.append(advantage_G)
    return advantages


def _log_verdicts(rows: Rows, sums: StepSums) -> None:
    """Accuracy by source, and the groups in which nothing is right: they give no signal."""
    for group in rows.groups:
        chosen = [j for j, r in enumerate(group.responses) if r.source != LABEL]
        accuracy = [_verdict(group.responses[j]) for j in chosen]
        _log_rewards(sums, "accuracy", group.responses, chosen, accuracy)
        sums.silent_groups += int(1.0 not in accuracy)


def _verdict(response: Response) -> float:
    assert response.accuracy is not None, "a response without a verdict must leave its group"
    return response.accuracy


def _log_rewards(
    sums: StepSums,
    name: str,
    responses: Sequence[Response],
    chosen: list[int],
    values: list[float],
) -> None:
    for j, value in zip(chosen, values, strict=True):
        sums.rewards[f"{name}/{responses[j].source}"].append(value)
