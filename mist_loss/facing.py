"""A way off the saddle: where a pair of directions shares nothing yet, mutual information has no slope.

-1/2 log(1 - rho^2) is flat at rho = 0, and an estimate that no rotation of a side changes cannot say which direction
of x should come to follow which of y. Codes that start with a dead pair may keep it for a whole training.
Losses of coordinate i of x against coordinate i of y (InfoNCE's scalar product, Barlow Twins) have no such saddle.
"""

from torch import Tensor

from mist_loss.model.frontend import standardize, whiten

CLIP = 3.0  # mean deviations: a few far rows should not decide


def facing(x: Tensor, y: Tensor, weight: float) -> Tensor:
    """Zero, whose gradient raises the correlation of coordinate i of x with coordinate i of y, both sides whitened.

    The sum of these correlations is largest where the codes hold the strongest canonical pairs, in whatever order (Fan
    1949), so it does not ask for other codes than mutual information does; and which of the equally informative
    rotations the codes end in does not matter. The slope is the same at zero as elsewhere.

    Args:
        x: (b, n, dx) finite; sides of different width face each other in the first coordinates.
        y: (b, n, dy).
        weight: of a correlation, in nats.

    Returns:
        0-d zero: add it to a loss that maximises mutual information.
    """
    u, v = (whiten(standardize(t).clamp(-CLIP, CLIP)) for t in (x, y))
    m = min(u.shape[2], v.shape[2])
    pull = weight * (u[..., :m] * v[..., :m]).mean(1).sum(1).mean().to(x.dtype)
    return pull.detach() - pull
