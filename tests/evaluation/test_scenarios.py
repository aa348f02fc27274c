import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mist_loss.evaluation import scenarios
from mist_loss.evaluation.scenarios import (
    Hidden,
    Linear,
    Nonlinear,
    Samples,
    hidden,
    lower_bound,
    nonlinear,
    problem,
    spectrum,
)
from mist_loss.meta.families import canonical_normal, signed_mi, student_mi
from mist_loss.meta.maps import random_rotation
from mist_loss.meta.structures import gaussian_mi
from mist_loss.seeding import seeded

SMALL = Linear("small", spectrum("decaying", 12, 4), dims=4)


def linear(weight: Tensor) -> nn.Linear:
    encoder = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    encoder.weight.data.copy_(weight)
    return encoder


def plug_in(z1: Tensor, z2: Tensor) -> float:
    """The mutual information of the Gaussian that fits the rows."""
    covariance = torch.cov(torch.cat([z1, z2], dim=1).double().T)
    return float(gaussian_mi(covariance[None], z1.shape[1])[0].detach())


@pytest.mark.parametrize(
    ("scenario", "text"),
    [
        (
            Linear("a", (0.5,), 1),
            "Linear(name='a', rho=(0.5,), dims=1, rows=256, steps=1000, direction='maximize', dof=inf)",
        ),
        (
            Nonlinear("a", (0.5,), 2, 1),
            "Nonlinear(name='a', strength=(0.5,), view_dims=2, dims=1, rows=256, steps=1000, direction='maximize', "
            "additive=False)",
        ),
        (
            Hidden("a", "signs", 1, 2),
            "Hidden(name='a', how='signs', dims=1, view_dims=2, rows=256, steps=1000, rho=0.85, dof=2.0, "
            "direction='minimize')",
        ),
        (Samples("a", 1), "Samples(name='a', dims=1, rows=256, steps=1000, direction='maximize')"),
    ],
)
def test_stored_results_find_their_scenario_by_its_fields(scenario, text):
    assert repr(scenario) == text  # another text makes the results of all earlier runs those of another problem


@pytest.mark.parametrize("dof", [math.inf, 3.0])
def test_encoders_of_the_strongest_coordinates_are_the_best(dof):
    scenario = Linear("", spectrum("decaying", 12, 4), dims=4, dof=dof)
    with seeded(problem.MAP_SEED):
        turns = random_rotation(2, 12, torch.device("cpu"))
    encoders = [linear(torch.randn(4, 4) @ turn[:4]) for turn in turns]
    low, high = scenario.truth(*encoders)
    assert low is high
    assert float(low.detach()) == pytest.approx(scenario.best, abs=1e-4)
    assert float(scenario.truth(*scenario.encoders()).low.detach()) < scenario.best


def test_linear_truth_is_that_of_the_rows():
    first, second = SMALL.encoders()
    x, y = SMALL.views(100_000)
    assert plug_in(first(x), second(y)) == pytest.approx(float(SMALL.truth(first, second).low.detach()), abs=0.005)


def test_what_is_to_be_removed_is_there_at_the_start():
    for scenario in scenarios.FULL:
        if scenario.direction == "minimize":
            assert 0.1 < float(scenario.truth(*scenario.encoders()).low.detach()) < 0.4


@pytest.mark.parametrize("rho", [0.5, 0.85])
def test_truth_of_signs(rho):
    scenario = Hidden("", "signs", dims=1, view_dims=1, rho=rho)
    expected = signed_mi(torch.tensor(rho), torch.tensor(0.5)).item()
    assert scenario.truth(linear(torch.eye(1)), linear(-torch.eye(1))).low.item() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("dof", [1.0, 2.0, 6.0])
def test_truth_of_radii(dof):
    scenario = Hidden("", "radii", dims=2, view_dims=2, dof=dof)
    first, second = linear(torch.randn(2, 2)), linear(torch.randn(2, 2))
    expected = student_mi(torch.tensor([dof]), 2, 2).item()
    assert scenario.truth(first, second).low.item() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("kind", ["signs", "radii"])
def test_free_coordinates_share_nothing(kind):
    scenario = Hidden("", kind, dims=2, view_dims=5)
    free = torch.cat([torch.zeros(2, 2), torch.randn(2, 3)], dim=1)
    assert scenario.truth(linear(free), linear(free)).low.item() == pytest.approx(0, abs=1e-6)


def test_a_mixture_of_one_is_gaussian():
    covariance = torch.cov(torch.randn(5, 40)).double()
    rows = torch.randn(100_000, 5).double() @ torch.linalg.cholesky(covariance).T
    nats = hidden.mixture_mi(rows[:, :2], rows[:, 2:], torch.zeros(1).double(), covariance[None])
    assert nats.item() == pytest.approx(gaussian_mi(covariance[None], 2).item(), abs=0.01)


def test_certified_is_below_the_truth_and_not_far():
    rho = torch.tensor([[0.9, 0.6]])
    x, y, mi = canonical_normal(rho, lower_bound.FIT_ROWS + lower_bound.HELD_ROWS, 2, 2)
    bound = lower_bound.certified(x[0].exp(), y[0] ** 3).item()
    assert 0.9 * mi.item() < bound < mi.item() + 0.05
    assert lower_bound.certified(torch.zeros_like(x[0]), y[0]).item() == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("additive", [False, True])
def test_bent_views_need_more_than_linear_encoders(additive, monkeypatch):
    monkeypatch.setattr(nonlinear, "certified", lambda z1, z2: torch.tensor(9.0).double())
    scenario = Nonlinear("", (0.2, 0.3) if additive else (0.95, 0.9), view_dims=4, dims=2, additive=additive)
    with seeded(3):
        once = scenario.views(20_000)
    with seeded(3):
        again = scenario.views(20_000)
    assert torch.equal(once[0], again[0])
    assert 0.1 < plug_in(*once) < 0.8 * scenario.best
    truth = scenario.truth(*scenario.encoders())
    assert truth.low == truth.high == scenario.best  # a bound that overshoots is cut


def test_additive_noise_shares_what_its_formula_says():
    scenario = Nonlinear("", (0.25,), view_dims=2, dims=1, additive=True)
    assert scenario.best == pytest.approx(0.25 + math.log(2), abs=1e-6)  # e - log 2e
    assert Nonlinear("", (0.6,), view_dims=2, dims=1).best == pytest.approx(-0.5 * math.log(1 - 0.36), abs=1e-6)


def test_a_large_sample_agrees_with_the_mixture_about_signs():
    """KSG shares nothing with the formula: nearest neighbours of many rows."""
    peers = pytest.importorskip("sklearn.neighbors")
    scenario = Hidden("", "signs", dims=2, view_dims=6)
    with seeded(5):
        first, second = scenario.encoders()
        x, y = scenario.views(3000)
    codes = [encoder(view).detach().numpy() for encoder, view in ((first, x), (second, y))]
    joint = np.concatenate(codes, axis=1)
    # the first estimator of Kraskov et al. 2004, in the maximum norm
    radius = peers.NearestNeighbors(metric="chebyshev").fit(joint).kneighbors(joint, 4)[0][:, -1]
    counts = [
        peers.KDTree(code, metric="chebyshev").query_radius(code, np.nextafter(radius, 0), count_only=True)
        for code in codes
    ]
    psi = torch.digamma
    inside = sum(psi(torch.from_numpy(count).double()).mean().item() for count in counts)
    ksg = (psi(torch.tensor(3.0)) + psi(torch.tensor(3000.0))).item() - inside
    assert ksg == pytest.approx(scenario.truth(first, second).low.item(), abs=0.06)


def test_spectrum_says_what_it_cannot():
    with pytest.raises(ValueError, match="at least 16"):
        spectrum("level", 12, 8)
    with pytest.raises(ValueError, match="'decaying', 'few', 'level'"):
        spectrum("flat", 16, 8)
