"""Columns whose values repeat: ordered levels, presence and absence, zeros among numbers, tables of labels."""

import torch
from torch import Tensor

from mist_loss.meta.discrete import label_mi
from mist_loss.meta.structures import canonical_mi


def levels_mi(rho: Tensor, cuts_x: Tensor | None, cuts_y: Tensor, points: int = 512) -> Tensor:
    """Mutual information of a normal pair of which y, or both, are known only as the level between two cuts.

    The mean over quantiles of x of the probabilities of the levels of y given x; H(levels of y) less what is left of
    it is exact up to the spacing of these quantiles.

    Args:
        rho: (s,) correlations in [0, 1).
        cuts_x: (s, k - 1) increasing, in standard deviations; None where x is known.
        cuts_y: (s, l - 1).
        points: quantiles of x.

    Returns:
        (s,) nats, float64.
    """
    r = rho.double()[:, None]
    u = (torch.arange(points, dtype=torch.float64, device=rho.device) + 0.5) / points
    z = torch.special.ndtri(u)
    below = torch.special.ndtr((cuts_y.double()[:, None] - r[..., None] * z[:, None]) / (1 - r[..., None] ** 2).sqrt())
    below = torch.nn.functional.pad(below, (1, 1))
    below[..., -1] = 1
    given = below.diff(dim=-1)  # (s, points, l)
    if cuts_x is not None:
        level = torch.searchsorted(cuts_x.double().contiguous(), z.expand(len(rho), -1).contiguous())
        joint = given.new_zeros(len(rho), cuts_x.shape[1] + 1, given.shape[2])
        joint.scatter_add_(1, level[..., None].expand_as(given), given / points)
        return label_mi(joint).clamp_min(0)
    marginal = given.mean(1)
    inner = torch.special.xlogy(given, given).sum(2).mean(1)
    return (inner - torch.special.xlogy(marginal, marginal).sum(1)).clamp_min(0)


def levels(t: Tensor, cuts: Tensor) -> Tensor:
    """Which level each entry of (b, n, d) has among cuts (b, d, k - 1): whole numbers 0 to k - 1."""
    return torch.searchsorted(cuts.contiguous(), t.mT.contiguous()).mT.to(t.dtype)


def presence(p: Tensor, q: Tensor, together: Tensor) -> Tensor:
    """Tables of two events with chances p and q: (...,) -> (..., 2, 2), first absence, then presence.

    Args:
        p: chance of the first event.
        q: of the second.
        together: in [-1, 1]; 0 makes them independent, 1 as often both at once as their chances allow, -1 as seldom.
    """
    chance = p * q
    most, least = torch.minimum(p, q), (p + q - 1).clamp_min(0)
    both = chance + together.clamp_min(0) * (most - chance) - (-together).clamp_min(0) * (chance - least)
    table = torch.stack([1 - p - q + both, q - both, p - both, both], dim=-1).clamp_min(0)
    return table.unflatten(-1, (2, 2))


def present_pairs(table: Tensor, rho: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Pairs of normal numbers each of which may be absent.

    Where both are there they correlate; everything else is independent, so the tables' information adds to that of the
    numbers, weighted with how often both are there.

    Args:
        table: (b, m, 2, 2) chances of absence and presence, of x and of y.
        rho: (b, m) correlations of the numbers, in [0, 1).
        n: rows of each set.

    Returns:
        Presence of x and of y (b, n, m) as 0 and 1, numbers of x and of y (b, n, m), and the mutual information (b, m)
        of what is present, float64: first of presence alone, then with the numbers, stacked (2, b, m).
    """
    b, m = rho.shape
    cells = torch.multinomial(table.flatten(0, 1).flatten(1), n, replacement=True).reshape(b, m, n).mT
    there_x, there_y = (cells // 2).to(rho.dtype), (cells % 2).to(rho.dtype)
    x = torch.randn(b, n, m, device=rho.device)
    y = rho[:, None] * x + (1 - rho[:, None] ** 2).sqrt() * torch.randn_like(x)
    alone = label_mi(table.flatten(0, 1)).reshape(b, m).clamp_min(0)
    numbers = table[..., 1, 1].double() * canonical_mi(rho.reshape(-1, 1)).reshape(b, m)
    return there_x, there_y, x, y, torch.stack([alone, alone + numbers])


def tables(joint: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Independent pairs of labels, a table each.

    Args:
        joint: (b, m, k, l) probabilities.
        n: rows of each set.

    Returns:
        Labels of x and of y (b, n, m), int64; their mutual information (b,) nats, float64.
    """
    b, m, _, values = joint.shape
    cells = torch.multinomial(joint.flatten(0, 1).flatten(1), n, replacement=True).reshape(b, m, n).mT
    return cells // values, cells % values, label_mi(joint.flatten(0, 1)).reshape(b, m).sum(1).clamp_min(0)
