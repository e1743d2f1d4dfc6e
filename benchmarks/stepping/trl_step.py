"""The same step with TRL's own functions for log-probs, loss and divergence.

TRL's trainers repeat the prompt for each response. GRPO and distillation are two trainers with a
forward pass each; here one forward pass of the student serves both, and only response tokens reach
the output heads (without Triton, TRL itself scores the prompt's too): the kindest reading of TRL.
Rewards and advantages are those of Masters, so that both steps have one gradient.
"""

from __future__ import annotations

from collections import defaultdict
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch

from masters.rewards.advantages import group_advantages
from masters.rewards.distillation import distillation_reward
from masters.training.groups import Group, make_rows
from stepping.shapes import Case
from stepping.ways import PAD, TERMS, Models


def installed() -> bool:
    """Whether there is a TRL to compare with."""
    return find_spec("trl") is not None


class TrlStep:
    """TRL's functions over the same models.

    Args:
        models: whose student, reference and teacher read repeated prompts.
        case: all responses are equally long, so that no row has padding.
    """

    def __init__(self, models: Models, case: Case) -> None:
        from trl import GRPOTrainer

        self._models, self._case = models, case
        self._grpo_loss = GRPOTrainer._compute_loss
        policy = TERMS[0]
        self._trainer = SimpleNamespace(
            aux_loss_enabled=False,
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            importance_sampling_level="token",
            beta=policy.kl,
            args=SimpleNamespace(use_bias_correction_kl=False, delta=None),
            loss_type="grpo",
            epsilon_low=policy.clip,
            epsilon_high=policy.clip,
            use_vllm=False,
            model=SimpleNamespace(training=True),
            current_gradient_accumulation_steps=1,
            _entropy_bonus_enabled=False,
            accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x),
            _metrics={"train": defaultdict(list)},
        )

    def states(self, vlm: Any, group: Group) -> torch.Tensor:
        """Hidden states [N, D] that predict the response tokens, prompts repeated."""
        rows = make_rows([group])
        inputs, column_N = rows.inputs(teacher=False, pad=PAD, device="cpu")
        states_GTD = vlm.base_model(**inputs, use_cache=False).last_hidden_state
        return states_GTD[rows.row_N, column_N]

    @torch.no_grad()
    def reference(self, group: Group) -> torch.Tensor:
        """Log-probs [N] of the reference."""
        vlm = self._models.reference.vlm
        return self._log_probs(self.states(vlm, group), vlm, make_rows([group]).targets_N)

    @torch.no_grad()
    def teacher_states(self, group: Group) -> torch.Tensor:
        """Hidden states [N, D] of the teacher."""
        return self.states(self._models.teacher, group)

    def gradient(self, group: Group, hidden_T: torch.Tensor, reference_N: torch.Tensor) -> None:
        """Forward and backward; leaves the gradient."""
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        models, (G, R) = self._models, (self._case.group, self._case.response)
        vlm = models.student.vlm
        targets_N = make_rows([group]).targets_N
        hidden_ND = self.states(vlm, group)
        logp_N = self._log_probs(hidden_ND, vlm, targets_N)
        heads = (model.get_output_embeddings().weight for model in (vlm, models.teacher))
        head_S, head_T = heads
        jsd_N, entropy_N = ChunkedDivergenceFunction.apply(
            hidden_ND, head_S, None, hidden_T, head_T, None, 0.5
        )
        jsd_GR = jsd_N.view(G, R)
        reward_G = distillation_reward(jsd_GR.detach().double().mean(1), min_span=1e-4)
        reward_G += torch.tensor([response.accuracy for response in group.responses])
        self._trainer._get_per_token_logps_and_entropies = lambda *_, **__: (
            logp_N.view(G, R), entropy_N.view(G, R), None
        )  # fmt: skip
        ids_GR, ones_GR = targets_N.view(G, R), torch.ones(G, R)
        inputs = {
            "prompt_ids": ids_GR[:, :1], "prompt_mask": ones_GR[:, :1],
            "completion_ids": ids_GR, "completion_mask": ones_GR,
            "advantages": group_advantages(reward_G).float(),
            "ref_per_token_logps": reference_N.view(G, R),
        }  # fmt: skip
        loss = self._grpo_loss(self._trainer, None, inputs)
        (loss + jsd_GR.mean()).backward()

    @staticmethod
    def _log_probs(hidden_ND: torch.Tensor, vlm: Any, targets_N: torch.Tensor) -> torch.Tensor:
        from trl.kernels.chunked_divergence import VOCAB_CHUNK_SIZE
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction

        weight = vlm.get_output_embeddings().weight
        return ChunkedLogProbFunction.apply(
            hidden_ND, weight, None, targets_N, 1.0, VOCAB_CHUNK_SIZE, None, 1.0, ()
        )[0]
