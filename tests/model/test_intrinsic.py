"""Balls before whitening: how many dimensions a side has where one looks closely, and what leaves that alone."""

import math

import pytest
import torch

from mist_loss.model.balls import BALLS, NEIGHBOURS, ball_summary
from mist_loss.model.frontend import align, gaussianize, standardize
from mist_loss.model.intrinsic import INTRINSIC, LEAST, intrinsic_summary

SIDES, APART, PAIR = range(BALLS, INTRINSIC)


def scores(x):
    return gaussianize(standardize(x))


def summary(x, y):
    return intrinsic_summary(scores(x), scores(y))


@pytest.fixture
def codes():
    """Four pairs of 0.8 (2.04 nats), and the same behind one layer of 64 rectifiers a side."""
    torch.manual_seed(0)
    first = torch.randn(6, 1500, 4)
    second = 0.8 * first + 0.6 * torch.randn_like(first)
    return first, second, *(torch.relu(t @ torch.randn(6, 4, 64) + torch.randn(6, 1, 64)) for t in (first, second))


def test_codes_have_the_dimensions_of_what_is_behind_them(codes):
    first, second, x, y = codes
    plain, coded = (summary(*sides).mean(0) for sides in ((first, second), (x, y)))
    assert plain[SIDES].exp().item() == pytest.approx(4, rel=0.15)
    assert coded[SIDES].exp().item() == pytest.approx(4, rel=0.4)
    assert plain[SIDES] < plain[PAIR] < plain[SIDES] + math.log(2)  # dependent sides have fewer together
    assert summary(torch.randn(6, 1500, 64), y)[:, APART].mean() > 1


def test_near_rows_of_codes_say_what_those_behind_them_do(codes):
    """To a tenth, as they do not in the whitened sides, whose leading directions are bends as well."""
    first, second, x, y = codes
    plain, coded = (summary(*sides)[:, : len(NEIGHBOURS)].mean(0) for sides in ((first, second), (x, y)))
    torch.testing.assert_close(coded, plain, atol=0, rtol=0.15)
    continued = 2 * coded[0] - coded[1]
    assert continued.item() == pytest.approx(2.04, abs=0.25)


def test_one_feature_a_side_is_as_it_is_when_whitened():
    x = torch.randn(4, 300, 1, generator=torch.Generator().manual_seed(0))
    y = x + 0.5 * torch.randn(4, 300, 1, generator=torch.Generator().manual_seed(1))
    whitened = ball_summary(align(scores(x), scores(y)))
    torch.testing.assert_close(summary(x, y)[:, :BALLS], whitened, atol=0.02, rtol=0)


def test_levels_have_no_dimension():
    torch.manual_seed(0)
    x, y = torch.randint(3, (2, 2, 400, 2)).float()
    assert summary(x, y)[:, SIDES].tolist() == pytest.approx([math.log(LEAST)] * 2)


def test_the_order_of_rows_features_and_sides_and_monotone_maps_change_nothing():
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 300, 4)
    y = x**2 + y
    expected, order = summary(x, y), torch.randperm(300)
    for other in (
        summary(x[:, order], y[:, order]),
        summary(y, x),
        summary(x[..., torch.randperm(4)], y[..., torch.randperm(4)]),
    ):
        torch.testing.assert_close(other, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(summary(torch.asinh(x), 5 - 3 * y), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(("rows", "dx", "dy"), [(2, 1, 1), (4, 1, 1), (5, 3, 1), (10, 40, 30), (3000, 2, 64)])
def test_any_shape_is_finite(rows, dx, dy):
    torch.manual_seed(0)
    x, y = torch.randn(2, rows, dx), torch.randn(2, rows, dy)
    for side in (x, torch.zeros_like(x), x[:, :1].expand_as(x)):
        found = summary(side, y)
        assert found.shape == (2, INTRINSIC)
        assert found.isfinite().all()
