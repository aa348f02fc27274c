"""What the summaries see, and what they do not depend on."""

import pytest
import torch

from mist_loss.meta.families import modulated
from mist_loss.meta.maps import random_rotation
from mist_loss.model.frontend import align, gaussianize, standardize, whiten
from mist_loss.model.statistics import between, third_moments


def whitened(n=2000, dx=7, dy=5):
    """Rows that depend through lengths alone, mixed, so that no coordinate shows it by itself."""
    x, y, _ = modulated(torch.tensor([[0.8]]), torch.tensor([0.6]), n, dx, dy)
    x, y = x @ random_rotation(1, dx, x.device), y @ random_rotation(1, dy, y.device)
    return tuple(whiten(gaussianize(standardize(t))).float() for t in (x, y))


def test_products_find_the_direction_that_moves_where_they_spread():
    torch.manual_seed(0)
    x, y = whitened()
    nothing = between(x, y[:, torch.randperm(2000)]).rho[0, 0]
    assert align(x, y).rho[0, 0] < 0.2
    assert between(x, y).rho[0, 0] > 0.5
    assert max(nothing, between(y, x).rho[0, 0]) < 0.2


def test_third_moments_turn_with_their_side_and_not_with_the_other():
    torch.manual_seed(0)
    x, y = whitened()
    turn_x, turn_y = random_rotation(1, 7, x.device), random_rotation(1, 5, y.device)
    expected = turn_x.mT.double() @ third_moments(x, y) @ turn_x.double()
    torch.testing.assert_close(third_moments(x @ turn_x, y @ turn_y), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(between(x @ turn_x, y @ turn_y).rho, between(x, y).rho, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("n", [10, 400])  # by way of inner products of rows, and of the moments
def test_third_moments_as_they_are_defined(n):
    x, y = torch.randn(3, n, 7), torch.randn(3, n, 5)
    near = x / (x.square().mean(2, keepdim=True).sqrt() / 2).clamp_min(1)
    moments = torch.einsum("bnk,bni,bnj->bkij", y.double(), near.double(), near.double()) / n
    torch.testing.assert_close(third_moments(x, y), (moments @ moments.mT).sum(1), atol=1e-5, rtol=1e-4)


def test_third_moments_do_not_depend_on_the_chunk():
    torch.manual_seed(0)
    x, y = whitened()
    torch.testing.assert_close(third_moments(x, y, chunk=2), third_moments(x, y, chunk=64), atol=1e-5, rtol=1e-5)
