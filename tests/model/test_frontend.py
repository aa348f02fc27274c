"""The front end: normal scores, whitening, alignment, and their gradients."""

import pytest
import torch

from mist_loss.model.frontend import align, gaussianize, shrinkage, standardize, whiten


def test_gaussianize_gives_normal_scores_whatever_the_marginal():
    torch.manual_seed(0)
    z = torch.randn(1, 2000, 1)
    for t in (z, torch.exp(2 * z), torch.special.ndtr(z)):
        scores = gaussianize(standardize(t))
        assert abs(scores.mean()) < 0.01
        assert scores.std().item() == pytest.approx(1, abs=0.02)
        assert (scores - gaussianize(standardize(z))).abs().max() < 0.06


def test_gaussianize_keeps_order_and_treats_ties_symmetrically():
    torch.manual_seed(0)
    x = torch.randn(1, 200, 1)
    order = x[0, :, 0].argsort()
    assert (gaussianize(x)[0, order, 0].diff() >= 0).all()
    bits = (torch.rand(1, 200, 1) < 0.3).float()
    torch.testing.assert_close(gaussianize(bits), -gaussianize(1 - bits), atol=1e-5, rtol=0)
    assert len(gaussianize(bits).unique()) == 2
    assert gaussianize(torch.full((1, 50, 1), 0.1)).abs().max() < 1e-5


def test_gradient_of_gaussianize_is_exact():
    torch.manual_seed(0)
    x = torch.randn(2, 40, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: gaussianize(standardize(t)), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [20, 256, 513])
def test_knots_that_nothing_ties_are_read_once_and_as_where_nobody_may_look(monkeypatch, dtype, n):
    rows = torch.randn(2, n, 3).to(dtype).float()  # half precision ties rows, some of them on a knot
    weights, found = torch.randn(2, n, 3), []
    for look in (True, False):
        monkeypatch.setattr("mist_loss.model.frontend.may_look", lambda x, look=look: look)
        x = rows.clone().requires_grad_()
        z = gaussianize(x)
        (z * weights).sum().backward()
        found.append((z, x.grad))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value", [0.1, 1e12, 0.0])
def test_constant_features_are_zero_with_a_zero_gradient(value):
    x = torch.full((1, 30, 2), value, requires_grad=True)
    z = gaussianize(standardize(x))
    z.square().sum().backward()
    assert z.abs().max() < 1e-5
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e30])
def test_any_scale(scale):
    torch.manual_seed(0)
    x = torch.randn(1, 50, 3)
    torch.testing.assert_close(standardize(x * scale), standardize(x), atol=1e-4, rtol=1e-4)


def test_half_precision_is_raised():
    assert standardize(torch.randn(1, 8, 2, dtype=torch.bfloat16)).dtype == torch.float32


def test_whiten_gives_unit_covariance_of_an_ill_conditioned_side():
    torch.manual_seed(0)
    mixing = torch.randn(4, 4) @ torch.diag(torch.tensor([1.0, 0.3, 0.1, 0.03])) @ torch.randn(4, 4)
    w = whiten(torch.randn(1, 4000, 4) @ mixing)
    torch.testing.assert_close(w.transpose(1, 2) @ w / 4000, torch.eye(4, dtype=torch.float64)[None], atol=0.01, rtol=0)


def test_shrinkage_vanishes_where_rows_are_plenty():
    assert shrinkage(10_000, 4) < 2e-6
    assert shrinkage(10, 40) > 0.99


def test_align_finds_the_canonical_correlations():
    torch.manual_seed(0)
    rho = torch.tensor([0.9, 0.5, 0.0])
    x = torch.randn(1, 20_000, 3)
    y = rho * x + (1 - rho**2).sqrt() * torch.randn(1, 20_000, 3)
    c = align(x @ torch.randn(3, 3), y @ torch.randn(3, 3))
    torch.testing.assert_close(c.rho[0], rho, atol=0.03, rtol=0)
    torch.testing.assert_close((c.u * c.v).mean(1), c.rho)


def test_gradient_of_canonical_correlations_is_exact():
    torch.manual_seed(0)
    x, y = (torch.randn(2, 30, d, dtype=torch.float64, requires_grad=True) for d in (3, 2))
    assert torch.autograd.gradcheck(lambda a, b: align(a, b).rho, (x, y))
