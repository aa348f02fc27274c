"""Correlation structures of joint Gaussians and the mutual information they imply.

All matrices order the coordinates as x first, y second. Sources: Czyz et al., "Beyond Normal" (NeurIPS 2023), whose
latent-variable parametrisation is used by MIST (arXiv 2511.18945).
"""

import torch
from torch import Tensor


def dense_correlation(off_diag: Tensor, dx: int, dy: int) -> Tensor:
    """Every pair of coordinates has the same correlation.

    Args:
        off_diag: (b,) the common correlation, in [0, 1).
        dx: dimensions of x.
        dy: dimensions of y.

    Returns:
        (b, dx + dy, dx + dy) correlation matrices.
    """
    eye = torch.eye(dx + dy, device=off_diag.device, dtype=off_diag.dtype)
    r = off_diag[:, None, None]
    return eye * (1 - r) + r


def latent_correlation(
    dx: int, dy: int, interacting: Tensor, alpha: Tensor, lambd: Tensor, beta: Tensor, eta: Tensor
) -> Tensor:
    """Latent-variable structure: shared factors, paired coordinates and private noise, scaled to unit variance.

    Coordinate i of x is ``eps_i + alpha U + beta U_x + lambd Z_i`` for i < interacting, and has ``eta V_i`` in
    place of the last term elsewhere; y is built alike with the same U and Z and its own U_y and W.
    Sparse and 2-pair structures are the case alpha = beta = 0, eta = lambd.

    Args:
        dx: dimensions of x.
        dy: dimensions of y.
        interacting: (b,) integer number of paired coordinates, at most min(dx, dy).
        alpha: (b,) weight of the factor shared by all coordinates.
        lambd: (b,) weight of the factor shared by a pair.
        beta: (b,) weight of the factor shared within each side.
        eta: (b,) weight of the extra noise of the coordinates that are not paired.

    Returns:
        (b, dx + dy, dx + dy) correlation matrices.
    """
    m = min(dx, dy)
    column = torch.arange(max(dx, dy), device=alpha.device)
    paired = (column < interacting[:, None]).to(alpha.dtype)  # (b, max(dx, dy))
    private = 1 + paired * lambd[:, None] ** 2 + (1 - paired) * eta[:, None] ** 2
    covariance = (alpha**2)[:, None, None].repeat(1, dx + dy, dx + dy)
    covariance[:, :dx, :dx] += (beta**2)[:, None, None]
    covariance[:, dx:, dx:] += (beta**2)[:, None, None]
    covariance += torch.diag_embed(torch.cat([private[:, :dx], private[:, :dy]], dim=1))
    i = torch.arange(m, device=alpha.device)
    shared = paired[:, :m] * lambd[:, None] ** 2
    covariance[:, i, dx + i] += shared
    covariance[:, dx + i, i] += shared
    scale = covariance.diagonal(dim1=1, dim2=2).rsqrt()
    return covariance * scale[:, :, None] * scale[:, None, :]


def gaussian_mi(correlation: Tensor, dx: int) -> Tensor:
    """Mutual information of a joint Gaussian: half of log det S_x + log det S_y - log det S.

    Args:
        correlation: (b, d, d) positive definite covariance or correlation matrices.
        dx: number of leading coordinates that belong to x.

    Returns:
        (b,) nats, computed in float64.
    """
    s = correlation.double()
    return 0.5 * (torch.logdet(s[:, :dx, :dx]) + torch.logdet(s[:, dx:, dx:]) - torch.logdet(s))


def canonical_mi(rho: Tensor) -> Tensor:
    """Mutual information of Gaussians from canonical correlations (b, m): -1/2 sum log(1 - rho^2) -> (b,) nats."""
    return -0.5 * torch.log1p(-(rho.double() ** 2)).sum(-1)
