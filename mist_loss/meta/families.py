"""Base distributions with known mutual information, sampled in batches on any device.

Samplers draw from torch's global generator, as torch.distributions does: seed with ``torch.manual_seed``.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mist_loss.meta.structures import canonical_mi, gaussian_mi


class Problem(NamedTuple):
    """Sets of paired rows with the mutual information of the distribution they come from.

    x: (b, n, dx); y: (b, n, dy); mi: (b,) nats.
    """

    x: Tensor
    y: Tensor
    mi: Tensor


# A family draws b problems with random parameters: (b, n, dx, dy, device) -> Problem
Family = Callable[[int, int, int, int, torch.device], Problem]


def normal(correlation: Tensor, n: int, dx: int) -> Problem:
    """n rows from each zero-mean Gaussian; the first dx coordinates are x.

    Args:
        correlation: (b, d, d) positive definite covariance or correlation matrices.
        n: rows of each set.
        dx: dimensions of x.
    """
    b, d, _ = correlation.shape
    factor = torch.linalg.cholesky(correlation.double()).to(torch.float32)
    rows = torch.randn(b, n, d, device=correlation.device) @ factor.transpose(1, 2)
    return Problem(rows[..., :dx], rows[..., dx:], gaussian_mi(correlation, dx).float())


def canonical_normal(rho: Tensor, n: int, dx: int, dy: int) -> Problem:
    """Gaussian pairs in their canonical frame: coordinate i of x and of y correlate with rho_i, the rest is noise.

    Args:
        rho: (b, min(dx, dy)) canonical correlations in [0, 1).
        n: rows of each set.
        dx: dimensions of x.
        dy: dimensions of y.
    """
    b, m = rho.shape
    x = torch.randn(b, n, dx, device=rho.device)
    y = torch.randn(b, n, dy, device=rho.device)
    r = rho[:, None]
    y[..., :m] = r * x[..., :m] + (1 - r**2).sqrt() * y[..., :m]
    return Problem(x, y, canonical_mi(rho).float())


def student_scale(dof: Tensor, n: int) -> Tensor:
    """(b, n, 1) factors that turn Gaussian rows into Student-t rows, x and y together: sqrt(dof / chi^2_dof)."""
    half = (dof / 2)[:, None].expand(-1, n)
    chi2 = 2 * torch.distributions.Gamma(half, torch.ones_like(half)).sample()
    return (dof[:, None] / chi2.clamp_min(1e-30)).sqrt()[..., None]


def student_mi(dof: Tensor, dx: int, dy: int) -> Tensor:
    """What the common scale of a Student-t adds to the Gaussian mutual information of its dispersion matrix.

    h(x) + h(y) - h(x, y) of the standard multivariate t, whose entropy is known (Czyz et al. 2023, appendix).

    Args:
        dof: (b,) degrees of freedom, positive.
        dx: dimensions of x.
        dy: dimensions of y.

    Returns:
        (b,) nats, float64.
    """
    nu = dof.double()

    def entropy(d: int) -> Tensor:
        half = (nu + d) / 2
        digammas = torch.digamma(half) - torch.digamma(nu / 2)
        return torch.lgamma(nu / 2) - torch.lgamma(half) + d / 2 * torch.log(nu * math.pi) + half * digammas

    return entropy(dx) + entropy(dy) - entropy(dx + dy)


def with_student_scale(problem: Problem, dof: Tensor) -> Problem:
    """Turn Gaussian problems into Student-t ones: one random scale for each row, shared by x and y."""
    x, y, mi = problem
    scale = student_scale(dof, x.shape[1])
    return Problem(x * scale, y * scale, mi + student_mi(dof, x.shape[2], y.shape[2]).float())


def student(correlation: Tensor, dof: Tensor, n: int, dx: int) -> Problem:
    """n rows from each multivariate Student-t with the given dispersion (b, d, d) and degrees of freedom (b,)."""
    return with_student_scale(normal(correlation, n, dx), dof)


def additive_noise_mi(epsilon: Tensor) -> Tensor:
    """I(X; X + N), X uniform on (0, 1), N on (-epsilon, epsilon), summed over the coordinates: (b, m) -> (b,)."""
    e = epsilon.double()
    return torch.where(e > 0.5, 1 / (4 * e), e - torch.log(2 * e)).sum(-1)


def additive_noise(epsilon: Tensor, n: int, dx: int, dy: int) -> Problem:
    """y_i = x_i + uniform noise for i < min(dx, dy); the remaining coordinates are independent uniforms.

    Args:
        epsilon: (b, min(dx, dy)) half-widths of the noise.
        n: rows of each set.
        dx: dimensions of x.
        dy: dimensions of y.
    """
    b, m = epsilon.shape
    x = torch.rand(b, n, dx, device=epsilon.device)
    y = torch.rand(b, n, dy, device=epsilon.device)
    y[..., :m] = x[..., :m] + epsilon[:, None] * (2 * y[..., :m] - 1)
    return Problem(x, y, additive_noise_mi(epsilon).float())


def signed_mi(rho: Tensor, flip: Tensor, nodes: int = 48) -> Tensor:
    """Mutual information of signed Gaussian pairs, by Gauss-Hermite quadrature of the log density ratio.

    A pair has correlation rho with probability 1 - flip and -rho with probability flip; both marginals are standard
    normal, so the density ratio is (1 - flip) c(rho) + flip c(-rho) with c the Gaussian copula density.

    Args:
        rho: (...,) correlations in [0, 1).
        flip: (...,) probabilities in [0, 1].
        nodes: quadrature nodes for each of the two dimensions.

    Returns:
        (...,) nats, float64.
    """
    points, weights = _hermite_rule(nodes)
    points, weights = points.to(rho.device), weights.to(rho.device)
    r, p = rho.double()[..., None, None], flip.double()[..., None, None]
    u, noise = points[:, None], points
    total = torch.zeros_like(rho, dtype=torch.float64)
    for sign, probability in ((1.0, 1 - p), (-1.0, p)):
        v = sign * r * u + (1 - r**2).sqrt() * noise
        # log copula density of +rho, and how far that of -rho lies from it
        base = -0.5 * torch.log1p(-(r**2)) - (r**2 * (u**2 + v**2) - 2 * r * u * v) / (2 * (1 - r**2))
        other = base - 2 * r * u * v / (1 - r**2)
        ratio = torch.logaddexp(base + torch.log(1 - p), other + torch.log(p))
        total = total + (probability * ratio * weights[:, None] * weights).sum((-2, -1))
    return total


def _hermite_rule(nodes: int) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes and weights for the standard normal, from the Jacobi matrix (Golub & Welsch 1969)."""
    off = torch.arange(1, nodes, dtype=torch.float64).sqrt()
    points, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return points, vectors[0] ** 2


def signed_normal(rho: Tensor, flip: Tensor, n: int, dx: int, dy: int) -> Problem:
    """Gaussian pairs whose correlation changes sign at random, row by row and pair by pair.

    At flip = 1/2 the dependence is invisible to correlation.

    Args:
        rho: (b, min(dx, dy)) correlations in [0, 1).
        flip: (b,) probability of a negative sign.
        n: rows of each set.
        dx: dimensions of x.
        dy: dimensions of y.
    """
    m = rho.shape[1]
    x, y, _ = canonical_normal(rho, n, dx, dy)
    sign = 1 - 2 * (torch.rand_like(x[..., :m]) < flip[:, None, None]).float()
    y = torch.cat([y[..., :m] * sign, y[..., m:]], dim=-1)
    return Problem(x, y, signed_mi(rho, flip[:, None].expand_as(rho)).sum(-1).float())


def radial(rho: Tensor, spread: Tensor, n: int, dx: int, dy: int) -> Problem:
    """Rows that point anywhere: only their lengths depend, log-normal with a correlation of either sign.

    Args:
        rho: (b,) correlations of the logarithms of the lengths, in (-1, 1).
        spread: (b, 2) standard deviations of these logarithms, of x and of y.
        n: rows of each set.
        dx: dimensions of x.
        dy: dimensions of y.
    """
    b = len(rho)
    r = rho[:, None]
    g = torch.randn(b, n, device=rho.device)
    h = r * g + (1 - r**2).sqrt() * torch.randn(b, n, device=rho.device)
    sides = []
    for length, d, s in ((g, dx, spread[:, :1]), (h, dy, spread[:, 1:])):
        direction = torch.randn(b, n, d, device=rho.device)
        direction = direction / direction.norm(dim=2, keepdim=True).clamp_min(1e-12) * math.sqrt(d)
        sides.append(torch.exp(s * length)[..., None] * direction)
    return Problem(sides[0], sides[1], canonical_mi(rho[:, None]).float())


def modulated(rho: Tensor, spread: Tensor, n: int, dx: int, dy: int) -> Problem:
    """Coordinates of y that depend on the lengths of groups of coordinates of x, which point anywhere.

    The logarithm of a length and its coordinate of y are jointly normal. Nothing of y correlates with x itself.

    Args:
        rho: (b, m) correlations in [0, 1) of m lengths with the first m coordinates of y; m at most min(dx, dy).
        spread: (b,) standard deviation of the logarithms.
        n: rows of each set.
        dx: dimensions of x; what m does not divide is free noise.
        dy: dimensions of y.
    """
    b, m = rho.shape
    lengths, y, mi = canonical_normal(rho, n, m, dy)
    groups = torch.randn(b, n, m, dx // m, device=rho.device)
    groups = groups / groups.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
    groups = torch.exp(spread[:, None, None] * lengths)[..., None] * groups
    rest = torch.randn(b, n, dx - dx // m * m, device=rho.device)
    return Problem(torch.cat([groups.flatten(2), rest], dim=-1), y, mi)
