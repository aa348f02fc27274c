"""Differences of near rows: they show what pairs share within clusters, whatever the centres are."""

import pytest
import torch

from mist_loss.meta.discrete import clustered_normal
from mist_loss.meta.maps import random_rotation
from mist_loss.model.frontend import align, gaussianize, standardize
from mist_loss.model.neighbours import ANCHORS, NEAREST, anchors, near, neighbours, take


def canonical(x, y):
    return align(gaussianize(standardize(x)), gaussianize(standardize(y)))


def clusters(within, spread, n=800, d=6, k=5):
    """The canonical frame of k clusters on both sides, rows of a cluster correlated by ``within``."""
    x, y = (spread * torch.randn(1, k, d) for _ in range(2))
    one = torch.ones(1, k)
    return canonical(*clustered_normal(one / k, x, y, one, one, torch.full((1, d), within), n)[:2])


def correlation(frame):
    """Root of the mean square of the canonical correlations."""
    return float(frame.rho.square().mean().sqrt())


def test_correlations_within_clusters_are_seen_through_their_centres():
    torch.manual_seed(0)
    frames = [clusters(within, 4.0) for within in (0.0, 0.5, 0.9)]
    # the centres decide what all rows together show
    assert max(map(correlation, frames)) - min(map(correlation, frames)) < 0.15
    none, some, most = (correlation(near(frame, 6)) for frame in frames)
    assert none < 0.15 < 0.2 < some < most - 0.2


def test_without_dependence_near_rows_show_none():
    torch.manual_seed(0)
    assert correlation(near(clusters(0.0, 0.0), 6)) < 0.15


@pytest.mark.parametrize("n", [2, 3, 10, 200])
def test_neighbours_are_the_nearest_rows_and_never_the_row_itself(n):
    torch.manual_seed(0)
    rows = torch.randn(3, n, 4, dtype=torch.float64)
    here = torch.stack([torch.randperm(n) for _ in range(3)])
    found = neighbours(rows, here)
    distance = torch.cdist(take(rows, here), rows)
    distance.scatter_(2, here[..., None], torch.inf)
    known = min(n - 1, NEAREST)
    expected = distance.topk(known, dim=2, largest=False).indices
    assert torch.equal(found[..., :known], expected)
    assert torch.isfinite(near(canonical(rows, rows + torch.randn_like(rows)), 4).rho).all()


@pytest.mark.parametrize("n", [300, ANCHORS + 500])
def test_the_order_of_the_rows_and_the_frames_of_the_sides_do_not_matter(n):
    torch.manual_seed(0)
    x = torch.randn(1, n, 3, dtype=torch.float64)
    y = 0.7 * x + 0.7 * torch.randn_like(x)
    order = torch.randperm(n)
    turn = random_rotation(1, 3, x.device).double()
    before, after = near(align(x, y), 3), near(align((x @ turn)[:, order], 2 * y[:, order]), 3)
    assert before.u.shape == (1, NEAREST * min(n, ANCHORS), 3)
    torch.testing.assert_close(before.rho, after.rho)


def test_anchors_are_of_every_length():
    torch.manual_seed(0)
    rows = torch.randn(2, 5000, 3)
    length = take(rows, anchors(rows)).norm(dim=2)
    levels = torch.tensor([0.02, 0.25, 0.5, 0.75, 0.98])
    torch.testing.assert_close(
        length.quantile(levels, dim=1), rows.norm(dim=2).quantile(levels, dim=1), atol=0.05, rtol=0
    )


def test_sides_may_be_exchanged():
    torch.manual_seed(0)
    frame = clusters(0.5, 1.0)
    one, other = near(frame, 4), near(frame._replace(u=frame.v, v=frame.u), 4)
    torch.testing.assert_close((one.rho, one.u.abs()), (other.rho, other.v.abs()), atol=1e-4, rtol=1e-4)


def test_equal_rows_differ_by_nothing():
    bits = torch.randint(2, (1, 400, 2)).float()
    frame = near(canonical(bits, bits), 2)
    assert torch.isfinite(frame.rho).all()
    assert frame.rho.abs().max() < 1e-3


def test_no_gradient_passes():
    torch.manual_seed(0)
    x = torch.randn(1, 50, 3, requires_grad=True)
    assert not near(canonical(x, x.detach() + torch.randn(1, 50, 3)), 3).rho.requires_grad
