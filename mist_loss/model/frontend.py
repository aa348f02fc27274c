"""The invariant front end: Gaussianise every feature, whiten each side, align the sides.

Mutual information does not change under invertible maps of x or of y; what such maps can change is removed here
rather than learned. Nothing depends on the order of the rows or of the features, on the shift and scale of a feature,
or, where rows are plenty, on an invertible linear map of a side, as long as it is well conditioned: the map to normal
scores comes after it, and blurs directions of little variance beside large ones (docs/limits.md).
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from mist_loss.model.tracing import may_look

KNOTS = 32  # of the piecewise-linear map to normal scores
TIED = 1e-6  # mean absolute deviations, below which neighbouring knots count as one
STILL = 1e-5  # share of the mean variance of a side's directions, below which one counts as without any


class Canonical(NamedTuple):
    """A sample in its canonical frame: coordinate i of u faces coordinate i of v, strongest correlation first.

    u, v: (b, n, m) with m = min(dx, dy); rho: (b, m) canonical correlations; x, y: (b, n, dx), (b, n, dy) whitened;
    dof_x, dof_y: (b,) mean variance left after shrinkage, 1 where rows are plenty.
    """

    u: Tensor
    v: Tensor
    rho: Tensor
    x: Tensor
    y: Tensor
    dof_x: Tensor
    dof_y: Tensor


def standardize(x: Tensor) -> Tensor:
    """Centre every feature and divide it by its mean absolute deviation, so that any finite scale is safe.

    Args:
        x: (b, n, d) floating point; half precision is raised to float32 first.

    Returns:
        (b, n, d); constant features become zero.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    # divide before averaging: a sum may overflow
    peak = x.detach().abs().amax(1, keepdim=True)
    x = x / torch.where(peak > 0, peak, 1)
    x = x - x.mean(1, keepdim=True)
    deviation = x.abs().mean(1, keepdim=True)
    # what is left of a constant is rounding
    return x / torch.where(deviation > 4 * torch.finfo(x.dtype).eps, deviation, 1)


def ascending(x: Tensor) -> torch.return_types.sort:
    """The values of every feature (b, n, d), sorted: values (b, d, n), and indices of the rows they come from."""
    return x.mT.contiguous().sort(-1)


def gaussianize(x: Tensor, in_order: torch.return_types.sort | None = None) -> Tensor:
    """Map every feature to normal scores through its empirical quantiles.

    The map is piecewise linear through KNOTS sample quantiles, evenly spaced in normal scores. Quantiles are sorted
    values, so gradients pass through the map and through its knots; hard ranks would have none. Ties share the middle
    of the scores they span, which keeps discrete features symmetric.

    Args:
        x: (b, n, d).
        in_order: what ``ascending`` gives of it, where that is known.

    Returns:
        (b, n, d) with values within the normal scores of the smallest and largest of n rows.
    """
    n = x.shape[1]
    ordered, order = in_order or ascending(x)
    top = torch.special.ndtri(torch.full((), 1 - 0.5 / n, dtype=torch.float64, device="cpu"))
    scores = top * torch.linspace(-1, 1, KNOTS, dtype=torch.float64, device="cpu")
    position = (torch.special.ndtr(scores) * n - 0.5).clamp(0, n - 1)
    below = position.floor().long()
    above, share = (below + 1).clamp(max=n - 1).to(x.device), (position - below).to(x)
    knots = torch.lerp(ordered[..., below.to(x.device)], ordered[..., above], share)
    if may_look(x) and bool((ordered.diff() > 0).all() & (knots.detach().diff() >= TIED).all()):
        # Where no values are tied, nor knots, a value of this rank lies between these knots, and nothing is searched.
        # A value on a knot counts as below it, as where it is searched, whatever rounding did to the knot's position.
        upper = torch.searchsorted(position + 1e-6, torch.arange(n, device="cpu").double()).clamp(1, KNOTS - 1)
        start, gap = knots[..., upper - 1], knots.diff()[..., upper - 1]
        middle = torch.zeros_like(ordered).scatter(-1, order, upper - 1 + (ordered - start) / gap)
    else:
        columns = rearrange(x, "b n d -> b d n").contiguous()
        middle = (_place(columns, knots, right=False) + _place(columns, knots, right=True)) / 2
    return rearrange(top.to(x) * (2 / (KNOTS - 1) * middle - 1), "b d n -> b n d")


def _place(columns: Tensor, knots: Tensor, right: bool) -> Tensor:
    """Position among the knots (b, d, KNOTS), counted in knots; ties fall on the first or the last knot they span."""
    index = torch.searchsorted(knots.detach(), columns.detach(), right=right)
    upper = index.clamp(1, KNOTS - 1)
    start, gap = knots.gather(-1, upper - 1), knots.gather(-1, upper)
    gap = gap - start
    tied = gap < TIED
    # no gradient across ties: a slope of 1/0 would drown every other
    fraction = torch.where(tied, 0.0, (columns - start) / torch.where(tied, 1.0, gap))
    return torch.where(index == KNOTS, KNOTS - 1.0, upper - 1 + fraction)


def standard_score(z: Tensor) -> Tensor:
    """Features (b, n, d) with zero mean and unit variance; constant ones stay zero."""
    z = z - z.mean(1, keepdim=True)
    return z / z.square().mean(1, keepdim=True).clamp_min(1e-6).sqrt()


def shrinkage(n: int, d: int) -> float:
    """Share of the identity in the covariance; it vanishes like (d/n)^4, so the invariance is exact in the limit."""
    r = 0.8 * (d / n) ** 4
    return (1e-6 + r) / (1 + r)


def copies_at_rest(z: Tensor) -> Tensor:
    """The same features, without gradients along directions of less variance than STILL times the mean.

    Those of a feature that copies another would be huge, and part the two. The gradient goes through C (C + s)^-1,
    which needs no eigenvectors of the covariance and leaves all others as they are but for s. Where features are as
    many as rows some directions never vary, and shrinkage keeps their gradients small.

    Args:
        z: (b, n, d) centred, float64; on devices without it, float32 is too coarse to tell such directions.

    Returns:
        (b, n, d).
    """
    n, d = z.shape[1:]
    if n <= d or z.dtype != torch.float64 or not z.requires_grad:
        return z
    with torch.no_grad():
        covariance = z.mT @ z / n
        covariance = covariance / covariance.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-6)[:, None, None]
        factor = torch.linalg.cholesky_ex(covariance + STILL * torch.eye(d, device=z.device, dtype=z.dtype)).L
        moving = torch.cholesky_solve(covariance, factor)
    kept = z @ moving
    return kept + (z - kept).detach()


def whiten(z: Tensor, *, at_rest: bool = False) -> Tensor:
    """Centre and decorrelate the features, through the Cholesky factor of the shrunk covariance, in float64.

    Args:
        z: (b, n, d).
        at_rest: whether gradients go through ``copies_at_rest``.

    Returns:
        (b, n, d), float64 (float32 on devices without it), unit covariance where rows are plenty; directions without
        variance become zero.
    """
    n, d = z.shape[1:]
    z = z.to(torch.float32 if z.device.type == "mps" else torch.float64)
    z = z - z.mean(1, keepdim=True)
    if at_rest:
        z = copies_at_rest(z)
    covariance = z.transpose(1, 2) @ z / n
    share = shrinkage(n, d)
    level = covariance.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-6)
    identity = torch.eye(d, device=z.device, dtype=z.dtype)
    shrunk = (1 - share) * covariance + share * level[:, None, None] * identity
    factor = torch.linalg.cholesky_ex(shrunk).L
    return torch.linalg.solve_triangular(factor, z.transpose(1, 2), upper=False).transpose(1, 2)


def align(zx: Tensor, zy: Tensor, *, at_rest: bool = False) -> Canonical:
    """Whiten both sides and rotate them into their canonical frame (Hotelling 1936).

    The rotations are constants for autograd, since mutual information does not depend on them; the correlations
    rho_i = mean(u_i v_i) have the exact gradient of singular values. The sign of a pair is that of its third moment.

    Args:
        zx: (b, n, dx).
        zy: (b, n, dy).
        at_rest: whether gradients go through ``copies_at_rest``: those of sides as they come from outside.

    Returns:
        Canonical, in the dtype of zx.
    """
    n, dtype = zx.shape[1], zx.dtype
    x, y = whiten(zx, at_rest=at_rest), whiten(zy, at_rest=at_rest)
    with torch.no_grad():
        left, _, right = torch.linalg.svd(x.transpose(1, 2) @ y / n, full_matrices=False)
        u, v = x @ left, y @ right.transpose(1, 2)
        sign = torch.where((u**3 + v**3).sum(1) < 0, -1.0, 1.0).to(left)[:, None]
        left, right = left * sign, right.transpose(1, 2) * sign
    u, v = x @ left, y @ right
    rho = (u * v).mean(1)
    dofs = (x.square().mean((1, 2)), y.square().mean((1, 2)))
    return Canonical(*(t.to(dtype) for t in (u, v, rho, x, y, *dofs)))
