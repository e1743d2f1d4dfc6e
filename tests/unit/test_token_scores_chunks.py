"""Token scores in chunks: exact values and gradients, what is kept, and how much memory."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from masters.training.losses import jsd
from masters.training.token_scores import ScoreSettings, chunk_length, token_scores

N, D_S, D_T, V = 23, 5, 7, 29


class Problem:
    """Random float64 inputs, a weight for each score of each token, and the plain answer."""

    def __init__(self, *, seed: int = 0, rows_S: int = V, rows_T: int = V, n: int = N) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.h_S, self.w_S = normal(n, D_S), normal(rows_S, D_S)
        self.h_T, self.w_T = normal(n, D_T), normal(rows_T, D_T)
        self.a, self.b = normal(n), normal(n)
        self.targets = torch.randint(min(rows_S, rows_T), (n,), generator=generator)

    def run(
        self,
        score: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
        *,
        terms: str = "both",
        head_trained: bool = True,
    ) -> dict[str, torch.Tensor | None]:
        """Values and gradients of sum(a jsd + b logp), or of one of the two."""
        h = self.h_S.clone().requires_grad_()
        w = self.w_S.clone().requires_grad_(head_trained)
        d, logp = score(h, w)
        loss = torch.zeros((), dtype=torch.float64)
        if terms in ("both", "jsd"):
            loss = loss + (self.a * d).sum()
        if terms in ("both", "logp"):
            loss = loss + (self.b * logp).sum()
        loss.backward()
        return {"jsd": d.detach(), "logp": logp.detach(), "hidden": h.grad, "head": w.grad}

    def ours(self, settings: ScoreSettings, **options: Any) -> dict[str, torch.Tensor | None]:
        return self.run(
            lambda h, w: token_scores(h, w, self.h_T, self.w_T, self.targets, settings), **options
        )

    def plain(
        self, *, beta: float = 0.5, temperature: float = 1.0, common: int | None = None, **options
    ) -> dict[str, torch.Tensor | None]:
        def score(h: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            z_S, z_T = h @ w.T, self.h_T @ self.w_T.T
            logp = z_S.log_softmax(-1).gather(1, self.targets[:, None])[:, 0]
            d = jsd(z_T[:, :common], z_S[:, :common], beta=beta, temperature=temperature)
            return d, logp

        return self.run(score, **options)


def assert_equal(ours: dict[str, Any], plain: dict[str, Any]) -> None:
    for name, expected in plain.items():
        if expected is None:
            assert ours[name] is None, name
        else:
            torch.testing.assert_close(ours[name], expected, atol=1e-10, rtol=1e-10, msg=name)


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("terms", ["both", "jsd", "logp"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_values_and_gradients_are_those_of_the_plain_formula(
    beta: float, temperature: float, terms: str, norms: bool
) -> None:
    problem = Problem()
    plain = problem.plain(beta=beta, temperature=temperature, terms=terms)
    for chunk in (1, 7, N, N + 1, None):
        settings = ScoreSettings(beta=beta, temperature=temperature, chunk=chunk, norms=norms)
        assert_equal(problem.ours(settings, terms=terms), plain)


@pytest.mark.parametrize("terms", ["both", "jsd", "logp"])
@pytest.mark.parametrize("norms", [True, False])
def test_frozen_head_and_heads_of_unequal_length(terms: str, norms: bool) -> None:
    problem = Problem(rows_S=31, rows_T=24)
    plain = problem.plain(common=24, terms=terms, head_trained=False)
    assert plain["head"] is None
    settings = ScoreSettings(common=24, chunk=7, norms=norms)
    assert_equal(problem.ours(settings, terms=terms, head_trained=False), plain)
    plain = problem.plain(common=24, terms=terms)
    assert_equal(problem.ours(settings, terms=terms), plain)


def test_only_the_head_is_trained() -> None:
    problem = Problem()
    grads = []
    for norms in (True, False):
        w = problem.w_S.clone().requires_grad_()
        d, _ = token_scores(
            problem.h_S, w, problem.h_T, problem.w_T, problem.targets,
            ScoreSettings(chunk=7, norms=norms),
        )  # fmt: skip
        (problem.a * d).sum().backward()
        grads.append(w.grad)
    plain = problem.plain(terms="jsd")["head"]
    for grad in grads:
        torch.testing.assert_close(grad, plain, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("terms", ["both", "jsd", "logp"])
def test_norms_are_exact_and_none_without_a_term(terms: str) -> None:
    problem = Problem()
    settings = ScoreSettings(chunk=7)
    problem.ours(settings, terms=terms)
    for name, norm_N in (("jsd", settings.jsd_norm_N), ("logp", settings.logp_norm_N)):
        if terms not in ("both", name):
            assert norm_N is None
            continue
        weight = problem.a if name == "jsd" else problem.b
        alone = problem.plain(terms=name)["hidden"]
        assert alone is not None and norm_N is not None
        torch.testing.assert_close(norm_N * weight.abs(), alone.norm(dim=1), atol=1e-12, rtol=1e-12)
    off = ScoreSettings(chunk=7, norms=False)
    problem.ours(off, terms=terms)
    assert off.jsd_norm_N is None and off.logp_norm_N is None


@pytest.mark.parametrize("chunk", [7, 100])
def test_a_second_backward_through_the_same_graph_is_the_same(chunk: int) -> None:
    """The first one writes over the logits that forward left."""
    problem = Problem()
    h, w = problem.h_S.clone().requires_grad_(), problem.w_S.clone().requires_grad_()
    d, logp = token_scores(
        h, w, problem.h_T, problem.w_T, problem.targets, ScoreSettings(chunk=chunk)
    )
    loss = (problem.a * d + problem.b * logp).sum()
    first = torch.autograd.grad(loss, (h, w), retain_graph=True)
    second = torch.autograd.grad(loss, (h, w))
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one, two)


def test_entropies_by_hand_and_by_numpy() -> None:
    head = torch.tensor([3.0, 1.0]).double().log()[:, None]
    one = torch.ones(1, 1).double()
    settings = ScoreSettings()
    token_scores(one, head, one, torch.zeros(2, 1).double(), torch.tensor([0]), settings)
    assert settings.entropy_N is not None and settings.teacher_entropy_N is not None
    by_hand = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert settings.entropy_N.item() == pytest.approx(by_hand, abs=1e-15)
    assert settings.teacher_entropy_N.item() == pytest.approx(math.log(2), abs=1e-15)

    problem = Problem()
    # Whatever the divergence's temperature, entropies are those at 1.
    settings = ScoreSettings(chunk=7, temperature=2.0)
    problem.ours(settings)
    for entropy_N, h, w in (
        (settings.entropy_N, problem.h_S, problem.w_S),
        (settings.teacher_entropy_N, problem.h_T, problem.w_T),
    ):
        z = (h @ w.T).numpy()
        p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
        assert entropy_N is not None
        np.testing.assert_allclose(entropy_N.numpy(), -(p * np.log(p)).sum(-1), atol=1e-12)
    settings = ScoreSettings()
    token_scores(problem.h_S, problem.w_S, None, None, problem.targets, settings)
    assert settings.entropy_N is not None and settings.teacher_entropy_N is None


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_divergence_stays_within_its_bounds(beta: float) -> None:
    """0 <= JSD_b <= H(b), the entropy of a coin of weight b: ln 2 at 1/2; reached far apart."""
    problem = Problem()
    settings = ScoreSettings(beta=beta, chunk=7)
    bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    for scale in (1e-3, 1.0, 30.0):
        d, _ = token_scores(
            scale * problem.h_S, problem.w_S, scale * problem.h_T, problem.w_T,
            problem.targets, settings,
        )  # fmt: skip
        assert (d >= -1e-15).all() and (d <= bound + 1e-12).all()
    assert d.max() > 0.99 * bound
    same, _ = token_scores(
        problem.h_S, problem.w_S, problem.h_S, problem.w_S, problem.targets, settings
    )
    assert same.abs().max() < 1e-15


@pytest.mark.parametrize("teacher", [True, False])
def test_no_tokens(teacher: bool) -> None:
    problem = Problem(n=0)
    h, w = problem.h_S.requires_grad_(), problem.w_S.requires_grad_()
    settings = ScoreSettings()
    others = (problem.h_T, problem.w_T) if teacher else (None, None)
    d, logp = token_scores(h, w, *others, problem.targets, settings)
    assert d.shape == logp.shape == (0,)
    (d.sum() + logp.sum()).backward()
    assert h.grad is not None and h.grad.shape == (0, D_S)
    assert w.grad is not None and not w.grad.any()
    assert settings.entropy_N is not None and len(settings.entropy_N) == 0


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("terms", ["both", "jsd", "logp"])
def test_bf16_products_agree_with_the_exact_ones(terms: str, norms: bool) -> None:
    """Values and gradients in float32 from products in bf16: the rounding of 8 bits, no more."""
    problem = Problem()
    exact = problem.plain(terms=terms)
    h = problem.h_S.float().requires_grad_()
    w = problem.w_S.float().requires_grad_()
    d, logp = token_scores(
        h, w, problem.h_T.bfloat16(), problem.w_T.bfloat16(), problem.targets,
        ScoreSettings(dtype=torch.bfloat16, chunk=7, norms=norms),
    )  # fmt: skip
    assert d.dtype == logp.dtype == torch.float32
    parts = {"jsd": (problem.a * d).sum(), "logp": (problem.b * logp).sum()}
    (parts["jsd"] + parts["logp"] if terms == "both" else parts[terms]).backward()
    for name, got in (("jsd", d), ("logp", logp), ("hidden", h.grad), ("head", w.grad)):
        expected = exact[name]
        assert got is not None and expected is not None
        error = (got.detach().double() - expected).norm() / expected.norm()
        assert error < 0.02, (name, error)


# ------------------------------------------------------------------------------------- memory


class Allocations(TorchDispatchMode):
    """Bytes of storages that operators made and that are alive: now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(s) for s in _storages((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if id(storage) not in given and id(storage) not in self._seen:
                self._count(storage)
        return out

    def _count(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        self._seen.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)

        def gone() -> None:
            self._seen.discard(key)
            self.alive -= size

        weakref.finalize(storage, gone)


def _storages(value: Any) -> list[Any]:
    if isinstance(value, torch.Tensor):
        return [value.untyped_storage()]
    if isinstance(value, dict):
        value = list(value.values())
    return [s for x in value for s in _storages(x)] if isinstance(value, (list, tuple)) else []


def peak_of(score: Callable[..., tuple[torch.Tensor, torch.Tensor]], tokens: int) -> int:
    """Bytes at the peak of forward and backward, beyond inputs and the two gradients."""
    problem = Problem(n=tokens, rows_S=2000, rows_T=2000)
    h, w = problem.h_S.requires_grad_(), problem.w_S.requires_grad_()
    gc.collect()
    with Allocations() as allocations:
        d, logp = score(h, w, problem.h_T, problem.w_T, problem.targets)
        (problem.a * d + problem.b * logp).sum().backward()
    assert h.grad is not None and w.grad is not None
    return allocations.peak - h.grad.nbytes - w.grad.nbytes


def test_memory_is_that_of_a_chunk_whatever_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("masters.training.token_scores.BLOCK", (4 * 2000, 4 * 2000))

    def ours(*inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return token_scores(*inputs, ScoreSettings(chunk=32))

    def plain(h: Any, w: Any, h_T: Any, w_T: Any, y: Any) -> tuple[torch.Tensor, torch.Tensor]:
        z_S, z_T = h @ w.T, h_T @ w_T.T
        return jsd(z_T, z_S), z_S.log_softmax(-1).gather(1, y[:, None])[:, 0]

    logits = 32 * 2000 * 8
    few, many = peak_of(ours, 256), peak_of(ours, 1024)
    # Two buffers of a chunk and some blocks; of 768 tokens more, only their per-token numbers.
    assert 2 * logits < few < 4 * logits
    assert many - few < 768 * 8 * 40 < 0.1 * 768 * 2000 * 8
    # The measure sees [T, V] tensors where there are some.
    assert peak_of(plain, 1024) > 8 * 1024 * 2000 * 8
    assert many < 0.03 * peak_of(plain, 1024)


def test_chunks_are_sized_by_the_vocabulary() -> None:
    cpu = torch.device("cpu")
    assert chunk_length(2 * 151_936, torch.float32, cpu) == 192
    assert chunk_length(2 * 500, torch.float32, cpu) == 4096
    between = chunk_length(2 * 16_000, torch.float32, cpu)
    assert between * 2 * 16_000 * 4 <= 3 << 24 < (between + 1) * 2 * 16_000 * 4


@pytest.mark.parametrize("trained", [True, False])
def test_logits_of_a_chunk_are_made_at_most_twice(
    trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products [C, D] x [D, V]: each chunk in forward, all but a full one again in backward."""
    widths = []
    product = torch.mm
    monkeypatch.setattr(
        torch, "mm", lambda a, b, out: widths.append(tuple(a.shape)) or product(a, b, out=out)
    )
    problem = Problem()
    problem.ours(ScoreSettings(chunk=10), head_trained=trained)
    forward = [(3, D_S), (3, D_T), (10, D_S), (10, D_T), (10, D_S), (10, D_T)]
    assert widths == forward + [(10, D_S), (10, D_T), (3, D_S), (3, D_T)]
    widths.clear()
    problem.ours(ScoreSettings(chunk=10), terms="logp", head_trained=trained)
    assert widths == forward + [(10, D_S), (3, D_S)]
