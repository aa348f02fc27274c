"""Sources of one side, each facing what the other side says of it, before features are bent to normal scores.

Normal scores hide what a rotation has mixed: sums of bent numbers cannot be unbent, and where facing features depend
alike, no canonical frame tells one from another. The side itself does, where it is less Gaussian than its mixtures are.
"""

import torch
from torch import Tensor

from mist_loss.model.frontend import align, gaussianize, standard_score, standardize
from mist_loss.model.independence import components, contrast

LEADING = 16  # canonical pairs that are searched, at most
FAR = 10.0  # mean absolute deviations from which a value is no further away: single rows should not decide
STEPS = 10
# of an odd part beside the even one, which is blind to one-sided sources; with as much again, even ones are found late
SKEW = 0.5


@torch.no_grad()
def facing_sources(x: Tensor, y: Tensor, pairs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Independent components of the less Gaussian side, and of the other the direction that correlates most with each.

    Both in normal scores of their own. As the canonical frame, they stay where they are when a side goes through an
    invertible linear map, but for rows that are FAR. Nothing here carries gradients.

    Args:
        x: (b, n, dx), centred and scaled by ``mist_loss.model.frontend.standardize``.
        y: (b, n, dy).
        pairs: how many, at most.

    Returns:
        u and v (b, n, k) of unit variance, of x and of y, and their correlations (b, k) in [0, 1], largest first, with
        k = min(pairs, LEADING, dx, dy).
    """
    linear = align(_without_far(x), _without_far(y))
    b, n, k = len(x), x.shape[1], min(LEADING, linear.rho.shape[1])
    sides, rho = torch.cat([linear.u[..., :k], linear.v[..., :k]]), linear.rho[:, :k]
    rotation = components(sides, STEPS, SKEW)
    found = contrast(sides @ rotation, SKEW).square().sum(1)
    of_y = (found[b:] > found[:b])[:, None, None]
    rotation = torch.where(of_y, rotation[b:], rotation[:b])
    # the covariance of the sides is diagonal: that of a source and the other side is its rotation, weighted by rho
    weighted = rho[:, :, None] * rotation
    turned = [side @ torch.where(own, rotation, weighted) for side, own in ((sides[:b], ~of_y), (sides[b:], of_y))]
    u, v = standard_score(gaussianize(torch.cat(turned, dim=2))).chunk(2, dim=2)
    rho, order = ((u * v).sum(1) / n).abs().clamp_max(1).sort(dim=1, descending=True, stable=True)
    order = order[:, :pairs]
    u, v = (t.gather(2, order[:, None].expand(-1, n, -1)) for t in (u, v))
    v = torch.where((u * v).sum(1) < 0, -1.0, 1.0)[:, None] * v
    sign = torch.where((u**3 + v**3).sum(1) < 0, -1.0, 1.0)[:, None]
    return sign * u, sign * v, rho[:, :pairs]


def _without_far(side: Tensor) -> Tensor:
    """A standardised side (b, n, d) whose far values are nearer; deviations without them are what far is judged by."""
    for _ in range(2):
        side = standardize(side.clamp(-FAR, FAR))
    return side.clamp(-FAR, FAR)
