"""Dependence that no correlation shows: codes whose density is a mixture of Gaussians."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mist_loss.evaluation.scenarios.encoders import matrix
from mist_loss.evaluation.scenarios.problem import TRUTH_SEED, Truth
from mist_loss.meta.families import signed_normal, student_scale
from mist_loss.seeding import seeded

TRUTH_ROWS = 16384  # that the truth is averaged over


@dataclass(frozen=True)
class Hidden:
    """Linear encoders, started where their codes share what no correlation shows and free to read other coordinates.

    how: "signs", Gaussian pairs whose correlation rho changes sign from row to row, or "radii", normal rows scaled by
    the radius of a Student-t with dof degrees of freedom, the same on both sides. The first dims coordinates of a
    view are dependent like that, the others free noise. The density of linear codes is a mixture of Gaussians, so the
    truth is the mean of its exact log ratio over many rows.
    """

    name: str
    how: str
    dims: int
    view_dims: int
    rows: int = 256
    steps: int = 1000
    rho: float = 0.85
    dof: float = 2.0
    direction: str = "minimize"
    kind = "hidden"

    @property
    def best(self) -> float:
        """Nothing shared."""
        return 0.0

    def encoders(self) -> tuple[nn.Module, nn.Module]:
        """Matrices that read the dependent coordinates and, half as strongly, mixtures of the free ones."""
        return self._encoder(), self._encoder()

    def views(self, n: int) -> tuple[Tensor, Tensor]:
        """Dependent coordinates, then free ones."""
        m, free = self.dims, self.view_dims - self.dims
        if self.how == "signs":
            x, y, _ = signed_normal(
                torch.full((1, m), self.rho), torch.tensor([0.5]), n, self.view_dims, self.view_dims
            )
            return x[0], y[0]
        scale = student_scale(torch.tensor([self.dof]), n)[0]
        x, y = (torch.cat([scale * torch.randn(n, m), torch.randn(n, free)], dim=1) for _ in range(2))
        return x, y

    @torch.no_grad()
    def truth(self, first: nn.Module, second: nn.Module) -> Truth:
        """The mean log density ratio over many rows; its standard error is at most 0.01 nats, less near none."""
        with seeded(TRUTH_SEED):
            x, y = self.views(TRUTH_ROWS)
        a, b = (encoder.get_parameter("weight").double() for encoder in (first, second))
        log_weights, covariances = self._components(a, b)
        nats = mixture_mi(first(x).double(), second(y).double(), log_weights, covariances).clamp(min=0.0)
        return Truth(nats, nats)

    def _encoder(self) -> nn.Module:
        encoder = matrix(self.view_dims, self.dims)
        with torch.no_grad():
            encoder.weight.mul_(0.5)
            encoder.weight[:, : self.dims] = torch.eye(self.dims)
        return encoder

    def _components(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Log weights (k,) and joint covariances (k, 2 dims, 2 dims) of codes with matrices a and b (dims, views)."""
        m = self.dims
        if self.how == "signs":
            signs = torch.cartesian_prod(*[torch.tensor([1.0, -1.0], dtype=torch.float64)] * m).reshape(-1, m)
            cross = a[:, :m] @ torch.diag_embed(self.rho * signs) @ b[:, :m].T
            xx, yy = ((t @ t.T).expand_as(cross) for t in (a, b))
            log_weights = torch.full((len(signs),), -m * math.log(2.0), dtype=torch.float64)
        else:
            log_weights, squares = _student_radii(self.dof)
            xx, yy = (squares * (t[:, :m] @ t[:, :m].T) + t[:, m:] @ t[:, m:].T for t in (a, b))
            cross = torch.zeros_like(xx)
        rows = torch.cat([xx, cross], dim=2), torch.cat([cross.mT, yy], dim=2)
        return log_weights, torch.cat(rows, dim=1)


def mixture_mi(z1: Tensor, z2: Tensor, log_weights: Tensor, covariances: Tensor) -> Tensor:
    """Monte Carlo mean of the exact log density ratio of a mixture of k zero-mean Gaussians over (z1, z2).

    Args:
        z1: (n, d1) rows of the mixture.
        z2: (n, d2) likewise.
        log_weights: (k,).
        covariances: (k, d1 + d2, d1 + d2).

    Returns:
        0-d nats.
    """
    d = z1.shape[1]
    joint = _log_density(torch.cat([z1, z2], dim=1), log_weights, covariances)
    first = _log_density(z1, log_weights, covariances[:, :d, :d])
    second = _log_density(z2, log_weights, covariances[:, d:, d:])
    return (joint - first - second).mean()


def _log_density(z: Tensor, log_weights: Tensor, covariances: Tensor) -> Tensor:
    """(n,) log densities at z (n, d)."""
    factors = torch.linalg.cholesky(covariances)
    squares = torch.stack([torch.linalg.solve_triangular(f, z.T, upper=False).square().sum(0) for f in factors])
    log_det = 2 * factors.diagonal(dim1=1, dim2=2).log().sum(1)
    constant = log_weights - (log_det + z.shape[1] * math.log(2 * math.pi)) / 2
    return torch.logsumexp(constant[:, None] - squares / 2, dim=0)


def _student_radii(dof: float, nodes: int = 80) -> tuple[Tensor, Tensor]:
    """Log weights (k,) and squared radii (k, 1, 1) of a Student-t: the trapezoid rule over the logarithm of chi^2 / 2.

    The integrand falls off on both sides, so that equal weights of equally spaced nodes converge very fast.
    """
    v = torch.linspace(-24.0 / dof, 5.0, nodes, dtype=torch.float64)
    log_weights = v * dof / 2 - v.exp()
    return log_weights - log_weights.logsumexp(0), (dof / (2 * v.exp()))[:, None, None]
