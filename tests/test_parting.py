"""The push apart: worth nothing, and it sees what too few rows show of any kind of dependence."""

import math

import pytest
import torch

from mist_loss import MISTCriterion
from mist_loss.parting import BLOCK, _blocks, parting


def slope(x, y, direction, weight=1.0):
    """What the push says of a step of x along a direction."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(parting(x, y, weight), x)
    return (gradient * direction).sum().item()


def test_it_is_worth_nothing():
    x, y = torch.randn(2, 100, 3, requires_grad=True), torch.randn(2, 100, 2)
    assert parting(x, y, 6.0) == 0


@pytest.mark.parametrize("d", [4, 16])
def test_for_weakly_correlated_gaussians_it_is_about_as_steep_as_their_mutual_information(d):
    rho, n = 0.2, 20_000
    y, noise = torch.randn(1, n, d), torch.randn(1, n, d)
    x = rho * y + math.sqrt(1 - rho**2) * noise
    # d/drho of -d/2 log(1 - rho^2), along the path that keeps the variance of x
    exact = d * rho / (1 - rho**2)
    assert slope(x, y, y - rho / math.sqrt(1 - rho**2) * noise) == pytest.approx(exact, rel=0.5)


@pytest.mark.parametrize("kind", ["signs", "spread", "label"])
def test_less_of_a_dependence_without_correlation_is_downhill(kind):
    n = 2000
    noise, v = torch.randn(1, n, 2), torch.randn(1, n, 2)
    if kind == "label":
        label = torch.randint(3, (1, n))
        y = torch.nn.functional.one_hot(label, 3).float()
        hidden = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [-1.0, -1.0]])[label]
    else:
        y = v
        hidden = v.abs() - v.abs().mean(1, keepdim=True) if kind == "signs" else noise * v.abs()
    x = noise + hidden
    assert slope(x, y, hidden) > 0


def test_blocks_hold_every_row_once_and_keep_sets_apart():
    n = 2 * BLOCK + 88
    t = torch.arange(2 * n).reshape(2, n, 1)
    blocks = _blocks(t)
    assert blocks.shape == (6, n // 3, 1)
    assert sorted(blocks.flatten().tolist()) == list(range(2 * n))
    assert (blocks[:3] < n).all()


def test_rows_in_another_order_and_features_of_another_scale_do_not_matter():
    x, y, order = torch.randn(1, 80, 3), torch.randn(1, 80, 2), torch.randperm(80)
    direction = torch.randn_like(x)
    expected = slope(x, y, direction)
    assert slope(x[:, order], y[:, order], direction[:, order]) == pytest.approx(expected, abs=1e-5)
    scale = torch.tensor([10.0, 0.1, 1.0])
    assert slope(x * scale + 5, y, direction * scale) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("x", [torch.zeros(1, 20, 2), torch.cat([torch.zeros(1, 20, 1), torch.randn(1, 20, 1)], 2)])
def test_constant_features_give_finite_gradients(x):
    assert math.isfinite(slope(x, torch.randn(1, 20, 2), torch.randn(1, 20, 2)))


@pytest.mark.parametrize("push", [-1.0, float("inf"), float("nan")])
def test_a_push_that_cannot_be_is_refused(push):
    with pytest.raises(ValueError, match="push"):
        MISTCriterion(push=push)


def test_maximising_knows_no_push():
    x, y = torch.randn(50, 3, requires_grad=True), torch.randn(50, 3)
    gradients = [torch.autograd.grad(MISTCriterion(push=push)(x, y), x)[0] for push in (0.0, 6.0)]
    torch.testing.assert_close(*gradients)
