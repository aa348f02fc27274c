"""Pools of encoders: what their codes share is known, exactly or within bounds."""

import math

import torch

from mist_loss.meta.families import canonical_normal
from mist_loss.meta.structures import canonical_mi, gaussian_mi
from mist_loss.model.network import MIST
from mist_loss.model.quantiles import KNOTS
from mist_loss.training import pools
from mist_loss.training.pools import Coupling, FlexiblePool, LinearPool, SamplePool, Trial, told_apart
from mist_loss.training.pretrain import resist

CPU = torch.device("cpu")
TRIAL = Trial(rows=64, dx=3, dy=5, views=7, lr=0.01, life=50, guided=False)


def pool(b=6, trial=TRIAL):
    torch.manual_seed(0)
    return LinearPool(trial, b, CPU)


def test_mutual_information_is_that_of_the_joint_covariance():
    encoders = pool()
    d = TRIAL.views
    for i in range(6):
        views = torch.eye(2 * d, dtype=torch.float64)
        views[:d, d:] = views[d:, :d] = torch.diag(encoders.rho[i].double())
        weights = torch.block_diag(encoders.to_x[i], encoders.to_y[i]).double()
        covariance = weights @ views @ weights.T
        scale = covariance.diagonal().rsqrt()
        expected = gaussian_mi((covariance * scale[:, None] * scale)[None], TRIAL.dx)
        if encoders.dof[i].isinf():
            torch.testing.assert_close(encoders.mutual_information()[i].double(), expected[0], atol=1e-5, rtol=1e-5)
        else:
            assert encoders.mutual_information()[i] > expected[0]


def test_unbent_codes_have_the_correlations_they_claim():
    encoders = pool(trial=TRIAL._replace(rows=200_000))
    x, y, mi, _ = encoders.draw()
    straight = (encoders.bend_x.bent == 0) & encoders.dof.isinf()
    assert straight.any()
    for i in straight.nonzero().flatten():
        correlation = torch.corrcoef(torch.cat([x[i], y[i]], 1).detach().double().T)
        torch.testing.assert_close(gaussian_mi(correlation[None], TRIAL.dx)[0].float(), mi[i], atol=0.01, rtol=0.01)


def test_encoders_start_anywhere_up_to_the_best_there_is():
    encoders = pool(64)
    best = canonical_mi(encoders.rho[:, : TRIAL.dx])
    gaussian = encoders.dof.isinf()
    share = (encoders.mutual_information() / best)[gaussian]
    assert share.max() <= 1 + 1e-5
    assert share.max() > 0.9
    assert share.min() < 0.5


def test_bends_can_be_undone():
    torch.manual_seed(0)
    bend = Coupling(torch.ones(2), 5)
    z = torch.randn(2, 50, 5)
    bent = bend(z)
    assert (bent - z).abs().max() > 0.1
    # undo the layers, last one first; forward exchanges the halves after each
    first, second = bent.split([2, 3], dim=-1)
    for inner, outer in zip(reversed(bend.inner), reversed(bend.outer), strict=True):
        first, changed = second, first
        log_scale, shift = (torch.tanh(first @ inner) @ outer).chunk(2, dim=-1)
        first, second = first, (changed - shift) * torch.exp(-torch.tanh(log_scale))
    torch.testing.assert_close(torch.cat([first, second], dim=-1), z)
    torch.testing.assert_close(Coupling(torch.zeros(2), 5)(z), z)


def test_a_step_moves_every_estimate_in_its_direction():
    torch.manual_seed(1)
    network = MIST().eval()
    encoders = pool(trial=TRIAL._replace(lr=1e-3))
    before = resist(network, encoders, encoders.draw()).detach()
    for _ in range(20):
        resist(network, encoders, encoders.draw())
    torch.manual_seed(2)
    after = resist(network, encoders, encoders.draw()).detach()
    moved = (after - before).mean(1) * encoders.sign
    assert moved.mean() > 0


def test_a_critic_certifies_no_more_than_there_is():
    torch.manual_seed(0)
    rho = torch.tensor([0.0, 0.5, 0.9])[:, None].expand(-1, 3)
    x, y, mi = canonical_normal(rho.repeat_interleave(8, 0), 1536, 4, 5)
    low = told_apart(x, y, 512)
    assert (low < mi + 0.02).all()
    assert (low > 0.85 * mi - 0.15).all()


def test_networks_know_bounds_of_what_their_codes_share():
    torch.manual_seed(0)
    encoders = FlexiblePool(TRIAL, 12, CPU)
    codes = encoders.draw()
    assert (codes.low <= codes.high).all()
    torch.testing.assert_close(codes.high, canonical_mi(encoders.rho).float())


def test_the_maps_that_bend_views_stay(monkeypatch):
    torch.manual_seed(0)
    encoders = FlexiblePool(TRIAL, 12, CPU)
    views = canonical_normal(encoders.rho, 20, TRIAL.views, TRIAL.views)
    monkeypatch.setattr(pools, "canonical_normal", lambda *_: views)
    first = encoders.encode(20)
    torch.testing.assert_close(encoders.encode(20), first)
    encoders.maps += 1
    changed = (encoders.encode(20)[0] - first[0]).abs().amax((1, 2)) > 1e-3
    assert torch.equal(changed, encoders.bent.flatten())
    assert changed.any()
    assert not changed.all()


def test_free_rows_share_at_most_what_they_show():
    torch.manual_seed(0)
    rows = SamplePool(TRIAL._replace(dy=3), 4, CPU)
    assert torch.equal(rows.draw().low, torch.zeros(4))
    torch.testing.assert_close(rows.draw().high, torch.full((4,), math.log(64)))
    with torch.no_grad():
        rows.y.copy_(rows.x @ torch.randn(4, 3, 3) + 0.02 * rows.y)
    assert (rows.draw().high > math.log(64)).all()


def test_free_rows_ascend():
    torch.manual_seed(1)
    network = MIST().eval()
    rows = SamplePool(TRIAL, 4, CPU)
    first = rows.x.detach().clone()
    before = resist(network, rows, rows.draw()).detach()
    for _ in range(20):
        after = resist(network, rows, rows.draw()).detach()
    assert (after.mean(1) > before.mean(1)).all()
    assert not torch.equal(rows.x, first)


def test_guided_encoders_go_their_way_where_the_estimate_says_nothing():
    class Deaf(MIST):
        def forward(self, x, y, normal=None):
            return torch.zeros(len(x), KNOTS) + 0 * (x.sum((1, 2)) + y.sum((1, 2)))[:, None]

    for guided in (False, True):
        encoders = pool(trial=TRIAL._replace(rows=1024, guided=guided), b=12)
        before = encoders.mutual_information()
        for _ in range(10):
            resist(Deaf(), encoders, encoders.draw())
        moved = (encoders.mutual_information() - before) * encoders.sign
        for way in (encoders.sign > 0, encoders.sign < 0):
            assert way.any()
            assert moved[way].mean() > 0.02 if guided else torch.equal(moved[way], torch.zeros(int(way.sum()))), moved
