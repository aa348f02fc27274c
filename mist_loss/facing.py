"""A way off the saddle: where a pair of directions shares nothing yet, mutual information has no slope.

-1/2 log(1 - rho^2) is flat at rho = 0, and an estimate that no rotation of a side changes cannot say which direction
of x should come to follow which of y. Codes that start with an idle pair may keep it for a whole training.
Losses of coordinate i of x against coordinate i of y (InfoNCE's scalar product, Barlow Twins) have no such saddle.
"""

import math

import torch
from torch import Tensor

from mist_loss.model.frontend import standardize, whiten

CLIP = 3.0  # mean deviations: a few far rows should not decide


def facing(x: Tensor, y: Tensor, weight: float) -> Tensor:
    """Zero, whose gradient leads idle directions of x towards idle directions of y, those that face each other first.

    A direction is idle as far as its canonical correlation is one that independent rows might have. Among idle
    directions nothing says which should follow which, so coordinate i of x is led to coordinate i of y, both sides
    whitened; directions that share something are left to the gradient of the mutual information. The fewer rows there
    are for the dimensions, the less the two can be told apart, and the more of the pull reaches the latter.

    Args:
        x: (b, n, dx) finite.
        y: (b, n, dy).
        weight: slope along each idle direction, in nats for a correlation of 1.

    Returns:
        0-d zero: add it to a loss that maximises mutual information.
    """
    u, v = (whiten(standardize(t).clamp(-CLIP, CLIP)) for t in (x, y))
    cross = u.mT @ v / u.shape[1]
    pull = weight * (_idle_pairing(cross.detach(), u.shape[1]) * cross).sum((1, 2)).mean().to(x.dtype)
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
