"""Rows of unit length, as contrastive losses make them: pairs on spheres, and maps onto spheres and of spheres.

Of x spread evenly and y drawn around it by the law of von Mises and Fisher, the density ratio is
exp(kappa x . y) / Z(kappa), the model behind InfoNCE (Wang & Isola 2020, arXiv 2005.10242).
"""

import math

import torch
from torch import Tensor

from mist_loss.meta.families import Problem
from mist_loss.meta.maps import random_linear


def directions(b: int, n: int, d: int, device: torch.device) -> Tensor:
    """(b, n, d) rows of unit length, even over the sphere."""
    return unit(torch.randn(b, n, d, device=device))


def unit(t: Tensor) -> Tensor:
    """Rows (b, n, d) divided by their lengths."""
    return t / t.norm(dim=2, keepdim=True).clamp_min(1e-12)


def angles(kappa: Tensor, d: int, cells: int = 4096) -> tuple[Tensor, Tensor, Tensor]:
    """Angle between the rows of a pair: midpoints of cells (cells,), their chances (b, cells), and the information.

    Args:
        kappa: (b,) concentrations, not negative.
        d: dimensions, at least 2.
        cells: of (0, pi).

    Returns:
        All float64; the mutual information (b,) is kappa E[cos] - log Z(kappa), in nats.
    """
    theta = (torch.arange(cells, dtype=torch.float64, device=kappa.device) + 0.5) * math.pi / cells
    base = torch.log_softmax((d - 2) * theta.sin().log(), dim=0)
    tilted = base + kappa.double()[:, None] * theta.cos()
    log_z = tilted.logsumexp(1)
    chance = (tilted - log_z[:, None]).exp()
    mi = kappa.double() * (chance * theta.cos()).sum(1) - log_z
    return theta, chance, mi.clamp_min(0)


def von_mises_fisher(kappa: Tensor, n: int, d: int) -> Problem:
    """x even over the unit sphere, y around it with concentration kappa.

    Args:
        kappa: (b,), not negative.
        n: rows of each set.
        d: dimensions of both, at least 2.
    """
    b, device = len(kappa), kappa.device
    theta, chance, mi = angles(kappa, d)
    cell = torch.multinomial(chance, n, replacement=True)
    width = math.pi / len(theta)
    angle = (theta[cell] + width * (torch.rand(b, n, dtype=theta.dtype, device=device) - 0.5)).float()[..., None]
    x = directions(b, n, d, device)
    across = torch.randn(b, n, d, device=device)
    across = unit(across - (across * x).sum(2, keepdim=True) * x)
    return Problem(x, unit(angle.cos() * x + angle.sin() * across), mi.float())


def stretched(t: Tensor) -> Tensor:
    """Unit rows (b, n, d) after a random linear map and back to unit length: an invertible map of the sphere."""
    return unit(t @ random_linear(t.shape[0], t.shape[2], t.device))


def shown(t: Tensor, d: int) -> Tensor:
    """Points of circles (b, m, n, 2) as columns (b, n, at most d): any of them as such, the others by their angles.

    The angles are cut where the circle happens to be cut, and points lie near the circle as often as on it: how far
    from its middle says nothing.

    Args:
        t: unit rows, of m circles.
        d: columns there are, at least m.
    """
    b, m, n, _ = t.shape
    points = int(torch.randint(min(m, d - m) + 1, ()))
    turn = math.pi * (2 * torch.rand(b, m, 1, device=t.device) - 1)
    angle = torch.atan2(t[..., 1], t[..., 0]) + turn
    spread = 0.3 * torch.rand(b, 1, 1, device=t.device) * (torch.rand(b, 1, 1, device=t.device) < 0.5)
    radius = torch.exp(spread * torch.randn(b, points, n, device=t.device))
    number, point = torch.remainder(angle[:, points:], 2 * math.pi), angle[:, :points]
    return torch.cat([radius * point.cos(), radius * point.sin(), number], dim=1).transpose(1, 2)


def beside(t: Tensor, d: int) -> Tensor:
    """Unit rows (b, n, k) beside free directions, of unit length together: (b, n, d), d at least k.

    The share of the length that is free differs from row to row and says nothing.
    """
    b, n, k = t.shape
    if d == k:
        return t
    other = directions(b, n, d - k, t.device)
    whole = torch.randn(b, n, d, device=t.device)
    share = whole[..., :k].norm(dim=2, keepdim=True) / whole.norm(dim=2, keepdim=True).clamp_min(1e-12)
    return torch.cat([share * t, (1 - share**2).clamp_min(0).sqrt() * other], dim=2)


def onto_sphere(t: Tensor, size: Tensor) -> Tensor:
    """Inverse stereographic projection: (b, n, d) -> unit rows (b, n, d + 1), of which nothing is lost.

    Args:
        t: of any scale; the root mean square of its rows' lengths becomes ``size``.
        size: (b,); about 1 fills the sphere, far smaller or larger ones crowd at a pole.
    """
    t = t - t.mean(1, keepdim=True)
    deviation = t.square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-12)
    t = t / deviation * size[:, None, None] / math.sqrt(t.shape[2])
    square = t.square().sum(2, keepdim=True)
    return torch.cat([2 * t, square - 1], dim=2) / (1 + square)
