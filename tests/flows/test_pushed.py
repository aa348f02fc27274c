"""Pushed-forward problems: their marginals are those of the flows, their mutual information is what they say."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial import cKDTree
from scipy.special import digamma

pytest.importorskip("normflows")
from mist_loss.flows import pushed
from mist_loss.flows.coordinates import NormalCoordinates
from mist_loss.flows.marginals import Marginal, fit_marginal
from mist_loss.flows.pushed import Pushed, PushedProblem
from mist_loss.meta import discrete, families
from mist_loss.meta.structures import gaussian_mi

CPU = torch.device("cpu")


def ksg(x: torch.Tensor, y: torch.Tensor, k: int = 4) -> float:
    """Estimate of Kraskov et al. (2004), first kind: nothing of this package is in it."""
    sides = [s.numpy() for s in (x, y)]
    distance = cKDTree(np.hstack(sides)).query(np.hstack(sides), k + 1, p=np.inf)[0][:, k]
    near = [cKDTree(s).query_ball_point(s, distance * (1 - 1e-10), p=np.inf, return_length=True) for s in sides]
    return float(digamma(k) + digamma(len(distance)) - np.mean(digamma(near[0]) + digamma(near[1])))


def plug_in(first: torch.Tensor, second: torch.Tensor) -> float:
    """Mutual information of two columns of labels, from their counts."""
    p = torch.zeros(int(first.max()) + 1, int(second.max()) + 1, dtype=torch.float64)
    p.index_put_((first, second), torch.full((len(first),), 1 / len(first), dtype=torch.float64), accumulate=True)
    return float(torch.special.xlogy(p, p / (p.sum(1, keepdim=True) * p.sum(0)).clamp_min(1e-300)).sum())


def linear(matrix: torch.Tensor) -> Marginal:
    """The flow of a Gaussian, by hand: a known linear map."""
    d = len(matrix)
    marginal = Marginal(d, d, True, 0, 8, 4).double()
    left, scale, _ = torch.linalg.svd(matrix.double())
    marginal.scale.copy_(scale)
    marginal.directions.copy_(left)
    return marginal.requires_grad_(False)


@pytest.fixture(scope="module")
def bananas():
    """Flows of two bent sides in two dimensions, and what they were fitted to."""
    torch.manual_seed(1)
    sides = []
    for bend in (1.0, -0.7):
        a = torch.randn(1200, 2)
        sides.append(torch.stack([a[:, 0], bend * a[:, 0] ** 2 + 0.4 * a[:, 1]], dim=1))
    return [fit_marginal(side, layers=3, hidden=32, epochs=12, seed=i)[0] for i, side in enumerate(sides)]


@pytest.mark.parametrize("d", [1, 2, 16])
@pytest.mark.parametrize("dof", [1.0, 3.0, 9.5])
def test_student_rows_become_normal(d, dof):
    dof = torch.tensor([dof])
    rows = torch.randn(1, 4000, d).double() * families.student_scale(dof, 4000)  # so finely that no two are tied
    normal = pushed.normal_radius(rows, dof)
    assert stats.kstest(normal[0, :, 0], "norm").pvalue > 1e-3
    assert stats.kstest(normal[0].square().sum(1), "chi2", args=(d,)).pvalue > 1e-3
    cosine = torch.nn.functional.cosine_similarity(rows, normal, dim=2)
    torch.testing.assert_close(cosine, torch.ones_like(cosine), atol=1e-5, rtol=0)
    order = rows[0].norm(dim=1).argsort()
    assert (normal[0].norm(dim=1)[order].diff() > 0).all()  # invertible


@pytest.mark.parametrize("name", pushed.NORMAL)
def test_both_sides_are_standard_normal(name):
    x, y, mi = pushed.rotated(pushed.NORMAL[name][1](3, 6000, 4, 3, CPU))
    for side in (x, y):
        for one in side:
            assert stats.kstest(one.flatten(), "norm").statistic < 0.015
            torch.testing.assert_close(one.T.cov(), torch.eye(one.shape[1]), atol=0.1, rtol=0)
            # independent coordinates, not only uncorrelated ones
            assert stats.kstest(one.square().sum(1), "chi2", args=(one.shape[1],)).statistic < 0.04
    assert mi.shape == (3,)
    assert (mi >= 0).all()


def test_gaussian_nats_are_those_of_the_sample():
    x, y, mi = pushed.rotated(pushed.gaussian(6, 20_000, 3, 5, CPU))
    covariance = torch.stack([torch.cat([a, b], dim=1).T.cov() for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(gaussian_mi(covariance, 3).float(), mi, atol=0.02, rtol=0.02)


def test_student_nats_against_ksg():
    torch.manual_seed(2)
    x, y, mi = pushed.student(4, 3000, 1, 1, CPU)
    found = [ksg(a, b) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(found, mi, atol=0.1)


def test_a_known_map_moves_rows_and_leaves_the_nats():
    """Linear flows: what comes out is Gaussian, so that its nats can be computed from its covariance."""
    a, b = (torch.randn(3, 3) + 2 * torch.eye(3) for _ in range(2))
    source = Pushed(linear(a), linear(b))
    u, v, mi = pushed.rotated(pushed.gaussian(4, 30_000, 3, 3, CPU))
    x, y = (source._push(side, t) for side, t in ((source.x, u), (source.y, v)))
    covariance = torch.stack([torch.cat([s, t], dim=1).T.cov() for s, t in zip(x, y, strict=True)])
    torch.testing.assert_close(covariance[:, :3, :3], (a @ a.T).expand(4, 3, 3), atol=0.4, rtol=0.05)
    torch.testing.assert_close(gaussian_mi(covariance, 3).float(), mi, atol=0.02, rtol=0.02)


def test_nats_before_and_after_fitted_flows_by_an_independent_estimator(bananas):
    source = Pushed(*bananas)
    rho = torch.tensor([[0.9, 0.5]])
    u, v, mi = families.canonical_normal(rho, 3000, 2, 2)
    x, y = source._push(source.x, u)[0], source._push(source.y, v)[0]
    assert abs(torch.corrcoef(torch.stack([x[:, 1], x[:, 0] ** 2]))[0, 1]) > 0.6  # it is bent as the data was
    before, after = ksg(u[0], v[0]), ksg(x / x.std(0), y / y.std(0))
    assert before == pytest.approx(mi.item(), abs=0.1)
    assert after == pytest.approx(mi.item(), abs=0.12)


@pytest.mark.parametrize("same", [True, False])
def test_clusters_share_what_the_channel_lets_through(bananas, same):
    source = Pushed(bananas[0], bananas[0] if same else bananas[1])
    for _ in range(3):
        x, y, mi, _ = source.clustered(source.channel(1), 40_000)
        labels = []
        for side, pool in zip((x, y), source.pools, strict=True):
            nearest = cKDTree(pool.rows.numpy()).query(side[0].numpy())[1]
            labels.append(pool.clusters[torch.from_numpy(nearest)])
        bias = (labels[0].unique().numel() - 1) * (labels[1].unique().numel() - 1) / 80_000
        assert plug_in(*labels) - bias == pytest.approx(mi.item(), abs=0.02)


def test_clusters_are_regions_and_none_is_empty():
    rows = torch.cat([torch.randn(60, 2), torch.randn(30, 2) + 50, torch.randn(10, 2) - 50])
    pool = pushed.cluster(rows, 20)
    assert pool.rows is rows
    assert (pool.clusters.bincount() > 0).all()
    standard = (rows - rows.mean(0)) / rows.std(0)
    centres = torch.stack([standard[pool.clusters == i].mean(0) for i in range(int(pool.clusters.max()) + 1)])
    torch.testing.assert_close(pool.clusters, torch.cdist(standard, centres).argmin(1))


def test_picked_rows_are_of_the_cluster_that_was_asked_for():
    pool = pushed.Pool(torch.arange(50.0)[:, None], torch.arange(50) % 5, torch.arange(5.0)[:, None])
    chosen = pool.choose(2)
    assert len(chosen.unique()) == 2
    labels = torch.randint(2, (400,))
    picked = pool.rows[pushed._pick(pool, chosen, labels)][:, 0].long()
    torch.testing.assert_close(picked % 5, chosen[labels])
    assert len(picked.unique()) == 20  # all of both clusters, none of the others


def test_blocks_of_one_kind_go_through_one_channel(bananas, monkeypatch):
    monkeypatch.setattr(pushed, "ALIKE", 1.0)
    source = Pushed(*bananas)
    torch.manual_seed(0)
    joint = source.channel(3)
    monkeypatch.setattr(source, "channel", lambda b: joint)
    x, y, mi, _ = source.batch(3, 100, blocks=3)
    assert x.shape == y.shape == (3, 100, 6)
    torch.testing.assert_close(mi, 3 * discrete.label_mi(joint).float())


def test_groups_have_one_shape_and_blocks_add_up(bananas):
    source = Pushed(bananas[0], bananas[1], rows=(64, 128), widest=6)
    assert source.most_blocks == 3
    shapes = set()
    for _ in range(12):
        x, y, mi, normal = source.group()
        assert x.shape[:2] == y.shape[:2] == (len(mi), x.shape[1])
        assert 64 <= x.shape[1] <= 128
        assert x.isfinite().all()
        assert y.isfinite().all()
        for given, mapped in zip(normal, NormalCoordinates(*bananas)(x, y), strict=True):
            torch.testing.assert_close(given, mapped, atol=5e-3, rtol=5e-3)
        shapes.add(x.shape[2])
    assert shapes == {2, 4, 6}


def test_nats_of_blocks_add_up(bananas, monkeypatch):
    monkeypatch.setattr(pushed, "ALIKE", 0.0)
    source = Pushed(*bananas)

    def block(b, n):
        rows = torch.ones(b, n, 2)
        return PushedProblem(rows, rows, torch.ones(b), (rows, rows))

    monkeypatch.setattr(source, "block", block)
    x, y, mi, _ = source.batch(4, 10, blocks=3)
    assert (x.shape, y.shape, mi.tolist()) == ((4, 10, 6), (4, 10, 6), [3.0] * 4)


def test_chosen_clusters_are_different_and_apart():
    centres = torch.tensor([0.0, 0.1, 0.2, 10.0, 20.0])[:, None]
    pool = pushed.Pool(centres, torch.arange(5), centres)
    for _ in range(20):
        pair = pool.choose(2)
        assert pool.choose(5).sort().values.tolist() == [0, 1, 2, 3, 4]
        assert (centres[pair[0]] - centres[pair[1]]).abs() >= 10  # of all others, the farthest of four
