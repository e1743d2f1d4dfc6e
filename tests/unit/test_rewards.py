"""Distillation reward and advantages: hand cases, numpy twins, bounds, and no noise amplified."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from masters.rewards.advantages import group_advantages
from masters.rewards.distillation import distillation_reward


def test_distillation_reward_by_hand() -> None:
    reward = distillation_reward(torch.tensor([0.1, 0.3, 0.2]))
    assert reward.tolist() == pytest.approx([1.0, 0.0, 0.5], abs=1e-6)


def test_distillation_reward_numpy_twin_and_bounds() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        d = rng.uniform(0, 0.69, size=8)
        expected = (d.max() - d) / (d.max() - d.min())
        ours = distillation_reward(torch.from_numpy(d)).numpy()
        np.testing.assert_allclose(ours, expected, atol=1e-12)
        assert ours.min() == 0 and ours.max() == 1


def test_spans_of_rounding_size_are_no_signal() -> None:
    noise = 0.2 + torch.rand(8) * 4e-5
    assert torch.equal(distillation_reward(noise), torch.ones(8, dtype=torch.float64))
    # Without the guard the same noise would be full-size rewards.
    assert distillation_reward(noise, min_span=1e-12).min() == 0


def test_without_normalisation_it_is_minus_d() -> None:
    d = torch.tensor([0.1, 0.4])
    torch.testing.assert_close(distillation_reward(d, normalise=False), -d.double())


def test_distillation_reward_is_detached() -> None:
    d = torch.rand(4, requires_grad=True)
    assert not distillation_reward(d).requires_grad


def test_advantages_by_hand() -> None:
    # mean 1, sample std sqrt(((1)^2 + 0 + (1)^2) / 2) = 1
    assert group_advantages(torch.tensor([0.0, 1.0, 2.0])).tolist() == [-1.0, 0.0, 1.0]


def test_advantages_numpy_twin_and_bounds() -> None:
    rng = np.random.default_rng(1)
    for size in (2, 5, 8):
        r = rng.uniform(0, 2, size=size)
        ours = group_advantages(torch.from_numpy(r)).numpy()
        np.testing.assert_allclose(ours, (r - r.mean()) / r.std(ddof=1), atol=1e-12)
        assert abs(ours.sum()) < 1e-9
        assert np.abs(ours).max() <= (size - 1) / np.sqrt(size) + 1e-12


def test_equal_rewards_give_exactly_no_advantage() -> None:
    assert not group_advantages(torch.full((8,), 1.7)).any()


@pytest.mark.parametrize("shape", [(1,), (2, 3)])
def test_advantages_refuse_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        group_advantages(torch.zeros(shape))
