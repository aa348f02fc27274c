"""The pull of correlations: worth nothing, steep where little is shared, and it leads where nothing is shared yet."""

import math

import pytest
import torch
from torch import nn

from mist_loss import MISTCriterion
from mist_loss.meta.structures import canonical_mi, gaussian_mi
from mist_loss.pulling import PAIRING, _idle_pairing, pulling


def slope(x, y, direction, weight=1.0):
    """What the pull says of a step of x along a direction."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(pulling(x, y, weight), x)
    return -(gradient * direction).sum((0, 1))


def test_it_is_worth_nothing():
    x, y = torch.randn(2, 100, 3), torch.randn(2, 100, 2)
    assert pulling(x, y + x[..., :2], 2.0) == 0


def test_where_nothing_is_shared_each_direction_is_led_to_the_one_it_faces():
    x, y = torch.randn(2, 40_000, 3), torch.randn(2, 40_000, 3)
    torch.testing.assert_close(slope(x, y, y, weight=2.0), torch.full((3,), 2 * PAIRING), atol=0.05, rtol=0)
    other = slope(x, y, y.roll(1, dims=2), weight=2.0)
    torch.testing.assert_close(other, torch.zeros(3), atol=0.05, rtol=0)


@pytest.mark.parametrize("rho", [0.2, 0.5])
def test_it_is_as_steep_as_half_the_sum_of_squared_correlations(rho):
    y, noise = torch.randn(1, 40_000, 2), torch.randn(1, 40_000, 2)
    x = rho * y + math.sqrt(1 - rho**2) * noise
    # along the path that keeps the variance of x: d/drho of rho^2 / 2 for each pair; nearly nothing is idle
    found = slope(x, y, y - rho / math.sqrt(1 - rho**2) * noise)
    torch.testing.assert_close(found, torch.full((2,), rho), atol=0.02, rtol=0.03)


@pytest.mark.parametrize(("dx", "dy"), [(4, 4), (6, 3), (2, 5)])
def test_idle_directions_weigh_as_much_as_they_are(dx, dy):
    cross = torch.zeros(1, dx, dy, dtype=torch.float64)
    cross[0, 0, 0] = 0.9
    torch.testing.assert_close(
        _idle_pairing(cross, 10_000).square().sum(),
        torch.tensor(min(dx, dy) - 1.0, dtype=torch.float64),
        atol=1e-3,
        rtol=0,
    )


def test_sides_of_different_width_and_constant_features_give_finite_gradients():
    x, y = torch.randn(1, 50, 4), torch.randn(1, 50, 2)
    x[..., 1] = 3.0
    x.requires_grad_(), y.requires_grad_()
    gx, gy = torch.autograd.grad(pulling(x, y, 1.0), (x, y))
    assert gx.isfinite().all()
    assert gy.isfinite().all()
    assert gy.abs().amax() > 0


@pytest.mark.parametrize("pull", [-1.0, float("inf"), float("nan")])
def test_a_pull_that_cannot_be_is_refused(pull):
    with pytest.raises(ValueError, match="pull"):
        MISTCriterion(pull=pull)


def test_minimising_knows_no_pull():
    x, y = torch.randn(64, 3, requires_grad=True), torch.randn(64, 3)
    gradients = [torch.autograd.grad(MISTCriterion(objective="minimize", pull=pull)(x, y), x)[0] for pull in (0.0, 1.0)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_a_dead_pair_comes_to_life():
    """Two linear codes of Gaussian views; the second coordinates start on free noise, where nothing has a slope."""
    rho = torch.tensor([0.8, 0.8, 0.0, 0.0])
    first, second = nn.Linear(4, 2, bias=False), nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.eye(4)[[0, 2]])
        second.weight.copy_(torch.eye(4)[[0, 3]])
    criterion = MISTCriterion()
    optimizer = torch.optim.Adam([*first.parameters(), *second.parameters()], lr=0.03)
    for _ in range(400):  # 240 are enough for 33 of 34 seeds
        x = torch.randn(256, 4)
        y = rho * x + (1 - rho**2).sqrt() * torch.randn(256, 4)
        optimizer.zero_grad()
        criterion(first(x), second(y)).backward()
        optimizer.step()
    a, b = first.weight.detach().double(), second.weight.detach().double()
    cross = (a * rho.double()) @ b.T
    joint = torch.cat([torch.cat([a @ a.T, cross], 1), torch.cat([cross.T, b @ b.T], 1)])
    assert gaussian_mi(joint[None], 2).item() > 0.9 * canonical_mi(rho[:2]).item()


def test_a_constant_feature_is_left_alone():
    x, y = torch.randn(2, 128, 3)
    x[:, 1] = 0.3
    x.requires_grad_()
    pulling(x[None], y[None], 2.0).backward()
    assert x.grad is not None
    assert (x.grad[:, 1] == 0).all()
    assert x.grad[:, 0].norm() > 0
