"""Near rows before a side is whitened, and of how many dimensions it is where one looks closely.

Codes of a network are a bent surface of few dimensions. Whitening stretches what hardly varies, bends of the surface
too, until what is near is no longer near along it; between the features as they come it is.
"""

import torch
from torch import Tensor

from mist_loss.model.balls import BALLS, TIED, Neighbours, estimates, in_parts, neighbours
from mist_loss.model.frontend import standard_score

INTRINSIC = BALLS + 3  # entries of the summary, those of balls first
LEAST = 0.1  # dimensions that are told from none, as discrete sides have
STILL = 0.01  # of the logarithm of the radius, below which it does not grow


@torch.no_grad()
def intrinsic_summary(zx: Tensor, zy: Tensor) -> Tensor:
    """What ``mist_loss.model.balls.ball_summary`` says, with distances between normal scores, and intrinsic dimensions.

    Unlike there, maps that mix the features of a side change it. Unchanged when x and y are exchanged. Nothing here
    carries gradients.

    Args:
        zx: (b, n, dx) features in normal scores.
        zy: (b, n, dy).

    Returns:
        (b, 9): the six entries of balls; mean and absolute difference of the logarithms of both sides' dimensions, and
        that of the pair's.
    """
    return in_parts(_summary, standard_score(zx), standard_score(zy))


def _summary(x: Tensor, y: Tensor) -> Tensor:
    found = neighbours(x, y)
    both, one, other = log_dimensions(found)
    dimensions = torch.stack([(one + other) / 2, (one - other).abs(), both], dim=1)
    return torch.cat([estimates(found, x.shape[1]), dimensions], dim=1)


def log_dimensions(found: Neighbours) -> list[Tensor]:
    """(b,) each, of the pair, of x and of y: logarithm of how fast neighbours grow as the radius does.

    Their number goes with the power of the radius that is the dimension (Grassberger and Procaccia 1983, Physica D 9).
    """
    growth = torch.log((found.radius[-1] + TIED) / (found.radius[0] + TIED)).mean((1, 2)).clamp_min(STILL)
    return [((counts[-1] - counts[0]).mean(1) / growth).clamp_min(LEAST).log() for counts in found[1:]]
