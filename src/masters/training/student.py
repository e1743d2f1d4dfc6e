"""The one root module of training: trunk and output head are used inside its forward only."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import save_on_cpu

from masters.models.lora import merged_state
from masters.training.token_scores import ScoreSettings, token_scores
from masters.training.topk_scores import TopTokens, topk_scores


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[Any]:
    """Autocast to ``precision``, or nothing for float32."""
    return torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32)


def response_states(
    vlm: Any, inputs: dict[str, torch.Tensor], row_N: torch.Tensor, column_N: torch.Tensor
) -> torch.Tensor:
    """Last hidden states [N, D] at the given rows and columns; no logits are made."""
    states_UTD = vlm.base_model(**inputs, use_cache=False).last_hidden_state
    return states_UTD[row_N, column_N]


class Student(nn.Module):
    """A trainable VLM whose forward gives per-token scores (DDP and FSDP wrap this module).

    Args:
        vlm: float32 weights.
        precision: compute dtype; the trained weights stay float32 whatever it is.
        resting: names of modules of frozen parts, which stay in eval mode while the rest trains.
        adapted: low-rank adapters are in it.
        offload: what the trunk keeps for its backward pass waits in the host's memory.
    """

    def __init__(
        self,
        vlm: Any,
        *,
        precision: torch.dtype = torch.float32,
        resting: Sequence[str] = (),
        adapted: bool = False,
        offload: bool = False,
    ) -> None:
        super().__init__()
        self.vlm = vlm
        self.precision = precision
        self.adapted = adapted
        self.offload = offload
        self._resting = tuple(resting)

    def train(self, mode: bool = True) -> Student:
        """Training mode for what is trained; frozen parts stay in eval mode."""
        super().train(mode)
        for name in self._resting:
            self.vlm.get_submodule(name).training = False
        return self

    def plain_state(self) -> dict[str, torch.Tensor]:
        """The tensors of an ordinary checkpoint of the model: adapters merged."""
        return merged_state(self.vlm) if self.adapted else self.vlm.state_dict()

    def forward(
        self,
        inputs: dict[str, torch.Tensor],
        row_N: torch.Tensor,
        column_N: torch.Tensor,
        targets_N: torch.Tensor,
        hidden_T: torch.Tensor | None,
        head_T: torch.Tensor | None,
        settings: ScoreSettings,
        top: TopTokens | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(jsd_N, logp_N) of the response tokens; see ``token_scores`` and ``topk_scores``."""
        # Not the token scores: what they keep is the head, and small.
        pinned = row_N.device.type == "cuda"
        kept = save_on_cpu(pin_memory=pinned) if self.offload else nullcontext()
        with autocast(row_N.device, self.precision), kept:
            hidden_S = response_states(self.vlm, inputs, row_N, column_N)
        head_S = self.vlm.get_output_embeddings().weight
        if top is not None:
            return topk_scores(hidden_S, head_S, top, targets_N, settings)
        return token_scores(hidden_S, head_S, hidden_T, head_T, targets_N, settings)
