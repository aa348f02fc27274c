"""Sources: found behind a rotation, faced by what depends on them, and where they are whatever a side went through."""

import pytest
import torch

from mist_loss.meta.maps import random_linear, random_rotation
from mist_loss.model.frontend import align, gaussianize, standardize
from mist_loss.model.independence import GAUSSIAN, components, contrast
from mist_loss.model.sources import LEADING, facing_sources
from mist_loss.model.statistics import SOURCE, gaussian_terms, summarize


def found(x, y, pairs=LEADING):
    return facing_sources(standardize(x), standardize(y), pairs)


def bent(n=1000, d=6, sets=2):
    """Normal x (sets, n, d), and a y that depends on it feature by feature, far from Gaussian."""
    x = torch.randn(sets, n, d)
    return x, x.exp() + 0.3 * torch.randn_like(x)


@pytest.mark.parametrize("swapped", [False, True])
def test_each_source_faces_the_direction_that_made_it(swapped):
    torch.manual_seed(0)
    x, y = bent()
    turned = [side @ random_rotation(2, 6, side.device) for side in (x, y)]
    u, v, rho = found(*(reversed(turned) if swapped else turned))
    u = v if swapped else u
    there = torch.nn.functional.normalize(x - x.mean(1, keepdim=True), dim=1)
    overlap = (torch.nn.functional.normalize(u, dim=1).mT @ there).abs()
    assert overlap.amax(1).min() > 0.95
    assert torch.equal(overlap.argmax(1).sort().values, torch.arange(6).expand(2, 6))
    assert (rho > 0.8).all()


def test_bent_sides_behind_rotations_share_what_they_shared_before():
    """Bounded and heavy-tailed features: once they are mixed, no map of single features mends it."""
    torch.manual_seed(0)
    s = torch.randn(4, 2000, 6)
    t = 0.6 * s + 0.8 * torch.randn_like(s)
    x, y = s.tanh() @ random_rotation(4, 6, s.device), t**3 @ random_rotation(4, 6, s.device)

    def shared(rho):
        return gaussian_terms(rho, (1.0,)).sum((1, 2)).mean()

    true = shared(torch.full((1, 6), 0.6))
    assert shared(align(*(gaussianize(standardize(side)) for side in (x, y))).rho) < 0.7 * true
    assert shared(found(x, y)[2]) > 0.8 * true


def test_sources_stay_where_they_are_behind_invertible_maps():
    torch.manual_seed(0)
    x, y = torch.rand(2, 1000, 5), torch.rand(2, 1000, 5)
    y = y + x
    here = found(x, y)
    there = found(*(3 + side @ random_linear(2, 5, side.device, spread=0.5) for side in (x, y)))
    torch.testing.assert_close(there[2], here[2], atol=0.02, rtol=0)


def test_sides_may_be_exchanged_and_rows_permuted():
    torch.manual_seed(0)
    x, y = bent(300, 3)
    (u, v, rho), (other_v, other_u, other_rho) = found(x, y), found(y, x)
    torch.testing.assert_close((u, v, rho), (other_u, other_v, other_rho), atol=1e-4, rtol=1e-4)
    order = torch.randperm(300)
    torch.testing.assert_close(found(x[:, order], y[:, order])[2], rho, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("dx", "dy", "pairs", "k"), [(1, 4, 16, 1), (3, 2, 1, 1), (40, 20, 16, 16), (20, 30, 99, 16)])
def test_shapes_order_and_sign(dx, dy, pairs, k):
    torch.manual_seed(0)
    x, y = torch.randn(2, 200, dx), torch.randn(2, 200, dy).exp()
    u, v, rho = found(x, y, pairs)
    assert u.shape == v.shape == (2, 200, k)
    torch.testing.assert_close((u * v).mean(1), rho, atol=1e-5, rtol=1e-5)
    assert torch.equal(rho.sort(dim=1, descending=True).values, rho)
    assert ((u**3 + v**3).sum(1) >= -1e-3).all()


@pytest.mark.parametrize("side", [torch.zeros(1, 20, 3), torch.eye(20)[None, :, :3], torch.full((1, 20, 3), 1e30)])
def test_constant_and_rare_columns_are_no_trouble(side):
    torch.manual_seed(0)
    u, v, rho = found(side, torch.randn(1, 20, 3))
    assert all(t.isfinite().all() for t in (u, v, rho))


def test_nothing_carries_gradients_and_a_far_row_decides_nothing():
    torch.manual_seed(0)
    x, y = bent(500, 3)
    x, y = x.requires_grad_(), y.requires_grad_()
    assert not any(t.requires_grad for t in found(x, y))
    away = y.detach().clone()
    away[:, 0] = 1e3
    torch.testing.assert_close(found(x, away)[2], found(x, y)[2], atol=0.05, rtol=0)


def test_contrast_is_zero_for_gaussians_and_sees_one_sided_sources_by_its_odd_part():
    torch.manual_seed(0)
    t = torch.randn(1, 400_000, 1)
    assert contrast(t).item() == pytest.approx(0, abs=3e-3)
    assert torch.log(torch.cosh(t)).mean().item() == pytest.approx(GAUSSIAN, abs=3e-3)
    hinge = t.clamp_min(0) + 0.3 * torch.randn_like(t)
    hinge = (hinge - hinge.mean()) / hinge.std()
    torch.testing.assert_close(contrast(hinge), contrast(-hinge))
    assert (contrast(hinge, 0.5) - contrast(-hinge, 0.5)).abs() > 3 * contrast(hinge).abs()


def test_one_sided_sources_are_found_by_the_odd_part():
    torch.manual_seed(0)
    t = torch.randn(1, 1000, 8).clamp_min(0) + 0.3 * torch.randn(1, 1000, 8)
    t = (t - t.mean(1, keepdim=True)) / t.std(1, keepdim=True)
    white = t @ random_rotation(1, 8, t.device)

    def recovered(skew):
        return ((white @ components(white, 10, skew)).mT @ t / 1000).abs().amax(1).mean()

    assert recovered(0.5) > 0.95 > recovered(0.0)


def test_tokens_come_beside_the_others():
    torch.manual_seed(0)
    x, y = bent(100, 3)
    without = summarize(x, y, 4096, 0, 0, 0, 0, 0, False, False, False, False).tokens
    tokens = summarize(x, y, 4096, 0, 0, 0, 0, 2, False, False, False, False).tokens
    assert tokens.shape[1] == without.shape[1] + 2
    mine = (tokens[..., -3:] == torch.tensor(SOURCE)).all(-1)
    assert mine.sum(1).tolist() == [2, 2]
    torch.testing.assert_close(tokens[mine.logical_not()].reshape(without.shape), without)
