"""Rows of unit length: closed forms in two and three dimensions, and maps that lose nothing."""

import math

import pytest
import torch

from mist_loss.meta import spheres
from mist_loss.meta.broad import BROADER, _angular


@pytest.mark.parametrize("kappa", [0.0, 0.5, 4.0, 40.0])
def test_closed_form_in_two_and_three_dimensions(kappa):
    k = torch.tensor([kappa], dtype=torch.float64)
    _, _, circle = spheres.angles(k, 2)
    i0, i1 = torch.special.i0e(k), torch.special.i1e(k)
    torch.testing.assert_close(circle, k * i1 / i0 - i0.log() - k, atol=1e-4, rtol=0)
    _, _, sphere = spheres.angles(k, 3)
    if kappa:
        exact = kappa / math.tanh(kappa) - 1 - math.log(math.sinh(kappa) / kappa)
        assert sphere.item() == pytest.approx(exact, abs=1e-4)
    else:
        assert sphere.item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("d", "kappa"), [(2, 3.0), (3, 3.0), (16, 60.0)])
def test_samples_lie_on_the_sphere_at_the_angles_asked_for(d, kappa):
    torch.manual_seed(0)
    k = torch.tensor([kappa])
    x, y, mi = spheres.von_mises_fisher(k, 40_000, d)
    for side in (x, y):
        torch.testing.assert_close(side.norm(dim=2), torch.ones(1, 40_000))
        assert side.mean(1).abs().max() < 0.03
    theta, chance, exact = spheres.angles(k, d)
    assert (x * y).sum(2).mean().item() == pytest.approx((chance * theta.cos()).sum().item(), abs=0.01)
    torch.testing.assert_close(mi, exact.float())


def test_many_dimensions_by_rows():
    """kappa E[cos] of drawn rows, less log Z by the mean over even directions."""
    torch.manual_seed(0)
    kappa, d = 6.0, 16
    x, y, mi = spheres.von_mises_fisher(torch.tensor([kappa]), 200_000, d)
    cosine = spheres.directions(1, 1_000_000, d, torch.device("cpu"))[0, :, 0]
    log_z = (kappa * cosine).exp().mean().log()
    assert mi.item() == pytest.approx((kappa * (x * y).sum(2).mean() - log_z).item(), abs=0.02)


def test_stereographic_projection_can_be_undone():
    torch.manual_seed(0)
    t = 3 * torch.randn(2, 500, 4) + 1
    lifted = spheres.onto_sphere(t, torch.tensor([0.5, 2.0]))
    assert lifted.shape == (2, 500, 5)
    torch.testing.assert_close(lifted.norm(dim=2), torch.ones(2, 500))
    back = lifted[..., :4] / (1 - lifted[..., 4:])
    centred = t - t.mean(1, keepdim=True)
    back, centred = (s / s.square().mean((1, 2), keepdim=True).sqrt() for s in (back, centred))
    torch.testing.assert_close(back, centred, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        (lifted[..., :4] / (1 - lifted[..., 4:])).square().sum(2).mean(1).sqrt(),
        torch.tensor([0.5, 2.0]),
        rtol=1e-3,
        atol=0,
    )


def test_free_directions_beside_leave_the_first_ones_readable():
    torch.manual_seed(0)
    t = spheres.directions(1, 1000, 3, torch.device("cpu"))
    wide = spheres.beside(t, 7)
    torch.testing.assert_close(wide.norm(dim=2), torch.ones(1, 1000))
    torch.testing.assert_close(spheres.unit(wide[..., :3]), t, atol=1e-4, rtol=0)
    assert wide[..., :3].norm(dim=2).std() > 0.05
    assert spheres.beside(t, 3) is t


def test_stretching_stays_on_the_sphere_and_can_be_undone(monkeypatch):
    torch.manual_seed(0)
    t = spheres.directions(4, 1000, 3, torch.device("cpu"))
    used = []
    draw = spheres.random_linear

    def kept(*of):
        used.append(draw(*of))
        return used[-1]

    monkeypatch.setattr(spheres, "random_linear", kept)
    moved = spheres.stretched(t)
    torch.testing.assert_close(moved.norm(dim=2), torch.ones(4, 1000))
    torch.testing.assert_close(spheres.unit(moved @ used[0].inverse()), t, atol=1e-4, rtol=0)
    assert (moved - t).abs().max() > 0.1


def test_circles_are_shown_as_points_or_as_angles_that_can_be_turned_back():
    torch.manual_seed(0)
    seen = set()
    for _ in range(60):
        t = spheres.directions(6, 400, 2, torch.device("cpu")).unflatten(0, (2, 3))
        columns = spheres.shown(t, 5)
        points = columns.shape[2] - 3
        seen.add(points)
        assert columns.shape[:2] == (2, 400)
        cos, sin, angle = columns.transpose(1, 2).split([points, points, 3 - points], dim=1)
        assert 0 <= angle.min() <= angle.max() < 2 * math.pi
        back = torch.cat([torch.atan2(sin, cos), angle], dim=1)
        turned = back - torch.atan2(t[..., 1], t[..., 0])  # the same for all rows of a circle
        assert (turned.cos().mean(2).square() + turned.sin().mean(2).square()).min() > 0.9999
    assert seen == {0, 1, 2}


def test_angles_share_the_nats_that_a_table_of_their_ranks_shows():
    torch.manual_seed(0)
    n, cells, checked = 40_000, 24, 0
    for _ in range(12):
        x, y, mi = _angular(1, n, 1, 1, torch.device("cpu"))
        code_x, code_y = (t.flatten().argsort().argsort() * cells // n for t in (x, y))
        table = torch.bincount(code_x * cells + code_y, minlength=cells**2).double() / n
        entropy = -(table * table.clamp_min(1e-12).log()).sum()
        seen = 2 * math.log(cells) - entropy.item()  # too high by chance, too low by the width of the cells
        checked += mi.item() < 1.2
        assert mi.item() > 1.2 or seen == pytest.approx(mi.item(), abs=0.05)
        assert mi.item() <= 1.2 or seen > 1
    assert checked > 3


@pytest.mark.parametrize("family", ["strong", "functional"])
def test_few_rows_are_not_asked_for_what_they_cannot_show(family):
    torch.manual_seed(0)
    few = [float(BROADER[family][1](4, 10, 30, 30, torch.device("cpu")).mi.max()) for _ in range(100)]
    many = [float(BROADER[family][1](4, 1000, 30, 30, torch.device("cpu")).mi.max()) for _ in range(20)]
    assert max(few) < 15 < max(many)
