"""Losses of the predictive distribution against the known mutual information."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mist_loss.model import quantiles


def pinball(knots: Tensor, target: Tensor) -> Tensor:
    """Pinball loss (Koenker & Bassett 1978), mean over the levels of the knots.

    Args:
        knots: (b, KNOTS) predicted quantiles, nats.
        target: (b,) nats, or (b, KNOTS), one for each level.

    Returns:
        (b,) nats.
    """
    level = quantiles.knot_levels(knots)
    error = (target if target.dim() == 2 else target[:, None]) - knots
    # not the maximum of both lines: its gradient where they cross would spread quantiles that are asked for nothing
    return (level * error.relu() + (1 - level) * (-error).relu()).mean(1)


def spread(knots: Tensor) -> Tensor:
    """(b,) standard deviation of the predictive distribution, read off its central quantiles."""
    half = 3  # knots on either side of the median
    score = quantiles.knot_scores(knots)
    middle = quantiles.KNOTS // 2
    return (knots[:, middle + half] - knots[:, middle - half]) / (score[middle + half] - score[middle - half])


def relative_loss(knots: Tensor, target: Tensor, highest: Tensor | None = None, floor: float = 0.05) -> Tensor:
    """Pinball loss of the quantiles and Huber loss of the mean, in units of the predicted spread.

    A weight that depends on the input alone moves neither the best quantile nor the best mean, but lets 4,000 rows,
    whose errors are a hundred times smaller, count as much as 10. The spread takes no gradient: it is a weight.

    Where the truth is only bounded, what lies between the bounds costs nothing (censored quantile regression, Powell
    1986).

    Args:
        knots: (b, KNOTS) predicted quantiles, nats.
        target: (b,) nats.
        highest: (b,) nats, if ``target`` is only the least that the truth can be.
        floor: spread, in nats, below which precision is not pursued further.

    Returns:
        (b,) without unit.
    """
    weight = 1 / (spread(knots.detach()) + floor)
    mean, low, high = quantiles.mean(knots), target, target if highest is None else highest
    error = (mean - mean.detach().clamp(low, high)) * weight
    nearest = knots.detach().clamp(low[:, None], high[:, None])
    return pinball(knots, nearest) * weight + 0.25 * F.huber_loss(
        error, torch.zeros_like(error), reduction="none", delta=3.0
    )


def departure(knots: Tensor, parent: Tensor, floor: float = 0.05) -> Tensor:
    """How far a fine-tuned network has moved from its parent on a set: mean over the levels, in units of the spread.

    Unlike the error against the truth it has no noise, so that little data holds what the parent knows (Li & Hoiem
    2016, arXiv 1606.09282).

    Args:
        knots: (b, KNOTS) predicted quantiles, nats.
        parent: (b, KNOTS) the parent's.
        floor: as of ``relative_loss``.

    Returns:
        (b,) without unit.
    """
    return (knots - parent).abs().mean(1) / (spread(parent) + floor)
