"""Noisy functions: their truths against closed forms, and against the histogram of many rows."""

import math

import pytest
import torch

from mist_loss.meta import functions
from mist_loss.meta.families import additive_noise_mi

INPUTS = {"product": 2, "length": 5, "largest": 3}


def quantiles(k: int = 4096) -> torch.Tensor:
    return (torch.arange(k, dtype=torch.float64)[None] + 0.5) / k


def even(k: int = 4096) -> torch.Tensor:
    return torch.full((k,), 1 / k, dtype=torch.float64)


@pytest.mark.parametrize("epsilon", [0.05, 0.5, 1.5])
def test_uniform_plus_uniform(epsilon):
    mi = functions.noisy_mi(quantiles(), even(), torch.tensor([2 * epsilon]), "uniform")
    torch.testing.assert_close(mi, additive_noise_mi(torch.tensor([[epsilon]])), atol=2e-3, rtol=0)


@pytest.mark.parametrize("scale", [0.05, 0.5, 2.0])
def test_normal_plus_normal(scale):
    mi = functions.noisy_mi(torch.special.ndtri(quantiles()), even(), torch.tensor([scale]), "normal")
    assert mi.item() == pytest.approx(0.5 * math.log1p(scale**-2), abs=5e-3)


def test_exponential_plus_exponential():
    """Their sum is hypoexponential: with means 1 and 1/2, h(y) = 2 - log 2, so that one nat is shared."""
    mi = functions.noisy_mi(-torch.log1p(-quantiles(2**14)), even(2**14), torch.tensor([0.5]), "exponential")
    t = torch.linspace(0, 40, 400_001, dtype=torch.float64)
    density = 2 * (torch.exp(-t) - torch.exp(-2 * t))
    entropy = -torch.trapezoid(torch.special.xlogy(density, density), t).item()
    assert mi.item() == pytest.approx(entropy - 1 - math.log(0.5), abs=3e-3)


@pytest.mark.parametrize("noise", list(functions.NOISES))
def test_noise_has_its_entropy_and_its_distribution(noise):
    torch.manual_seed(0)
    sample, cdf, entropy, left, right, deviation = functions.NOISES[noise]
    rows = sample(torch.Size((200_000,)), torch.device("cpu")).sort().values
    assert rows.std().item() == pytest.approx(deviation, rel=0.01)
    even = (torch.arange(200_000) + 0.5) / 200_000
    assert (cdf(rows) - even).abs().max() < 0.005
    assert cdf(torch.tensor(-left - 1e-9)) < 1e-6
    assert cdf(torch.tensor(float(right))) > 1 - 1e-6
    t = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    chance = cdf(t).diff()
    assert -torch.special.xlogy(chance, chance).sum().item() + math.log(1e-4) == pytest.approx(entropy, abs=1e-3)


@pytest.mark.parametrize("noise", ["normal", "exponential"])
@pytest.mark.parametrize("function", list(functions.FUNCTIONS))
def test_against_the_histogram_of_many_rows(function, noise):
    torch.manual_seed(1)
    n, scale = 400_000, torch.full((1, 1), 0.3)
    inputs = INPUTS.get(function, 1)
    x, y, mi = functions.noisy_function(function, noise, scale, n, inputs)
    assert x.shape == (1, n, inputs)
    assert y.shape == (1, n, 1)
    bins = 1000
    low, high = y.min().item(), y.max().item()
    chance = torch.histc(y, bins, low, high).double() / n
    entropy = -torch.special.xlogy(chance, chance).sum().item() + math.log((high - low) / bins)
    entropy += (chance > 0).sum().item() / (2 * n)
    assert mi.item() == pytest.approx(entropy - functions.NOISES[noise].entropy - math.log(0.3), abs=0.02)


def test_pairs_add_up_and_are_of_one_scale():
    torch.manual_seed(0)
    x, y, mi = functions.noisy_function("line", "normal", torch.full((2, 3), 0.5), 20_000)
    assert x.shape == (2, 20_000, 3)
    torch.testing.assert_close(mi, torch.full((2,), 1.5 * math.log(5.0)), atol=0.02, rtol=0)
    torch.testing.assert_close(y.var(1), torch.full((2, 3), 1.25), atol=0.05, rtol=0)


def test_noise_too_small_for_the_grid_is_raised():
    torch.manual_seed(0)
    _, _, mi = functions.noisy_function("sigmoid", "uniform", torch.full((1, 1), 1e-9), 10)
    assert 3 < mi.item() < math.log(400) + 0.1


@pytest.mark.parametrize("noise", ["uniform", "normal"])
@pytest.mark.parametrize("function", ["line", "one-sided", "even", "cubic", *INPUTS])
def test_small_noise_leaves_no_comb_between_the_points(function, noise, monkeypatch):
    """Many more points say the same. Of more inputs more reach farther, so that noise must be above what is raised."""
    inputs = INPUTS.get(function, 1)
    scale = {1: 0.01, 2: 0.06}.get(inputs, 0.12)

    def draw() -> float:
        torch.manual_seed(2)
        return functions.noisy_function(function, noise, torch.full((1, 1), scale), 10, inputs).mi.item()

    coarse = draw()
    if inputs > 1:
        z = torch.special.ndtri(functions.lattice(2**19, inputs, torch.device("cpu")))
        fine = z, torch.full_like(z[:, 0], 2**-19)
    else:
        z = torch.linspace(-5, 5, 2**16, dtype=torch.float64)
        fine = z[:, None], torch.softmax(-0.5 * z**2, dim=0)
    monkeypatch.setattr(functions, "normal_points", lambda *_: fine)
    assert coarse == pytest.approx(draw(), abs=0.008)
