"""Features that face each other as they are: what levels, labels and holes say before any rotation mixes them.

Nothing is lost when normal coordinates are rotated, since they are normal again. Rounded values, indicators and numbers
with holes become sums of several, and what repeats in them repeats no more.
"""

import torch
from torch import Tensor

from mist_loss.model.frontend import standard_score
from mist_loss.model.tracing import may_look

# chance that two rows agree from which a feature has levels: fifty even ones, or a hole of a seventh of the rows
LEAST = 0.02


@torch.no_grad()
def facing_features(
    agree_x: Tensor, agree_y: Tensor, zx: Tensor, zy: Tensor, pairs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of a feature of x and one of y that correlate most, no feature twice, where at least one has levels.

    Pairs of features without levels are zero throughout: the canonical frame says what there is to say about them,
    and says the same after an invertible linear map, which these pairs do not. Nothing here carries gradients.

    Args:
        agree_x: (b, dx) chance that two rows agree, of each feature of x (``mist_loss.model.repeats``).
        agree_y: (b, dy).
        zx: (b, n, dx) normal scores.
        zy: (b, n, dy).
        pairs: how many, at most.

    Returns:
        u and v (b, n, k) of unit variance, and their correlations (b, k) in [0, 1], with k = min(pairs, dx, dy). Where
        no set has levels, and that may be looked at, u and v are (b, 1, k): one row of zeros says what n would.
    """
    n, dx, dy = zx.shape[1], zx.shape[2], zy.shape[2]
    levels = (agree_x > LEAST)[:, :, None] | (agree_y > LEAST)[:, None]
    if may_look(zx) and not levels.any():
        none = zx.new_zeros(len(zx), 1, min(pairs, dx, dy))
        return none, none, none[:, 0]
    sx, sy = (standard_score(z) for z in (zx, zy))
    cross = sx.mT @ sy / n
    strength = torch.where(levels, cross.abs(), -1.0)
    chosen = []
    for _ in range(min(pairs, dx, dy)):
        place = strength.flatten(1).argmax(1)
        i, j = place.div(dy, rounding_mode="floor"), place % dy
        rho = cross.flatten(1).gather(1, place[:, None])[:, 0]
        chosen.append((i, j, rho, strength.flatten(1).gather(1, place[:, None])[:, 0] >= 0))
        taken = (torch.arange(dx, device=zx.device) == i[:, None])[:, :, None]
        strength = strength.masked_fill(taken | (torch.arange(dy, device=zx.device) == j[:, None])[:, None], -1.0)
    i, j, rho, found = (torch.stack(part, dim=1) for part in zip(*chosen, strict=True))
    u, v = (s.gather(2, at[:, None].expand(-1, n, -1)) for s, at in ((sx, i), (sy, j)))
    v = torch.where(rho < 0, -1.0, 1.0)[:, None] * v
    sign = torch.where((u**3 + v**3).sum(1) < 0, -1.0, 1.0) * found
    return sign[:, None] * u, sign[:, None] * v, rho.abs().clamp_max(1) * found
