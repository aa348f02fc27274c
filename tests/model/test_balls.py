"""Balls of near rows: the estimate where it is known to be right, ties, and what leaves it alone."""

import math

import pytest
import torch

from mist_loss.model.balls import BALLS, CENTRES, MIDDLE, NEAR, NEIGHBOURS, TIED, ball_summary, centres, neighbours
from mist_loss.model.frontend import align, gaussianize, standardize


def summary(x, y):
    return ball_summary(align(gaussianize(standardize(x)), gaussianize(standardize(y))))


@pytest.fixture
def x():
    return torch.randn(8, 1000, 1, generator=torch.Generator().manual_seed(0))


def test_few_dimensions_are_read(x):
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    cases = {0.0: noise, 0.8304: 0.9 * x + math.sqrt(0.19) * noise, 2.591: x**2 + 0.05 * noise}
    for truth, y in cases.items():
        assert summary(x, y)[:, MIDDLE].mean().item() == pytest.approx(truth, abs=0.1)


def test_labels_and_mixtures_of_labels_and_numbers_are_read(x):
    label = (x > 0).float()
    assert summary(label, label)[:, MIDDLE].mean().item() == pytest.approx(math.log(2), abs=0.03)
    assert summary(label, x)[:, MIDDLE].mean().item() == pytest.approx(math.log(2), abs=0.1)
    assert summary(label, label.roll(1, 1))[:, MIDDLE].mean().item() == pytest.approx(0, abs=0.03)


def test_small_balls_are_less_biased(x):
    """Where noise is little, larger balls reach beyond it."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    found = summary(x[:, :300], (x**2 + 0.02 * noise)[:, :300])[:, : len(NEIGHBOURS)].mean(0)
    assert (found.diff() < 0).all()
    assert found[0] < 3.5  # of 3.51 nats


def test_rotations_and_the_order_of_rows_and_sides_change_nothing():
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 300, 4, dtype=torch.float64)
    y = x**2 + y
    linear, turn = align(x, y), torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    expected, order = ball_summary(linear), torch.randperm(300)
    torch.testing.assert_close(ball_summary(align(x @ turn, y)), expected)
    torch.testing.assert_close(ball_summary(align(x[:, order], y[:, order])), expected)
    torch.testing.assert_close(ball_summary(align(y, x)), expected)


def test_ties_survive_rounding(x):
    """Levels that rounding has moved count as equal."""
    levels = torch.cat([x.round(), x.roll(3, 1).round()], dim=2)[:, :CENTRES]
    linear = align(levels, levels)
    moved_x, moved_y = (
        side + 3e-7 * torch.randn(side.shape, generator=torch.Generator().manual_seed(1)) for side in linear[3:5]
    )
    found = ball_summary(linear._replace(x=moved_x, y=moved_y))
    torch.testing.assert_close(found, ball_summary(linear), atol=1e-3, rtol=0)


@pytest.mark.parametrize("d", [1, 3, 20])
def test_counts_are_those_of_distances_one_by_one(d):
    """Also next to rows that come again, and of numbers that lie closer than float32 multiplies."""
    generator = torch.Generator().manual_seed(0)
    which = torch.randint(3000, (2, 4000), generator=generator)
    x, y = (10 * torch.randn(3000, k, generator=generator)[which] for k in (d, 1))
    here = centres(x, y)
    apart = [
        torch.cdist(
            side.take_along_dim(here[..., None], 1).double(),
            side.double(),
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        for side in (x, y)
    ]
    far = torch.maximum(*apart)
    found = neighbours(x, y)
    for i, k in enumerate(NEIGHBOURS):
        radius = far.kthvalue(k + 1, dim=2, keepdim=True).values * (1 + NEAR) + TIED
        torch.testing.assert_close(found.radius[i].double(), radius, atol=1e-6, rtol=1e-6)
        for counts, distances in zip(found[1:], (far, *apart), strict=True):
            inside = (distances <= radius).sum(2) - 1
            wrong = (counts[i] - torch.digamma(inside.float())).abs() > 1e-4
            assert wrong.float().mean() < 0.01  # a distance next to the radius may be rounded to either side of it


@pytest.mark.parametrize(("rows", "dx", "dy"), [(4, 1, 1), (5, 3, 1), (10, 40, 30), (3000, 2, 64)])
def test_any_shape_is_finite(rows, dx, dy):
    torch.manual_seed(0)
    x, y = torch.randn(2, rows, dx), torch.randn(2, rows, dy)
    for side in (x, torch.zeros_like(x), x[:, :1].expand_as(x)):
        found = summary(side, y)
        assert found.shape == (2, BALLS)
        assert found.isfinite().all()


def test_centres_are_spread_over_lengths_whatever_the_order():
    torch.manual_seed(0)
    x, y = torch.randn(2, 1, 2000, 2)
    order = torch.randperm(2000)
    here, there = centres(x, y), centres(x[:, order], y[:, order])
    assert here.shape == (1, CENTRES)
    assert sorted(here[0].tolist()) == sorted(order[there[0]].tolist())
