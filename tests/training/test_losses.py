"""The losses are minimised by what they should be."""

import pytest
import torch

from mist_loss.model import quantiles
from mist_loss.training.losses import pinball, relative_loss, spread


def test_pinball_by_hand():
    level = quantiles.knot_levels(torch.zeros(1, dtype=torch.float64))
    knots = torch.full((1, quantiles.KNOTS), 2.0, dtype=torch.float64)
    above = pinball(knots, torch.tensor([3.0], dtype=torch.float64)).item()
    assert above == pytest.approx(level.mean().item())
    below = pinball(knots, torch.tensor([1.5], dtype=torch.float64)).item()
    assert below == pytest.approx(0.5 * (1 - level).mean().item())


def test_spread_of_a_normal():
    knots = 3 + 0.7 * quantiles.knot_scores(torch.zeros(1))[None]
    assert spread(knots).item() == pytest.approx(0.7, rel=1e-5)


@pytest.mark.parametrize("loss", [pinball, relative_loss])
def test_the_best_knots_are_the_quantiles_of_the_target(loss):
    torch.manual_seed(0)
    target = 5 + 0.8 * torch.randn(4000)
    knots = (5.5 + quantiles.knot_scores(torch.zeros(1))).clone().requires_grad_()
    optimizer = torch.optim.Adam([knots], lr=0.02)
    for _ in range(500):
        optimizer.zero_grad()
        loss(knots.expand(len(target), -1), target).mean().backward()
        optimizer.step()
    best = torch.quantile(target, quantiles.knot_levels(torch.zeros(1)))
    assert (knots.detach() - best).abs().max() < 0.08


def test_between_bounds_nothing_is_asked():
    knots = (2.0 + 0.1 * quantiles.knot_scores(torch.zeros(1)))[None].requires_grad_()
    low, high = torch.tensor([1.0]), torch.tensor([3.0])
    (gradient,) = torch.autograd.grad(relative_loss(knots, low, high).sum(), knots)
    assert relative_loss(knots, low, high).item() == 0
    assert (gradient == 0).all()
    above = relative_loss(knots, low, torch.tensor([1.5]))
    (gradient,) = torch.autograd.grad(above.sum(), knots)
    assert (gradient > 0).all()
    torch.testing.assert_close(relative_loss(knots, low, low), relative_loss(knots, low))
