"""Pairs of views and encoders whose mutual information stays known while the encoders are trained.

A scenario is a problem for an objective: it draws views, makes a pair of fresh encoders, and says what the codes of any
such pair share. It imports nothing of what trains the estimator.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mist_loss.meta.families import (
    additive_noise,
    additive_noise_mi,
    canonical_normal,
    signed_normal,
    student_mi,
    student_scale,
)
from mist_loss.meta.maps import random_coupling, random_rotation
from mist_loss.meta.structures import canonical_mi, gaussian_mi

MAP_SEED = 11  # of the fixed maps between latents and views
TRUTH_SEED, TRUTH_ROWS = 12, 16384  # of the rows that truths without a formula are averaged over
FIT_ROWS, HELD_ROWS = 8192, 2048  # behind a lower bound, which cannot exceed log HELD_ROWS
CRITIC_DIMS, CRITIC_BATCH = 32, 512
HIDDEN = 64  # of an MLP


class Truth(NamedTuple):
    """What two codes share, in nats: 0-d float64 tensors, equal where the truth is known and not only bounded.

    Where they have a formula they carry gradients to the weights of the encoders.
    """

    low: Tensor
    high: Tensor


class Scenario(Protocol):
    """A problem for an objective.

    direction: "maximize" or "minimize". rows: of a batch. dims: of each code. steps: of the optimiser, at full length.
    """

    @property
    def name(self) -> str:
        """Words for the table."""

    @property
    def kind(self) -> str:
        """Where the truth comes from: gaussian, student, nonlinear, hidden or samples."""

    @property
    def direction(self) -> str:
        """ "maximize" or "minimize"."""

    @property
    def rows(self) -> int:
        """Rows of a batch."""

    @property
    def dims(self) -> int:
        """Dimensions of each code."""

    @property
    def steps(self) -> int:
        """Steps of the optimiser, at full length."""

    @property
    def best(self) -> float:
        """Mutual information in nats of the best codes there are, or an upper bound of it; NaN without either."""

    def encoders(self) -> tuple[nn.Module, nn.Module]:
        """A fresh encoder for each side, from torch's generator."""

    def views(self, n: int) -> tuple[Tensor, Tensor]:
        """n fresh rows of both views, (n, d) each, from torch's generator."""

    def truth(self, first: nn.Module, second: nn.Module) -> Truth:
        """What the codes of these encoders share."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from torch's CPU generator as seeded; the caller's random numbers are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def spectrum(kind: str, views: int, dims: int) -> tuple[float, ...]:
    """Canonical correlations (views,) of two views.

    Args:
        kind: "decaying", from 0.95 to 0.2 over as many as the code has dimensions; "level", 0.6 over twice as many, so
            that no code holds them all; "few", 0.95 and 0.9.
        views: dimensions of a view, at least twice dims.
        dims: dimensions of a code.

    Raises:
        ValueError: an unknown kind, or views narrower than that.
    """
    if views < 2 * dims:
        raise ValueError(
            f"expected views of at least {2 * dims} dimensions for codes of {dims}, got {views}: widen them"
        )
    kinds = {
        "decaying": torch.linspace(0.95, 0.2, dims).tolist(),
        "level": [0.6] * (2 * dims),
        "few": [0.95, 0.9],
    }
    if kind not in kinds:
        raise ValueError(f"expected one of {sorted(kinds)}, got {kind!r}: choose one")
    return tuple(kinds[kind] + [0.0] * (views - len(kinds[kind])))


@dataclass(frozen=True)
class Linear:
    """Linear encoders of jointly Gaussian views, or of jointly Student-t ones: the truth has a formula.

    rho: canonical correlations, one for each dimension of a view. dof: degrees of freedom of a multivariate t with the
    same dispersion, whose common radius adds what no linear code can lose; infinite for Gaussian views.
    """

    name: str
    rho: tuple[float, ...]
    dims: int
    rows: int = 256
    steps: int = 500
    direction: str = "maximize"
    dof: float = math.inf

    @property
    def kind(self) -> str:
        """By the distribution of the views."""
        return "gaussian" if math.isinf(self.dof) else "student"

    @property
    def best(self) -> float:
        """The largest canonical correlations, or none at all, and what the radius adds."""
        top = sorted(self.rho, reverse=True)[: self.dims] if self.direction == "maximize" else [0.0]
        return float(canonical_mi(torch.tensor(top)) + self._radius())

    def encoders(self) -> tuple[nn.Module, nn.Module]:
        """Matrices of normal numbers."""
        return _matrix(len(self.rho), self.dims), _matrix(len(self.rho), self.dims)

    def views(self, n: int) -> tuple[Tensor, Tensor]:
        """Canonical coordinates, each side rotated by a fixed rotation."""
        d = len(self.rho)
        x, y, _ = canonical_normal(torch.tensor(self.rho)[None], n, d, d)
        scale = student_scale(torch.tensor([self.dof]), n) if math.isfinite(self.dof) else torch.ones(1, n, 1)
        turn_x, turn_y = _rotations(d)
        return (scale * x)[0] @ turn_x, (scale * y)[0] @ turn_y

    def truth(self, first: nn.Module, second: nn.Module) -> Truth:
        """Of the joint dispersion of the codes, with gradients to the weights."""
        a, b = (
            encoder.get_parameter("weight").double() @ turn.double().T
            for encoder, turn in zip((first, second), _rotations(len(self.rho)), strict=True)
        )
        cross = (a * torch.tensor(self.rho, dtype=torch.float64)) @ b.T
        joint = torch.cat([torch.cat([a @ a.T, cross], 1), torch.cat([cross.T, b @ b.T], 1)])
        nats = gaussian_mi(joint[None], self.dims)[0] + self._radius()
        return Truth(nats, nats)

    def _radius(self) -> Tensor:
        if math.isinf(self.dof):
            return torch.zeros((), dtype=torch.float64)
        return student_mi(torch.tensor([self.dof]), self.dims, self.dims)[0]


@dataclass(frozen=True)
class Nonlinear:
    """MLP encoders of latents behind fixed invertible maps: the latents bound what any code can share.

    The first coordinates of the latents depend pair by pair, the others are free noise. strength: of each pair, a
    correlation, or, with additive=True, the half-width of the uniform noise that a uniform variable is seen through.
    The lower bound of the truth is what held-out rows certify, see ``certified``.
    """

    name: str
    strength: tuple[float, ...]
    view_dims: int
    dims: int
    rows: int = 256
    steps: int = 500
    direction: str = "maximize"
    additive: bool = False
    kind = "nonlinear"

    @property
    def best(self) -> float:
        """What the latents share."""
        strength = torch.tensor(self.strength)
        return float(additive_noise_mi(strength) if self.additive else canonical_mi(strength))

    def encoders(self) -> tuple[nn.Module, nn.Module]:
        """MLPs with two hidden layers."""
        return _mlp(self.view_dims, self.dims), _mlp(self.view_dims, self.dims)

    def views(self, n: int) -> tuple[Tensor, Tensor]:
        """Latents, each side bent by its own fixed map."""
        d, strength = self.view_dims, torch.tensor(self.strength)[None]
        if self.additive:
            x, y = (math.sqrt(12) * (t - 0.5) for t in additive_noise(strength, n, d, d)[:2])  # of about unit scale
        else:
            free = torch.zeros(1, d - strength.shape[1])
            x, y = canonical_normal(torch.cat([strength, free], dim=1), n, d, d)[:2]
        return bend(x, MAP_SEED)[0], bend(y, MAP_SEED + 1)[0]

    @torch.no_grad()
    def truth(self, first: nn.Module, second: nn.Module) -> Truth:
        """Between what fresh rows certify and what the latents share."""
        with seeded(TRUTH_SEED):
            x, y = self.views(FIT_ROWS + HELD_ROWS)
        best = torch.tensor(self.best, dtype=torch.float64)
        return Truth(certified(first(x), second(y)).clamp(min=0.0).minimum(best), best)


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
    steps: int = 500
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
        encoder = _matrix(self.view_dims, self.dims)
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


@dataclass(frozen=True)
class Samples:
    """No encoder: two independent normal samples, whose numbers are themselves what is trained.

    The rows come from no distribution any more. Whatever they show, they are n pairs: told apart perfectly, the pairs
    share log n nats, and no estimate above that can be defended. ``repaired`` in the results says what is left when the
    rows are paired at random, which should be nothing.
    """

    name: str
    dims: int
    rows: int = 256
    steps: int = 500
    direction: str = "maximize"
    kind = "samples"

    @property
    def best(self) -> float:
        """Undefined: there is nothing to reach."""
        return math.nan

    def encoders(self) -> tuple[nn.Module, nn.Module]:
        """The samples."""
        return _Sample(self.rows, self.dims), _Sample(self.rows, self.dims)

    def views(self, n: int) -> tuple[Tensor, Tensor]:
        """Nothing to read."""
        return torch.empty(n, 0), torch.empty(n, 0)

    def truth(self, first: nn.Module, second: nn.Module) -> Truth:
        """Between nothing and log n."""
        nothing = torch.zeros((), dtype=torch.float64)
        return Truth(nothing, nothing + math.log(self.rows))


class _Sample(nn.Module):
    def __init__(self, rows: int, dims: int):
        super().__init__()
        self.rows = nn.Parameter(torch.randn(rows, dims))

    def forward(self, views: Tensor) -> Tensor:
        return self.rows


def bend(latents: Tensor, seed: int) -> Tensor:
    """A fixed invertible map for each seed: three coupling layers, each after a rotation. (1, n, d) -> (1, n, d)."""
    with seeded(seed):
        for _ in range(3):
            latents = random_coupling(latents @ random_rotation(1, latents.shape[2], latents.device))
    return latents


def certified(z1: Tensor, z2: Tensor, steps: int = 150) -> Tensor:
    """A lower bound of I(z1; z2), in expectation: a critic is fitted to some rows, InfoNCE on the others scores it.

    InfoNCE is a lower bound whatever the critic (Poole et al. 2019, arXiv 1905.06922). This one is the scalar product
    of two MLPs of the normal scores of the codes, trained by InfoNCE itself.

    Args:
        z1: (n, d1) codes, more than HELD_ROWS.
        z2: (n, d2) codes, row by row with z1.
        steps: of the critic's optimiser.

    Returns:
        0-d nats, float64, at most log HELD_ROWS; below 0 if the critic is worse than none.
    """
    fit = len(z1) - HELD_ROWS
    z1, z2 = (normal_scores(z[:fit], z).float() for z in (z1, z2))
    with seeded(TRUTH_SEED), torch.enable_grad():
        first, second = (_mlp(z.shape[1], CRITIC_DIMS) for z in (z1, z2))
        optimizer = torch.optim.Adam([*first.parameters(), *second.parameters()], lr=5e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            rows = torch.randint(fit, (CRITIC_BATCH,))
            optimizer.zero_grad()
            (-_infonce(first(z1[rows]), second(z2[rows]))).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return _infonce(first(z1[fit:]), second(z2[fit:])).double()


def _infonce(left: Tensor, right: Tensor) -> Tensor:
    scores = left @ right.T
    return (scores.diagonal() - scores.logsumexp(dim=1)).mean() + math.log(len(left))


def normal_scores(reference: Tensor, values: Tensor) -> Tensor:
    """Normal quantiles of the ranks of values (m, d) among reference (n, d), column by column, in float64."""
    ordered = reference.double().T.contiguous().sort(dim=1).values
    columns = values.double().T.contiguous()
    rank = (torch.searchsorted(ordered, columns) + torch.searchsorted(ordered, columns, right=True)) / 2
    return torch.special.ndtri((rank + 0.5) / (len(reference) + 1)).T


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


def _matrix(views: int, dims: int) -> nn.Linear:
    encoder = nn.Linear(views, dims, bias=False)
    nn.init.normal_(encoder.weight, std=1 / math.sqrt(views))
    return encoder


def _mlp(views: int, dims: int) -> nn.Module:
    first, second, last = nn.Linear(views, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, dims)
    return nn.Sequential(first, nn.GELU(), second, nn.GELU(), last)


def _rotations(d: int) -> tuple[Tensor, Tensor]:
    with seeded(MAP_SEED):
        turns = random_rotation(2, d, torch.device("cpu"))
    return turns[0], turns[1]


QUICK: tuple[Scenario, ...] = (
    Linear("Gaussian, decaying", spectrum("decaying", 24, 8), dims=8),
    Linear("Gaussian, removed", spectrum("decaying", 24, 8), dims=8, direction="minimize"),
    Hidden("signs, removed", "signs", dims=2, view_dims=6),
)
FULL: tuple[Scenario, ...] = (
    *QUICK,
    Linear("Gaussian, decaying, small", spectrum("decaying", 12, 4), dims=4, rows=64),
    Linear("Gaussian, level", spectrum("level", 32, 16), dims=16, rows=512),
    Linear("Gaussian, few strong", spectrum("few", 24, 8), dims=8),
    Linear("Gaussian, wide", spectrum("decaying", 64, 32), dims=32, rows=1024),
    Linear("Student-t, 3 dof", spectrum("decaying", 12, 4), dims=4, dof=3.0),
    Linear("Student-t, 6 dof", spectrum("decaying", 24, 8), dims=8, rows=512, dof=6.0),
    Nonlinear("bent", (0.95, 0.9, 0.8, 0.6), view_dims=8, dims=4),
    Nonlinear("bent, wide", spectrum("decaying", 16, 8)[:8], view_dims=16, dims=8, rows=512),
    Nonlinear("bent additive noise", (0.15, 0.3, 0.6), view_dims=6, dims=3, additive=True),
    Linear("Gaussian, removed, small", spectrum("decaying", 8, 4), dims=4, rows=128, direction="minimize"),
    Hidden("radii, removed", "radii", dims=2, view_dims=6),
    Samples("free samples", dims=4),
)
