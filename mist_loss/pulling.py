"""A way up where the estimate has little slope: while little is shared, and where a pair of directions shares nothing.

What n rows cannot tell from chance hardly moves the estimate, and a correlation far below the others adds little to its
gradient, rho / (1 - rho^2). Half the sum of the squared canonical correlations, which is what the mutual information of
weakly correlated Gaussians begins with, has no threshold: its gradient is less noisy, and favours strong pairs less.

At rho = 0 both are flat: nothing that rotations of a side leave alone can say which direction of x should come to
follow which of y, and codes that start with such a pair may keep it for a whole training. Losses of coordinate i of x
against coordinate i of y (InfoNCE's scalar product, Barlow Twins) have no such saddle.
"""

import math

import torch
from torch import Tensor

from mist_loss.collapse import varying
from mist_loss.model.frontend import whiten

CLIP = 10.0  # mean deviations: at 3, encoders of heavy tails moved to where the estimate is too high
PAIRING = 0.05  # slope along an idle direction: docs/objective.md


def pulling(x: Tensor, y: Tensor, weight: float) -> Tensor:
    """Zero, whose gradient raises the canonical correlations of x and y, and leads idle directions towards each other.

    That of half the sum of the squared canonical correlations, and for idle directions PAIRING more: coordinate i of x
    is led to coordinate i of y, both sides whitened, since nothing says which should follow which. A direction is idle
    as far as its canonical correlation is one that independent rows might have. The fewer rows there are for the
    dimensions, the less the two can be told apart, and the more of the latter reaches directions that share something.

    Args:
        x: (b, n, dx) finite; features that are constant up to rounding are left alone.
        y: (b, n, dy).
        weight: of the gradient; in nats for 1.

    Returns:
        0-d zero: add it to a loss that maximises mutual information.
    """
    u, v = (whiten(varying(t, CLIP), at_rest=True) for t in (x, y))
    cross = u.mT @ v / u.shape[1]
    raised = cross.square() / 2 + PAIRING * _idle_pairing(cross.detach(), u.shape[1]) * cross
    pull = weight * raised.sum((1, 2)).mean().to(x.dtype)
    return pull.detach() - pull


@torch.no_grad()
def _idle_pairing(cross: Tensor, n: int) -> Tensor:
    """(b, dx, dy): the identity between idle directions, at the length of as many orthonormal pairs as are idle."""
    dx, dy = cross.shape[1:]
    left, rho, right = torch.linalg.svd(cross, full_matrices=True)
    noise = math.sqrt(dx / n) + math.sqrt(dy / n)  # the largest of independent rows, about (Wachter 1980)
    idle = 1 / (1 + (rho / noise) ** 4)
    projectors = []
    for frame in (left, right.mT):
        share = torch.nn.functional.pad(idle, (0, frame.shape[1] - idle.shape[1]), value=1.0)
        projectors.append((frame * share[:, None]) @ frame.mT)
    pairing = projectors[0] @ torch.eye(dx, dy, dtype=cross.dtype, device=cross.device) @ projectors[1]
    length = pairing.square().sum((1, 2), keepdim=True).sqrt()
    return pairing * idle.square().sum(1)[:, None, None].sqrt() / length.clamp_min(1e-12)
