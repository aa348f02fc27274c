"""Losses of the predictive distribution against the known mutual information."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mist_loss.model import quantiles


def pinball(knots: Tensor, target: Tensor) -> Tensor:
    """Pinball loss (Koenker & Bassett 1978), mean over the levels of the knots.

    Args:
        knots: (b, KNOTS) predicted quantiles, nats.
        target: (b,) nats.

    Returns:
        (b,) nats.
    """
    level = quantiles.knot_levels(knots)
    error = target[:, None] - knots
    return torch.maximum(level * error, (level - 1) * error).mean(1)


def spread(knots: Tensor) -> Tensor:
    """(b,) standard deviation of the predictive distribution, read off its central quantiles."""
    half = 3  # knots on either side of the median
    score = quantiles.knot_scores(knots)
    middle = quantiles.KNOTS // 2
    return (knots[:, middle + half] - knots[:, middle - half]) / (score[middle + half] - score[middle - half])


def relative_loss(knots: Tensor, target: Tensor, floor: float = 0.05) -> Tensor:
    """Pinball loss of the quantiles and Huber loss of the mean, in units of the predicted spread.

    A weight that depends on the input alone moves neither the best quantile nor the best mean, but lets 4,000 rows,
    whose errors are a hundred times smaller, count as much as 10. The spread takes no gradient: it is a weight.

    Args:
        knots: (b, KNOTS) predicted quantiles, nats.
        target: (b,) nats.
        floor: spread, in nats, below which precision is not pursued further.

    Returns:
        (b,) without unit.
    """
    weight = 1 / (spread(knots.detach()) + floor)
    error = (quantiles.mean(knots) - target) * weight
    return pinball(knots, target) * weight + 0.25 * F.huber_loss(
        error, torch.zeros_like(error), reduction="none", delta=3.0
    )
