"""A teacher made softer and no worse: its logits divided by a temperature, no weight zeroed.

The control that asks whether a mask teaches by what it takes away, or by raising the entropy.
"""

from __future__ import annotations

from typing import Any

import torch

from masters.errors import ModelError
from masters.models.output_head import forget_head
from masters.models.shards import is_sharded, own_rows


class SoftHead:
    """A model's output head, which can be divided in place and restored bit for bit.

    Everything that makes logits goes through the head's weight: generation, stored top-k and the
    divergence. It keeps a copy of the head. A head that is the embeddings' too gets a weight of its
    own first, so that these stay as they are.

    Args:
        model: frozen, its weights whole or spread over ranks.

    Raises:
        ModelError: what the head does besides its product is no factor, or it is tied and sharded.
    """

    def __init__(self, model: Any) -> None:
        cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        if cap is not None:
            raise ModelError(
                f"{model.name_or_path}: caps its logits at {cap:g}, so that dividing its head does "
                "not divide them; mask kind 'softness' needs a head that is a plain product"
            )
        self._model = model
        head = model.get_output_embeddings()
        if head.weight is model.get_input_embeddings().weight:
            if is_sharded(head.weight):
                raise ModelError(
                    f"{model.name_or_path}: its output head is its embeddings, spread over ranks; "
                    "mask kind 'softness' needs runtime.engine: single for this teacher"
                )
            head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        held = [own_rows(p.data)[0] for p in (head.weight, head.bias) if p is not None]
        self._held = [(here, here.clone()) for here in held]

    @torch.no_grad()
    def set(self, temperature: float) -> None:
        """Divides the logits by ``temperature``; 1 restores every bit of the head.

        The quotient is rounded to the head's dtype.
        """
        for here, original in self._held:
            wide = original if original.dtype == torch.float64 else original.float()
            here.copy_(original if temperature == 1 else wide / temperature)
        forget_head(self._model)
