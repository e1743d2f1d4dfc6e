"""A head tied to the embedding: its gradient is added once to the embedding's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from masters.training.groups import make_rows
from masters.training.losses import jsd
from masters.training.student import Student, response_states
from masters.training.token_scores import ScoreSettings
from tests.invariant.conftest import Tiny, make_groups


@pytest.mark.parametrize("chunk", [5, None])
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_those_of_plain_autograd(
    student: Tiny, teacher: Tiny, tied: bool, chunk: int | None
) -> None:
    model = student.model.double()
    embedding = model.get_input_embeddings()
    if tied:
        model.get_output_embeddings().weight = embedding.weight
    head = model.get_output_embeddings().weight
    assert (head is embedding.weight) == tied
    rows = make_rows(make_groups(student, teacher)[:3])
    inputs, column_N = rows.inputs(teacher=False, pad=student.ids.pad, device="cpu")
    generator = torch.Generator().manual_seed(3)
    n, vocabulary = len(rows.targets_N), student.ids.vocabulary
    hidden_T = torch.randn(n, 16, generator=generator, dtype=torch.float64)
    head_T = torch.randn(len(head), 16, generator=generator, dtype=torch.float64)
    a, b = torch.randn(2, n, generator=generator, dtype=torch.float64)
    settings = ScoreSettings(vocabulary=vocabulary, chunk=chunk)
    module = Student(model).train()
    d, logp = module(inputs, rows.row_N, column_N, rows.targets_N, hidden_T, head_T, settings)
    ours = gradients(model, (a * d + b * logp).sum())

    z_S = (response_states(model, inputs, rows.row_N, column_N) @ head.T)[:, :vocabulary]
    d = jsd((hidden_T @ head_T.T)[:, :vocabulary], z_S)
    logp = z_S.log_softmax(-1).gather(1, rows.targets_N[:, None])[:, 0]
    plain = gradients(model, (a * d + b * logp).sum())

    assert ours.keys() == plain.keys()
    for name, expected in plain.items():
        error = (ours[name] - expected).abs().max() / expected.abs().max().clamp_min(1e-6)
        assert error < 1e-6, (name, error)
    # Tokens of no prompt and no response have a gradient through a tied head only.
    absent = torch.ones(len(head), dtype=torch.bool)
    absent[inputs["input_ids"].flatten()] = False
    absent[vocabulary:] = False
    assert absent.any() and bool(plain["embedding"][absent].any()) == tied


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    found["embedding"] = model.get_input_embeddings().weight.grad
    model.zero_grad(set_to_none=True)
    return found
