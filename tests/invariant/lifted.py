"""Runs a float64 model in float64 throughout: transformers casts norms and softmax to float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch


@contextmanager
def lifted() -> Iterator[None]:
    """Every cast to float32 goes to float64 instead, in recomputed layers too."""

    def instead(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            return function(*map(_lift, args), **{k: _lift(v) for k, v in kwargs.items()})

        return called

    with (
        patch.object(torch.Tensor, "float", torch.Tensor.double),
        patch.object(torch.Tensor, "to", instead(torch.Tensor.to)),
        patch.object(torch.nn.functional, "softmax", instead(torch.nn.functional.softmax)),
    ):
        yield


def _lift(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
