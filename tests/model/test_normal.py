"""The Gaussian estimate without its bias, and residuals that are normal, flat or heavy."""

import math

import pytest
import torch

from mist_loss.model.frontend import align
from mist_loss.model.normal import NORMAL, excess, normal_summary


def summary(x, y):
    return normal_summary(align(x, y))


@pytest.fixture
def x():
    return torch.randn(200, 60, 4, generator=torch.Generator().manual_seed(0))


def noise(x):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("rho", "dims"), [(0.0, 4), (0.8, 4), (0.8, 2)])
def test_of_normal_sides_the_estimate_has_no_bias(x, rho, dims):
    y = rho * x + math.sqrt(1 - rho**2) * noise(x)
    found = summary(x, y[..., :dims])
    truth = -0.5 * dims * math.log(1 - rho**2)
    assert found.shape == (200, NORMAL)
    error = found[:, 0].std().item() / math.sqrt(200)
    slack = 3 * error + 0.002 * truth  # a cap of the correlations takes some
    assert found[:, 0].mean().item() == pytest.approx(truth, abs=slack)
    assert excess(60, 4, dims) > 1.5 * slack  # so that a bias would be seen


def test_where_rows_are_no_more_than_features_it_is_finite():
    assert summary(*torch.randn(2, 3, 10, 20)).isfinite().all()
    assert summary(torch.zeros(2, 10, 3), torch.randn(2, 10, 2)).isfinite().all()


def test_residuals_are_told_apart_however_equally_strong_pairs_are_turned(x):
    x = x.reshape(4, 3000, 4)
    kinds = {"normal": noise(x), "flat": math.sqrt(3) * (2 * torch.special.ndtr(noise(x)) - 1), "heavy": noise(x) ** 3}
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(2))).Q
    found = {}
    for name, left in kinds.items():
        found[name] = summary(x, x + 0.05 * left / left.std())[:, 1]
        turned = summary(x @ turn, (x + 0.05 * left / left.std()) @ turn)[:, 1]
        torch.testing.assert_close(turned, found[name], atol=0.01, rtol=0)
    assert found["normal"].abs().max() < 0.2
    assert (found["flat"] - 2 * math.log(0.4)).abs().max() < 0.2  # the kurtosis of uniform noise is 1.8, of normal 3
    assert (found["heavy"] > 1).all()


def test_exchanging_the_sides_changes_nothing(x):
    y = x[..., :2] + noise(x)[..., :2] ** 2
    torch.testing.assert_close(summary(x, y), summary(y, x))
