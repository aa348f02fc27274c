"""Independent components: found where there are any, and no frame made up where there is none."""

import pytest
import torch

from mist_loss.meta.families import canonical_normal
from mist_loss.meta.maps import random_rotation
from mist_loss.model.frontend import align, gaussianize, standardize
from mist_loss.model.independence import components, independent

SOURCES = 6


def hidden_bits(n=1500, noise=0.3):
    """Bits (1, n, SOURCES) that both sides show through noise, each side turned by a rotation of its own."""
    bits = torch.randint(2, (1, n, SOURCES)) * 2.0 - 1
    sides = [(bits + noise * torch.randn_like(bits)) @ random_rotation(1, SOURCES, bits.device) for _ in range(2)]
    return bits, align(*(gaussianize(standardize(side)) for side in sides))


def recovered(bits, coordinates):
    """Mean over bits of the largest correlation with a coordinate."""
    both = torch.cat([bits[0].T, coordinates[0].T])
    return torch.corrcoef(both)[:SOURCES, SOURCES:].abs().amax(1).mean()


def test_equally_strong_bits_are_parted_from_each_other():
    torch.manual_seed(0)
    bits, linear = hidden_bits()
    found = independent(linear, SOURCES)
    assert recovered(bits, linear.u + linear.v) < 0.8
    assert recovered(bits, found.u + found.v) > 0.95
    assert found.rho.min() > 0.8
    torch.testing.assert_close((found.u * found.v).mean(1), found.rho)
    assert torch.equal(found.rho.sort(descending=True).values, found.rho)


@pytest.mark.parametrize("pairs", [1, 3, 8])
def test_a_rotation_of_the_leading_pairs_keeps_them_white(pairs):
    torch.manual_seed(0)
    _, linear = hidden_bits()
    found = independent(linear, pairs)
    kept = min(pairs, SOURCES)
    assert found.u.shape[2] == found.rho.shape[1] == kept
    for turned, before in ((found.u, linear.u), (found.v, linear.v)):
        torch.testing.assert_close(turned[0].T @ turned[0], before[0, :, :kept].T @ before[0, :, :kept], atol=1, rtol=0)
    torch.testing.assert_close(found.rho.sum(), linear.rho[:, :kept].sum(), atol=1e-3, rtol=1e-3)


def test_sides_may_be_exchanged():
    torch.manual_seed(0)
    _, linear = hidden_bits()
    found, other = independent(linear, 4), independent(linear._replace(u=linear.v, v=linear.u), 4)
    torch.testing.assert_close((found.u, found.v, found.rho), (other.v, other.u, other.rho), atol=1e-5, rtol=1e-5)


def test_components_do_not_depend_on_the_frame_that_they_are_sought_from():
    torch.manual_seed(0)
    _, linear = hidden_bits()
    white = (linear.u + linear.v) / (2 + 2 * linear.rho).sqrt()[:, None]
    turned = white @ random_rotation(1, SOURCES, white.device)
    overlap = (white @ components(white))[0].T @ (turned @ components(turned))[0] / white.shape[1]
    torch.testing.assert_close(overlap.abs().amax(1), torch.ones(SOURCES), atol=0.02, rtol=0)


def test_rounding_does_not_turn_a_gaussian_sample():
    torch.manual_seed(0)
    x, y, _ = canonical_normal(torch.full((16, 8), 0.6), 500, 8, 8)
    linear = align(x, y)
    nudged = linear._replace(u=linear.u * (1 + 1e-6 * torch.randn_like(linear.u)))
    torch.testing.assert_close(independent(nudged, 8).u, independent(linear, 8).u, atol=5e-3, rtol=0)


def test_turned_pairs_carry_no_gradient():
    x = torch.randn(1, 40, 3, requires_grad=True)
    linear = align(x, x.detach() + torch.randn(1, 40, 3))
    assert linear.rho.requires_grad
    found = independent(linear, 3)
    assert not any(t.requires_grad for t in (found.u, found.v, found.rho))
