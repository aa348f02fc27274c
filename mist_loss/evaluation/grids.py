"""Mutual information in nats as sums over grids: rounded values, noise, lengths, counts, labels.

The truths of ``mist_loss.evaluation.everyday``, whose ``VERSION`` goes up where one of them changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from statistics import NormalDist

import numpy as np


def gaussian(rho: float) -> float:
    """Of a normal pair."""
    return -0.5 * math.log1p(-(rho**2))


def entropy(p: np.ndarray, cell: float = 1.0) -> float:
    """-sum p log p, of a density on cells of that size or of chances."""
    kept = p[p > 0]
    return float(-(kept * np.log(kept)).sum() * cell)


def table_mi(joint: np.ndarray) -> float:
    """Of two labels with these chances."""
    return entropy(joint.sum(0)) + entropy(joint.sum(1)) - entropy(joint.ravel())


def bit_mi(flip: float) -> float:
    """Of a fair bit and the same bit, flipped with that chance."""
    return math.log(2) - entropy(np.array([flip, 1 - flip]))


@cache
def normal_quantiles(k: int = 4000) -> np.ndarray:
    """Midpoint quantiles of the standard normal."""
    return np.array([NormalDist().inv_cdf((i + 0.5) / k) for i in range(k)])


def normal_cdf(t: np.ndarray) -> np.ndarray:
    """Of the standard normal, element by element."""
    return 0.5 * (1 + np.vectorize(math.erf, otypes=[float])(np.asarray(t) / math.sqrt(2)))


def function_mi(
    centres: np.ndarray, deviation: float | np.ndarray, grid: np.ndarray, chances: np.ndarray | None = None
) -> float:
    """Of x and f(x) + normal noise, from f at points of x, quantiles unless their chances are given.

    The noise may have a deviation for each of them.
    """
    s = np.broadcast_to(deviation, centres.shape)
    weights = np.full(len(centres), 1 / len(centres)) if chances is None else chances
    density = np.zeros_like(grid)
    for c, d, w in zip(*(np.array_split(t, 40) for t in (centres, s, weights)), strict=True):
        density += ((w / d)[:, None] * np.exp(-0.5 * ((grid - c[:, None]) / d[:, None]) ** 2)).sum(0)
    density /= math.sqrt(2 * math.pi)
    step = grid[1] - grid[0]
    assert abs(density.sum() * step - 1) < 2e-3, "the grid does not hold the density"
    return entropy(density, step) - 0.5 * math.log(2 * math.pi * math.e) - float((weights * np.log(s)).sum())


def rounded_mi(rho: float, cuts: np.ndarray, both: bool) -> float:
    """Of a normal pair of which y, or both, are known as a level between cuts."""
    z = normal_quantiles()
    edges = np.concatenate([[-np.inf], cuts, [np.inf]])
    given = np.diff(normal_cdf((edges[None] - rho * z[:, None]) / math.sqrt(1 - rho**2)), axis=1)
    if both:
        level = np.digitize(z, cuts)
        return table_mi(np.stack([given[level == i].sum(0) for i in range(len(cuts) + 1)]) / len(z))
    return entropy(given.mean(0)) - float(np.mean([entropy(row) for row in given]))


def unit_mi(rho: float, d: int) -> float:
    """Of two normal vectors of d independent coordinates, facing ones correlated, after both were brought to length 1.

    In polar coordinates of the two lengths, their integral leaves one over the angle between them, and the density
    ratio depends on the cosine of the rows alone.
    """
    phi = (np.arange(2000) + 0.5) * math.pi / 4000
    t = np.cos((np.arange(4000) + 0.5) * math.pi / 4000)
    log_inner = (d - 1) * np.log(np.sin(2 * phi)) - d * np.log1p(-rho * t[:, None] * np.sin(2 * phi))
    ratio = np.exp(log_inner).mean(1)
    even = np.sin(np.arccos(t)) ** (d - 2)
    even /= even.sum()
    ratio /= (ratio * even).sum()
    return float((even * ratio * np.log(ratio)).sum())


def poisson_mi(rate: Callable[[np.ndarray], np.ndarray], most: int) -> float:
    """Of a normal x and counts whose mean is a function of it; ``most`` is above all counts that matter."""
    mean = rate(normal_quantiles())
    k = np.arange(most + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(k[1:]))])
    given = np.exp(k * np.log(mean)[:, None] - mean[:, None] - log_factorial)
    assert abs(given.sum(1) - 1).max() < 1e-3, "counts reach further"
    return entropy(given.mean(0)) - float(np.mean([entropy(row) for row in given]))


def ring_mi(deviation: float) -> float:
    """Of an even angle and its point on the unit circle with normal noise on both coordinates."""
    r = (np.arange(4000) + 0.5) * (1 + 8 * deviation) / 4000
    theta = (np.arange(4000) + 0.5) * 2 * math.pi / 4000
    distance = r[:, None] ** 2 + 1 - 2 * r[:, None] * np.cos(theta)
    density = np.exp(-distance / (2 * deviation**2)).mean(1) / (2 * math.pi * deviation**2)
    weight = 2 * math.pi * r * (r[1] - r[0])
    kept = density > 0
    h = -(weight[kept] * density[kept] * np.log(density[kept])).sum()
    return float(h - math.log(2 * math.pi * math.e * deviation**2))


def label_mi(chances: np.ndarray) -> float:
    """Of anything and a label, from the chances (points, labels) of the label at even points of the former."""
    return entropy(chances.mean(0)) - float(np.mean([entropy(row) for row in chances]))


def clayton_mi(theta: float, points: int = 2000) -> float:
    """Of a pair of Clayton's copula: the mean log density, over quantiles of u and of v given u."""
    q = (np.arange(points) + 0.5) / points
    u, v = np.broadcast_to(q[:, None], (points, points)), clayton_given(q[:, None], q[None], theta)
    log_density = math.log1p(theta) - (1 + theta) * np.log(u * v) - (2 + 1 / theta) * np.log(u**-theta + v**-theta - 1)
    return float(log_density.mean())


def clayton_given(u: np.ndarray, quantile: np.ndarray, theta: float) -> np.ndarray:
    """The v of such a pair at a quantile of its distribution given u."""
    return (u**-theta * (quantile ** (-theta / (1 + theta)) - 1) + 1) ** (-1 / theta)


def noisy_mi(f: Callable[[np.ndarray], np.ndarray], deviation: float) -> Callable[[], float]:
    """Of a normal x and f(x) + normal noise of that deviation, as a function that sums when it is called."""

    def mi() -> float:
        x = np.linspace(-5, 5, 4001)  # even, as quantiles leave gaps in the tails that are wider than the noise
        chances = np.exp(-0.5 * x**2)
        centres = f(x)
        low, high = centres.min() - 8 * deviation, centres.max() + 8 * deviation
        return function_mi(centres, deviation, np.linspace(low, high, 16_001), chances / chances.sum())

    return mi
