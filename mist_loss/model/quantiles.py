"""The predictive distribution of mutual information as a quantile function on fixed knots.

The network gives the quantiles at KNOTS levels, evenly spaced in normal scores, increasing by construction; in
between the function is linear in the normal score of the level, so quantiles cannot cross. The point estimate is the
mean of that distribution, which minimises the squared error.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

KNOTS = 13
BELOW_ZERO = 0.01  # nats; the lowest knot is minus this
AGREE = 0.02  # two readings agree if each mean lies between the other's quantiles at this level and at 1 - this
_SPAN = 2.4  # normal score of the outermost levels, 0.8% and 99.2%


def knot_scores(like: Tensor) -> Tensor:
    """(KNOTS,) normal scores of the levels."""
    return torch.linspace(-_SPAN, _SPAN, KNOTS, device=like.device, dtype=like.dtype)


def knot_levels(like: Tensor) -> Tensor:
    """(KNOTS,) levels in (0, 1)."""
    return torch.special.ndtr(knot_scores(like))


def not_negative(reading: Tensor) -> Tensor:
    """Knots of mutual information, which is not negative, from any real numbers: softplus, bent within about 0.25 nats.

    It ends a little below zero, or no quantile could reach the zero of independent samples and no interval would
    contain it.
    """
    return F.softplus(reading, beta=4) - BELOW_ZERO


def _mean_weights() -> list[float]:
    """Integrals of the hat functions of the knots against the standard normal density, flat beyond the outermost."""
    knots = torch.linspace(-_SPAN, _SPAN, KNOTS, dtype=torch.float64, device="cpu")
    density = torch.exp(-(knots**2) / 2) / math.sqrt(2 * math.pi)
    # E max(knot - score, 0); a hat is a second difference of these ramps
    ramp = knots * torch.special.ndtr(knots) + density
    slope = ramp.diff() / knots.diff()
    return torch.cat([slope[:1], slope.diff(), 1 - slope[-1:]]).tolist()


_MEAN_WEIGHTS = _mean_weights()


def mean(knots: Tensor) -> Tensor:
    """Mean of the predictive distribution: (..., KNOTS) -> (...,) nats."""
    return (knots * torch.tensor(_MEAN_WEIGHTS, device=knots.device, dtype=knots.dtype)).sum(-1)


def quantile(knots: Tensor, level: float | Tensor) -> Tensor:
    """Quantile of the predictive distribution: linear in the normal score, also beyond the last knots, not negative.

    One that is cut at zero keeps its gradient, or a low quantile could not be raised from there.

    Args:
        knots: (..., KNOTS) nats, increasing.
        level: in (0, 1); a number, or a tensor that broadcasts against the leading dimensions.

    Returns:
        (...,) nats, increasing in the level.
    """
    # a number in double precision: in single one, levels next to 1 are 1, and infinitely far away
    level = level if isinstance(level, Tensor) else torch.tensor(level, dtype=torch.float64, device="cpu")
    score = torch.special.ndtri(level).to(knots)
    place = (score + _SPAN) / (2 * _SPAN) * (KNOTS - 1)
    lower = place.detach().floor().clamp(0, KNOTS - 2).long().expand(knots.shape[:-1])[..., None]
    start, end = knots.gather(-1, lower)[..., 0], knots.gather(-1, lower + 1)[..., 0]
    found = start + (place - lower[..., 0]) * (end - start)
    return torch.where(found < 0, found - found.detach(), found)


def combine(first: Tensor, second: Tensor) -> Tensor:
    """One predictive distribution from two readings of the same sets, in coordinates that hide different things.

    Where the mean of each lies in the 96% interval of the other, the two agree, and their quantiles are averaged, which
    lessens the noise of both. Where they part, one of them is blind, and neither can see what is not there: the one
    whose lower end is higher counts.

    Args:
        first, second: (b, KNOTS) nats.

    Returns:
        (b, KNOTS) nats.
    """
    low, high, middle = [], [], []
    for knots in (first.float(), second.float()):
        low.append(quantile(knots, AGREE))
        high.append(quantile(knots, 1 - AGREE))
        middle.append(mean(knots))
    agree = (low[1] <= middle[0]) & (middle[0] <= high[1]) & (low[0] <= middle[1]) & (middle[1] <= high[0])
    surer = torch.where((low[1] > low[0])[:, None], second, first)
    return torch.where(agree[:, None], (first + second) / 2, surer)
