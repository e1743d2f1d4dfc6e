"""Skewed KL divergences: by hand, against numpy, their gradients, bounds and extremes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from masters.errors import RecipeError
from masters.plan import make_plan
from masters.recipe import load_recipe
from masters.specs import TrainSpec
from masters.training.losses import (
    Divergence,
    divergence_from_log_probs,
    divergence_slope,
    jsd_divergence,
    skew_divergence,
)
from masters.training.token_scores import ScoreSettings, token_scores
from masters.training.topk_scores import top_tokens, topk_scores

Direction = Literal["forward", "reverse"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "reverse")
ALPHAS = (0.0, 0.1, 0.5, 0.9)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * np.log(a / b)).sum(-1)


def twin(z_T: np.ndarray, z_S: np.ndarray, direction: str, alpha: float) -> np.ndarray:
    p, q = softmax(z_T), softmax(z_S)
    if direction == "forward":
        return kl(p, alpha * p + (1 - alpha) * q)
    return kl(q, (1 - alpha) * p + alpha * q)


def value_and_slope(
    z_T: torch.Tensor, z_S: torch.Tensor, divergence: Divergence, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    log_p, log_q = ((z / temperature).log_softmax(-1) for z in (z_T, z_S))
    value, log_q_mix, kl_q = divergence_from_log_probs(log_p, log_q, divergence)
    return value, divergence_slope(log_p, log_q, log_q_mix, kl_q, divergence, temperature)


def test_by_hand() -> None:
    """P = (1/2, 1/2), Q = (3/4, 1/4); at alpha 1/2 both mixtures are (5/8, 3/8)."""
    z_T, z_S = (torch.tensor([x], dtype=torch.float64).log() for x in ([0.5, 0.5], [0.75, 0.25]))
    by_hand = {
        ("forward", 0.0): 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25),
        ("reverse", 0.0): 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5),
        ("forward", 0.5): 0.5 * math.log(0.5 / 0.625) + 0.5 * math.log(0.5 / 0.375),
        ("reverse", 0.5): 0.75 * math.log(0.75 / 0.625) + 0.25 * math.log(0.25 / 0.375),
    }
    for (direction, alpha), expected in by_hand.items():
        divergence = skew_divergence("forward" if direction == "forward" else "reverse", alpha)
        value, slope = value_and_slope(z_T, z_S, divergence)
        assert value.item() == pytest.approx(expected, abs=1e-15)
        if (direction, alpha) == ("forward", 0.0):  # the textbook's Q - P
            assert slope[0].tolist() == pytest.approx([0.25, -0.25], abs=1e-15)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_numpy_twin_bounds_and_central_differences(direction: Direction, alpha: float) -> None:
    draw = np.random.default_rng(0)
    z_T, z_S = draw.normal(size=(20, 11)) * 3, draw.normal(size=(20, 11)) * 3
    for temperature in (1.0, 2.0):
        value, slope = value_and_slope(
            torch.from_numpy(z_T), torch.from_numpy(z_S), skew_divergence(direction, alpha),
            temperature,
        )  # fmt: skip
        expected = twin(z_T / temperature, z_S / temperature, direction, alpha)
        np.testing.assert_allclose(value.numpy(), expected, atol=1e-13)
        assert (value >= 0).all()
        assert alpha == 0 or (value <= -math.log(alpha) + 1e-12).all()
        np.testing.assert_allclose(slope.sum(-1).numpy(), 0, atol=1e-13)
        for v in range(z_S.shape[1]):
            step = np.zeros_like(z_S)
            step[:, v] = 1e-5
            up, down = (
                twin(z_T / temperature, (z_S + sign * step) / temperature, direction, alpha)
                for sign in (1, -1)
            )
            np.testing.assert_allclose(slope[:, v].numpy(), (up - down) / 2e-5, atol=2e-9)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("far", [200.0, 1e4])
def test_probabilities_below_the_smallest_float(
    direction: Direction, alpha: float, far: float
) -> None:
    """Where one model gives 0 to what the other is sure of: finite, in log space, no NaN."""
    z_T, z_S = torch.tensor([[far, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, far]])
    value, slope = value_and_slope(z_T, z_S, skew_divergence(direction, alpha))
    assert value.item() == pytest.approx(far if alpha == 0 else -math.log(alpha), rel=1e-6)
    assert slope.isfinite().all() and slope.abs().max() <= (1 if alpha else far)
    if direction == "forward" and alpha == 0:
        assert slope[0].tolist() == pytest.approx([-1, 0, 1], abs=1e-6)
    same, none = value_and_slope(z_T, z_T, skew_divergence(direction, alpha))
    assert same.abs().max() < 1e-6 and none.abs().max() < 1e-6


def before(
    log_p_V: torch.Tensor, log_q_V: torch.Tensor, beta: float, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """JSD and its gradient as they were written before other divergences shared the formula."""
    p_V, q_V = log_p_V.exp(), log_q_V.exp()
    log_mix_V = torch.lerp(q_V, p_V, beta).clamp_min(torch.finfo(p_V.dtype).tiny).log()
    log_q_mix_V = (log_q_V - log_mix_V).clamp_min(-1e4)
    kl_p = (p_V * (log_p_V - log_mix_V).clamp_min(-1e4)).sum(-1)
    kl_q = (q_V * log_q_mix_V).sum(-1)
    slope_V = log_q_mix_V.sub(kl_q[:, None]).mul_(log_q_V.exp())
    slope_V *= (1 - beta) / temperature
    return beta * kl_p + (1 - beta) * kl_q, slope_V


@pytest.mark.parametrize("beta", [0.05, 0.3, 0.5, 0.7, 0.95])
def test_the_jsd_is_bit_for_bit_what_it_was(beta: float) -> None:
    torch.manual_seed(1)
    for temperature in (1.0, 0.7):
        z_T, z_S = torch.randn(2, 64, 501) * 5
        divergence = jsd_divergence(beta)
        assert divergence.only_logs
        ours = value_and_slope(z_T, z_S, divergence, temperature)
        log_p, log_q = ((z / temperature).log_softmax(-1) for z in (z_T, z_S))
        for got, expected in zip(ours, before(log_p, log_q, beta, temperature), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_token_scores_in_chunks_against_autograd(
    direction: Direction, alpha: float, norms: bool
) -> None:
    """Values, gradients of states and head, over a common vocabulary, at a temperature."""
    draw = torch.Generator().manual_seed(0)
    h_S, w_S, h_T, w_T = (
        torch.randn(*shape, generator=draw, dtype=torch.float64)
        for shape in ((23, 5), (31, 5), (23, 7), (29, 7))
    )
    weight_N = torch.randn(23, generator=draw, dtype=torch.float64)
    targets = torch.randint(29, (23,), generator=draw)
    settings = ScoreSettings(
        divergence=skew_divergence(direction, alpha), temperature=1.5, common=29, chunk=6,
        norms=norms,
    )  # fmt: skip
    found: list[list[Any]] = []
    for ours in (True, False):
        h, w = h_S.clone().requires_grad_(), w_S.clone().requires_grad_()
        if ours:
            d, logp = token_scores(h, w, h_T, w_T, targets, settings)
        else:
            z_S = h @ w.T
            logp = z_S.log_softmax(-1).gather(1, targets[:, None])[:, 0]
            p, q = ((z / 1.5).softmax(-1) for z in (h_T @ w_T.T, z_S[:, :29]))
            mix = (
                alpha * p + (1 - alpha) * q
                if direction == "forward"
                else alpha * q + (1 - alpha) * p
            )
            one = p if direction == "forward" else q
            d = (one * (one / mix).log()).sum(-1)
        (weight_N * d + weight_N.flip(0) * logp).sum().backward()
        found.append([d.detach(), logp.detach(), h.grad, w.grad])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)


def test_stored_top_tokens_are_for_the_jsd_alone() -> None:
    h, w = torch.randn(4, 5), torch.randn(9, 5)
    top = top_tokens(h, w, k=3, common=9)
    settings = ScoreSettings(divergence=skew_divergence("forward", 0.1))
    with pytest.raises(ValueError, match="no other divergence"):
        topk_scores(h, w, top, torch.zeros(4, dtype=torch.long), settings)


def test_what_the_recipes_ask_for(tmp_path: Path) -> None:
    def spec(name: str) -> TrainSpec:
        plan = make_plan(load_recipe(name, "tiny"), tmp_path)
        found = plan.by_name["train/0-teacher"].spec
        assert isinstance(found, TrainSpec) and found.teacher is not None
        return found

    assert [(term.kind, term.on) for term in spec("kd").objective] == [
        ("nll", "labels"), ("skew_kl", "labels"),
    ]  # fmt: skip
    assert [term.kind for term in spec("distillm").objective] == ["skew_kl"]
    whole = spec("distillm_masters")
    assert [term.kind for term in whole.objective] == ["grpo", "skew_kl"]
    assert whole.schedule == spec("masters").schedule and whole.rewards == spec("masters").rewards
    load_recipe("distillm", "tiny", ["method.signal=hidden"])


@pytest.mark.parametrize(
    ("recipe", "override", "said"),
    [
        ("distillm", "method.signal=topk", "bounds what a jsd lacks and no skew_kl"),
        ("distillm", "method.objective.0.alpha=1", "alpha"),
        (
            "distillm",
            "method.objective=[{kind: jsd}, {kind: skew_kl}]",
            "has both jsd and skew_kl, and a token has one divergence",
        ),
        (
            "distillm",
            "method.objective=[{kind: skew_kl}, {kind: skew_kl, on: labels, alpha: 0.2}]",
            "of different direction, alpha or temperature",
        ),
        ("distillm", "method.objective=[{kind: skew_kl}, {kind: skew_kl}]", "a second skew_kl on"),
        (
            "distillm",
            "method.phases.0.teacher=null",
            r"method.objective\[0\] \(skew_kl\) needs one",
        ),
    ],
)
def test_refused(recipe: str, override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(recipe, "tiny", [override])
