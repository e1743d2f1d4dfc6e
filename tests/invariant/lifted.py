"""Runs a float64 model in float64 throughout: transformers casts norms, softmax and rotary tables to
float32 inside."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Lifted(TorchFunctionMode):
    """Every cast to float32 goes to float64 instead."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        def lift(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        if func is torch.Tensor.float:
            func = torch.Tensor.double
        return func(*map(lift, args), **{k: lift(v) for k, v in (kwargs or {}).items()})
