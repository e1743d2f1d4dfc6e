"""The bucketed JSD: within its bound for every token, exact where nothing is left out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import log_softmax

from masters.training.losses import jsd
from masters.training.token_scores import ScoreSettings, token_scores
from masters.training.topk_scores import TopTokens, top_tokens, topk_scores

Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def case(seed: int, *, n: int = 40, vocabulary: int = 37, sharp: float = 1.0) -> Case:
    """Hidden states and heads of student and teacher and targets, in float64."""
    torch.manual_seed(seed)
    h_S, w_S = torch.randn(n, 5).double() * sharp, torch.randn(vocabulary + 3, 5).double()
    w_T = torch.randn(vocabulary + 9, 7).double()
    h_T = torch.randn(n, 7).double() * sharp
    return h_S, w_S, h_T, w_T, torch.randint(vocabulary, (n,))


def both(
    k: int, c: Case, *, beta: float = 0.5, temperature: float = 1.0, common: int = 37
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(exact JSD, bucketed JSD, bound) per token."""
    h_S, w_S, h_T, w_T, targets = c

    def settings() -> ScoreSettings:
        return ScoreSettings(
            beta=beta, temperature=temperature, vocabulary=37, common=common, chunk=16
        )

    exact, logp = token_scores(h_S, w_S, h_T, w_T, targets, settings())
    top = top_tokens(h_T, w_T, k=k, common=common, temperature=temperature, chunk=7)
    found, same = topk_scores(h_S, w_S, top, targets, settings())
    torch.testing.assert_close(logp, same, atol=1e-12, rtol=0)
    assert top.bound_N is not None
    return exact, found, top.bound_N


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_bound_holds_for_every_token(seed: int, beta: float, temperature: float) -> None:
    largest = 0.0
    for k in (1, 2, 5, 20, 36):
        for sharp in (0.1, 1.0, 4.0):
            exact, found, bound = both(
                k, case(seed, sharp=sharp), beta=beta, temperature=temperature
            )
            missing = exact - found
            assert (missing >= -1e-12).all()
            assert (missing <= bound + 1e-12).all()
            largest = max(largest, (missing / bound).max().item())
    assert largest > 0.1, "a bound that is never nearly reached says little"


def test_the_bound_is_reached_by_distributions_that_share_nothing() -> None:
    """All mass in the bucket, on different tokens: ln 2 is missing, and the bound says so."""
    eye = torch.eye(4).double() * 800
    top = TopTokens(
        logits_NK=torch.full((1, 1), -1e3).double(),
        ids_NK=torch.tensor([[0]]),
        rest_N=torch.zeros(1).double(),
    )
    target = torch.tensor([1])
    exact, _ = token_scores(eye[1:2], eye, eye[2:3], eye, target)
    found, _ = topk_scores(eye[1:2], eye, top, target)
    assert top.bound_N is not None
    assert exact.item() == pytest.approx(math.log(2), abs=1e-12)
    assert found.item() == pytest.approx(0, abs=1e-12)
    assert top.bound_N.item() == pytest.approx(math.log(2), abs=1e-12)


@pytest.mark.parametrize("common", [37, 30])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_all_tokens_kept_is_the_exact_divergence(common: int, temperature: float) -> None:
    h_S, w_S, h_T, w_T, targets = case(1)
    a, b = torch.randn(40).double(), torch.randn(40).double()
    results, norms = [], []
    for stored in (False, True):
        x, w = h_S.clone().requires_grad_(), w_S.clone().requires_grad_()
        settings = ScoreSettings(
            beta=0.3, temperature=temperature, vocabulary=37, common=common, chunk=9
        )
        if stored:
            top = top_tokens(h_T, w_T, k=99, common=common, temperature=temperature)
            assert top.ids_NK.shape == (40, common) and torch.isneginf(top.rest_N).all()
            d, logp = topk_scores(x, w, top, targets, settings)
            assert top.bound_N is not None and not top.bound_N.any()
        else:
            d, logp = token_scores(x, w, h_T, w_T, targets, settings)
        (a * d + b * logp).sum().backward()
        results.append((d.detach(), logp.detach(), x.grad, w.grad))
        norms.append((settings.jsd_norm_N, settings.logp_norm_N))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, atol=1e-12, rtol=1e-12)
    for one, two in zip(*norms, strict=True):  # kept in float32 by one of the two
        torch.testing.assert_close(one, two, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("common", [37, 30])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("chunk", [1, 13, 100])
def test_value_and_gradient_against_autograd(common: int, temperature: float, chunk: int) -> None:
    """The plain way: both distributions over the kept tokens and a sum of the others."""
    h_S, w_S, h_T, w_T, targets = case(2)
    a, b = torch.randn(40).double(), torch.randn(40).double()
    results = []
    for ours in (False, True):
        x, w = h_S.clone().requires_grad_(), w_S.clone().requires_grad_()
        if ours:
            top = top_tokens(h_T, w_T, k=6, common=common, temperature=temperature)
            settings = ScoreSettings(
                beta=0.3, temperature=temperature, vocabulary=37, common=common, chunk=chunk
            )
            d, logp = topk_scores(x, w, top, targets, settings)
        else:
            z = (x @ w.T)[:, :37]
            q = (z[:, :common] / temperature).softmax(-1)
            p = ((h_T @ w_T.T)[:, :common] / temperature).softmax(-1)
            kept = p.topk(6, dim=-1).indices
            mass = [
                torch.cat([y.gather(1, kept), 1 - y.gather(1, kept).sum(1, keepdim=True)], dim=1)
                for y in (p, q)
            ]
            d = jsd(mass[0].log(), mass[1].log(), beta=0.3)
            logp = log_softmax(z, dim=-1).gather(1, targets[:, None])[:, 0]
        (a * d + b * logp).sum().backward()
        results.append((d.detach(), logp.detach(), x.grad, w.grad))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, atol=1e-11, rtol=1e-9)
    assert not results[1][3][37:].any(), "padding rows get no gradient"


def test_renormalising_the_kept_tokens_would_be_seen() -> None:
    """The broken variant, the rest dropped: outside the bound."""
    h_S, w_S, h_T, w_T, targets = case(3)
    exact, _, bound = both(5, case(3))
    top = top_tokens(h_T, w_T, k=5, common=37)
    z = (h_S @ w_S.T)[:, :37].gather(1, top.ids_NK.long())
    dropped = jsd(top.logits_NK, z)
    missing = exact - dropped
    assert ((missing < 0) | (missing > bound)).any()


def test_gradcheck_and_norms() -> None:
    h_S, w_S, h_T, w_T, targets = case(4, n=3, vocabulary=6)
    top = top_tokens(h_T, w_T, k=2, common=6)
    x, w = h_S.requires_grad_(), w_S[:6].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: topk_scores(a, b, top, targets), (x, w))
    settings = ScoreSettings()
    d, _ = topk_scores(x, w, top, targets, settings)
    (gradient,) = torch.autograd.grad(d.sum(), x)
    assert settings.jsd_norm_N is not None
    torch.testing.assert_close(settings.jsd_norm_N, gradient.norm(dim=1), rtol=1e-9, atol=1e-12)


def test_logits_stored_in_bf16_are_those_of_a_bf16_product() -> None:
    """What is stored is what the product gave, so a live teacher in bf16 has the same numbers."""
    h_T, w_T = torch.randn(5, 16).bfloat16(), torch.randn(50, 16).bfloat16()
    top = top_tokens(h_T, w_T, k=8, common=50)
    assert top.logits_NK.dtype == torch.bfloat16 and top.rest_N.dtype == torch.float32
    whole = torch.log_softmax((h_T @ w_T.T).float(), -1)
    kept = torch.cat([top.logits_NK.float(), top.rest_N[:, None]], -1).log_softmax(-1)[:, :8]
    torch.testing.assert_close(kept, whole.gather(1, top.ids_NK.long()), atol=1e-5, rtol=0)


def test_refuses_another_number_of_tokens() -> None:
    h_S, w_S, h_T, w_T, targets = case(5)
    with pytest.raises(ValueError, match="39 teacher tokens"):
        topk_scores(h_S, w_S, top_tokens(h_T[1:], w_T, k=2, common=37), targets)
