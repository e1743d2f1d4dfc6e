"""The loss layer proved by hand, by a float64 numpy twin, by bounds, and against TRL."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from masters.training.losses import jsd, k3, policy_term
from masters.training.token_scores import ScoreSettings, token_scores


def numpy_jsd(p_logits: np.ndarray, q_logits: np.ndarray, beta: float) -> np.ndarray:
    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    p, q = softmax(p_logits), softmax(q_logits)
    m = beta * p + (1 - beta) * q
    return beta * (p * np.log(p / m)).sum(-1) + (1 - beta) * (q * np.log(q / m)).sum(-1)


def test_jsd_by_hand() -> None:
    # P = (1/2, 1/2), Q = (3/4, 1/4), mix = (5/8, 3/8).
    p = torch.log(torch.tensor([[0.5, 0.5]], dtype=torch.float64))
    q = torch.log(torch.tensor([[0.75, 0.25]], dtype=torch.float64))
    kl_p = 0.5 * math.log(0.5 / 0.625) + 0.5 * math.log(0.5 / 0.375)
    kl_q = 0.75 * math.log(0.75 / 0.625) + 0.25 * math.log(0.25 / 0.375)
    assert jsd(p, q).item() == pytest.approx(0.5 * kl_p + 0.5 * kl_q, abs=1e-15)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jsd_numpy_twin_and_bounds(beta: float) -> None:
    rng = np.random.default_rng(0)
    p, q = rng.normal(size=(50, 33)) * 4, rng.normal(size=(50, 33)) * 4
    ours = jsd(torch.from_numpy(p), torch.from_numpy(q), beta=beta).numpy()
    np.testing.assert_allclose(ours, numpy_jsd(p, q, beta), atol=1e-13)
    entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert (ours >= 0).all() and (ours <= entropy + 1e-12).all()


def test_jsd_reaches_its_bound_and_zero() -> None:
    far = jsd(torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]]))
    assert far.item() == pytest.approx(math.log(2), abs=1e-6)
    same = torch.randn(4, 9)
    assert jsd(same, same).abs().max().item() < 1e-7


def test_jsd_against_trl() -> None:
    trainer = pytest.importorskip("trl.experimental.gkd").GKDTrainer
    student, teacher = torch.randn(2, 7, 40), torch.randn(2, 7, 40)
    for beta in (0.25, 0.5, 0.8):
        # TRL's beta weighs the teacher's KL in the same place as ours.
        oracle = trainer.generalized_jsd_loss(
            student, teacher, beta=beta, temperature=1.0, reduction="sum"
        )
        assert jsd(teacher, student, beta=beta).sum().item() == pytest.approx(
            oracle.item(), rel=1e-5
        )


def test_jsd_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        jsd(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"beta is 1.*\(0, 1\)"):
        jsd(torch.zeros(2, 3), torch.zeros(2, 3), beta=1)
    with pytest.raises(ValueError, match="temperature is 0"):
        jsd(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0)


def test_k3_by_hand_and_bounds() -> None:
    ref = torch.log(torch.tensor([0.5, 0.2]))
    logp = torch.log(torch.tensor([0.25, 0.2]))
    expected = [2 - math.log(2) - 1, 0.0]
    assert k3(ref, logp).tolist() == pytest.approx(expected, abs=1e-7)
    noise = torch.randn(1000)
    assert (k3(noise, torch.zeros(1000)) >= 0).all()
    # Rounding-sized differences keep their square: exp(d) - 1 - d would give 0 or noise.
    tiny = k3(torch.tensor([1e-4]), torch.tensor([0.0]))
    assert tiny.item() == pytest.approx(5e-9, rel=2e-3)


def test_policy_term_is_its_advantage_in_value_and_gradient() -> None:
    logp = torch.tensor([-1.0, -2.0], requires_grad=True)
    advantage = torch.tensor([1.5, -0.5])
    value = policy_term(logp, advantage, clip=0.2)
    assert torch.equal(value.detach(), advantage)
    value.sum().backward()
    assert logp.grad is not None and torch.equal(logp.grad, advantage)


def plain(h_s, w_s, h_t, w_t, targets, beta, temperature, vocabulary):
    z_s, z_t = (h_s @ w_s.T)[:, :vocabulary], (h_t @ w_t.T)[:, :vocabulary]
    logp = z_s.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return jsd(z_t, z_s, beta=beta, temperature=temperature), logp


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_token_scores_equal_the_plain_formula_with_gradients(
    temperature: float, chunk: int
) -> None:
    torch.manual_seed(1)
    n, vocabulary = 8, 29
    targets = torch.randint(vocabulary, (n,))
    h_s, w_s = torch.randn(n, 5).double(), torch.randn(31, 5).double()
    h_t, w_t = torch.randn(n, 7).double(), torch.randn(40, 7).double()
    a, b = torch.randn(n).double(), torch.randn(n).double()
    grads = []
    for chunked in (False, True):
        x, w = h_s.clone().requires_grad_(), w_s.clone().requires_grad_()
        if chunked:
            settings = ScoreSettings(
                beta=0.3, temperature=temperature, vocabulary=vocabulary, chunk=chunk
            )
            d, logp = token_scores(x, w, h_t, w_t, targets, settings)
        else:
            d, logp = plain(x, w, h_t, w_t, targets, 0.3, temperature, vocabulary)
        (a * d + b * logp).sum().backward()
        grads.append((d.detach(), logp.detach(), x.grad, w.grad))
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two, atol=1e-12, rtol=1e-12)
    # Padding rows of the head get no gradient: they are no tokens.
    assert not grads[1][3][vocabulary:].any()


def test_token_scores_gradcheck() -> None:
    torch.manual_seed(2)
    targets = torch.tensor([0, 3, 5])
    h_t, w_t = torch.randn(3, 4).double(), torch.randn(6, 4).double()
    h = torch.randn(3, 4).double().requires_grad_()
    w = torch.randn(6, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: token_scores(x, y, h_t, w_t, targets), (h, w))


def test_token_scores_norms_are_those_of_the_gradient() -> None:
    torch.manual_seed(3)
    targets = torch.randint(11, (6,))
    h = torch.randn(6, 4).double().requires_grad_()
    w, h_t, w_t = (
        torch.randn(11, 4).double(),
        torch.randn(6, 3).double(),
        torch.randn(11, 3).double(),
    )
    settings = ScoreSettings()
    d, _ = token_scores(h, w, h_t, w_t, targets, settings)
    weights = torch.rand(6).double()
    (gradient,) = torch.autograd.grad((weights * d).sum(), h)
    assert settings.jsd_norm_N is not None
    torch.testing.assert_close(
        weights * settings.jsd_norm_N.double(), gradient.norm(dim=1), rtol=1e-5, atol=1e-8
    )


def test_token_scores_without_teacher() -> None:
    h, w = torch.randn(3, 4), torch.randn(6, 4)
    d, logp = token_scores(h, w, None, None, torch.tensor([1, 2, 3]))
    assert not d.any() and (logp < 0).all()
    with pytest.raises(ValueError, match="together"):
        token_scores(h, w, h, None, torch.tensor([1, 2, 3]))


# ---------------------------------------------------------------------- heads of different lengths


def test_padding_by_hand() -> None:
    """Two tokens in common, one of the student's own, and padding that would win every softmax.

    P = (1/2, 1/2) and Q = (3/4, 1/4) over what is common; the student's third token takes half of
    its mass, so log q of the first is ln(3/8).
    """
    head_S = torch.tensor([3.0, 1.0, 4.0, 1e9]).double().log()[:, None]
    head_T = torch.tensor([5.0, 5.0, 1e9, 1e9, 1e9]).double().log()[:, None]
    one = torch.ones(1, 1).double()
    d, logp = token_scores(
        one, head_S, one, head_T, torch.tensor([0]), ScoreSettings(vocabulary=3, common=2)
    )
    expected = jsd(
        torch.tensor([[1.0, 1.0]]).double().log(), torch.tensor([[3.0, 1.0]]).double().log()
    )
    assert d.item() == pytest.approx(expected.item(), abs=1e-15)
    assert logp.item() == pytest.approx(math.log(3 / 8), abs=1e-12)


def padded_scores(
    rows_S: int, rows_T: int, vocabulary: int | None, *, temperature: float = 1.0
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """(jsd, logp, gradients and norms; gradient of the padding rows), the padding's logits huge.

    Both models have the same 20 tokens; their heads are padded to so many rows.
    """
    torch.manual_seed(5)
    n, tokens = 6, 20
    targets = torch.randint(tokens, (n,))
    x, w_s = torch.randn(n, 5).double().abs().requires_grad_(), torch.randn(tokens, 5).double()
    h_t, w_t = torch.randn(n, 7).double().abs(), torch.randn(tokens, 7).double()
    w_s = torch.cat([w_s, torch.full((rows_S - tokens, 5), 100.0)]).requires_grad_()
    w_t = torch.cat([w_t, torch.full((rows_T - tokens, 7), 100.0)])
    settings = ScoreSettings(beta=0.3, vocabulary=vocabulary, temperature=temperature, chunk=4)
    d, logp = token_scores(x, w_s, h_t, w_t, targets, settings)
    (torch.randn(n).double() * d + torch.randn(n).double() * logp).sum().backward()
    assert x.grad is not None and w_s.grad is not None
    assert settings.jsd_norm_N is not None and settings.logp_norm_N is not None
    norms = [settings.jsd_norm_N, settings.logp_norm_N]
    return [d.detach(), logp.detach(), x.grad, w_s.grad[:tokens], *norms], w_s.grad[tokens:]


@pytest.mark.parametrize(("rows_S", "rows_T"), [(24, 20), (20, 24), (60, 31), (31, 60)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_padding_changes_no_bit(rows_S: int, rows_T: int, temperature: float) -> None:
    tight, _ = padded_scores(20, 20, 20, temperature=temperature)
    loose, padding = padded_scores(rows_S, rows_T, 20, temperature=temperature)
    for one, two in zip(tight, loose, strict=True):
        assert torch.equal(one, two)
    assert not padding.any()


def test_padding_that_is_not_cut_off_would_be_seen() -> None:
    """The broken variant: heads of the same length, and nobody says what of them is padding."""
    tight, _ = padded_scores(20, 20, 20)
    loose, padding = padded_scores(24, 24, None)
    assert (tight[0] - loose[0]).abs().min() > 1e-2
    assert (tight[1] - loose[1]).abs().min() > 10
    assert padding.any()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_tokens_of_the_student_alone(temperature: float) -> None:
    """log q over the student's 20 tokens, D over the 18 common ones: numpy twin and autograd."""
    rng = np.random.default_rng(3)
    h_s, w_s = rng.normal(size=(6, 5)), rng.normal(size=(31, 5)) * 2
    h_t, w_t = rng.normal(size=(6, 7)), rng.normal(size=(18, 7)) * 2
    targets = np.array([0, 3, 17, 9, 5, 11])
    z_s, z_t = (h_s @ w_s.T)[:, :20], h_t @ w_t.T
    d_twin = numpy_jsd(z_t / temperature, z_s[:, :18] / temperature, 0.3)
    logp_twin = z_s[np.arange(6), targets] - np.log(np.exp(z_s).sum(-1))
    a, b = torch.from_numpy(rng.normal(size=6)), torch.from_numpy(rng.normal(size=6))
    results = []
    for chunked in (False, True):
        x = torch.from_numpy(h_s).requires_grad_()
        w = torch.from_numpy(w_s).requires_grad_()
        teacher = torch.from_numpy(h_t), torch.from_numpy(w_t)
        if chunked:
            settings = ScoreSettings(
                beta=0.3, vocabulary=20, common=18, temperature=temperature, chunk=4
            )
            d, logp = token_scores(x, w, *teacher, torch.from_numpy(targets), settings)
        else:
            z, p = (x @ w.T)[:, :20], teacher[0] @ teacher[1].T
            logp = z.log_softmax(-1).gather(1, torch.from_numpy(targets)[:, None])[:, 0]
            d = jsd(p, z[:, :18], beta=0.3, temperature=temperature)
        np.testing.assert_allclose(d.detach().numpy(), d_twin, atol=1e-13)
        np.testing.assert_allclose(logp.detach().numpy(), logp_twin, atol=1e-12)
        (a * d + b * logp).sum().backward()
        results.append((x.grad, w.grad))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, atol=1e-12, rtol=1e-12)


def test_token_scores_refuse_tokens_without_a_row() -> None:
    h, w = torch.randn(3, 4), torch.randn(6, 4)
    targets = torch.tensor([1, 2, 3])
    for settings in (ScoreSettings(vocabulary=7), ScoreSettings(vocabulary=5, common=6)):
        with pytest.raises(ValueError, match="a row for each token"):
            token_scores(h, w, h, w, targets, settings)
    with pytest.raises(ValueError, match=r"vocabulary 6, common 6 for heads of 6 and 5 rows"):
        token_scores(h, w, h, w[:5], targets)
