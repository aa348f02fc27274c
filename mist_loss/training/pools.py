"""Pairs of encoders that ascend an estimate, with what is known of the mutual information of their codes.

Linear encoders of Gaussian or Student-t views have a closed form at every step; half of those that ascend are followed
by trainable invertible layers, which can change the estimate but not the mutual information. Networks have bounds:
no code shares more than the latents of the views, nor less than a critic tells apart on fresh rows. Rows without any
encoder are only bounded above.
"""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from mist_loss.meta.families import canonical_normal, student_mi, student_scale
from mist_loss.meta.maps import random_coupling, random_rotation
from mist_loss.meta.structures import canonical_mi
from mist_loss.model.frontend import gaussianize, standardize, whiten
from mist_loss.seeding import seeded

BEND = 16  # hidden units of a coupling layer
HIDDEN = 64  # units of each hidden layer of a network
FIT_ROWS, HELD_ROWS = 1536, 1024  # behind the lower bound


class Trial(NamedTuple):
    """What the encoders of one pool share.

    Rows, dimensions of codes and views, Adam's step size, visits they live; guided: they follow the pull or push of a
    criterion too, which leads them through other codes.
    """

    rows: int
    dx: int
    dy: int
    views: int
    lr: float
    life: int
    guided: bool


class Codes(NamedTuple):
    """x (b, n, dx) and y (b, n, dy), attached to their encoders, and bounds (b,) of what they share, in nats."""

    x: Tensor
    y: Tensor
    low: Tensor
    high: Tensor


class Pool(nn.Module):
    """b pairs of encoders of one trial, each with its own latents. Subclasses add the encoders and ``draw``.

    rho: (b, views) canonical correlations of the latents. sign: (b,) 1 for encoders that ascend, -1 for the others.
    """

    def __init__(self, trial: Trial, rho: Tensor, sign: Tensor):
        super().__init__()
        self.trial, self.rho, self.sign = trial, rho, sign

    def draw(self) -> Codes:
        """Codes of fresh views, attached to the encoders' graph."""
        raise NotImplementedError

    def step(self, codes: tuple[Tensor, Tensor], gradients: tuple[Tensor, Tensor]) -> None:
        """One step of Adam, given the gradient of the estimates, summed over the sets, with respect to the codes."""
        self.optimizer.zero_grad()
        torch.autograd.backward(codes, [self.sign[:, None, None] * g for g in gradients])
        self.optimizer.step()

    def _optimise(self) -> None:
        self.optimizer = torch.optim.Adam(self.parameters(), lr=self.trial.lr, maximize=True)


class Coupling(nn.Module):
    """Two trainable affine coupling layers for each of b encoders, the identity where ``bent`` (b,) is 0."""

    bent: Tensor

    def __init__(self, bent: Tensor, d: int):
        super().__init__()
        b, k = len(bent), d // 2
        self.register_buffer("bent", bent)
        self.inner, self.outer = nn.ParameterList(), nn.ParameterList()
        for known, changed in ((k, d - k), (d - k, k)):
            self.inner.append(torch.randn(b, known, BEND, device=bent.device) / math.sqrt(known))
            self.outer.append(0.1 * torch.randn(b, BEND, 2 * changed, device=bent.device))

    def forward(self, z: Tensor) -> Tensor:
        """Scale and shift each half by a function of the other: (b, n, d) -> (b, n, d)."""
        first, second = z[..., : z.shape[2] // 2], z[..., z.shape[2] // 2 :]
        for inner, outer in zip(self.inner, self.outer, strict=True):
            log_scale, shift = (self.bent[:, None, None] * (torch.tanh(first @ inner) @ outer)).chunk(2, dim=-1)
            first, second = second * torch.exp(torch.tanh(log_scale)) + shift, first
        return torch.cat([first, second], dim=-1)


class LinearPool(Pool):
    """Linear encoders, up two times out of three, else down; half of those that ascend are bent.

    They start anywhere between random weights and the leading latents, which no code of their dimensions can beat: a
    life is too short to get there in many dimensions.

    Args:
        trial: what they share.
        b: how many.
        device: where.
    """

    def __init__(self, trial: Trial, b: int, device: torch.device):
        top = 0.3 + 0.69 * torch.rand(b, 1, device=device)
        decay = torch.exp(-torch.arange(trial.views, device=device) * torch.rand(b, 1, device=device) ** 2)
        heavy = torch.rand(b, device=device) < 0.25
        dof = torch.where(heavy, 1 + 9 * torch.rand(b, device=device), math.inf)
        sign = torch.where(torch.rand(b, device=device) < 2 / 3, 1.0, -1.0)
        super().__init__(trial, top * decay, sign)
        self.dof = dof
        # only upwards: a bend that hides dependence teaches nothing but doubt about all that looks independent
        bent = ((torch.rand(b, device=device) < 0.5) & (self.sign > 0)).float()
        along = torch.rand(b, 1, 1, device=device)
        self.to_x, self.to_y = (
            nn.Parameter(
                along * torch.eye(d, trial.views, device=device)
                + (1 - along) * torch.randn(b, d, trial.views, device=device) / math.sqrt(trial.views)
            )
            for d in (trial.dx, trial.dy)
        )
        self.bend_x, self.bend_y = Coupling(bent, trial.dx), Coupling(bent, trial.dy)
        self._optimise()

    def mutual_information(self) -> Tensor:
        """(b,) nats of the codes: that of jointly Gaussian (or Student-t) linear codes; the bends leave it alone."""
        a, c, rho = self.to_x.detach().double(), self.to_y.detach().double(), self.rho.double()
        xx, yy, xy = a @ a.mT, c @ c.mT, (a * rho[:, None]) @ c.mT
        explained = torch.linalg.solve(yy, xy.mT)  # (b, dy, dx)
        gaussian = 0.5 * (torch.logdet(xx) - torch.logdet(xx - xy @ explained))
        heavy = self.dof.isfinite()
        tail = student_mi(torch.where(heavy, self.dof, 1.0), self.trial.dx, self.trial.dy)
        return (gaussian + torch.where(heavy, tail, 0.0)).float()

    def draw(self) -> Codes:
        """Codes with their mutual information, which is known."""
        n, d = self.trial.rows, self.trial.views
        first, second, _ = canonical_normal(self.rho, n, d, d)
        heavy = self.dof.isfinite()
        scale = torch.where(heavy[:, None, None], student_scale(torch.where(heavy, self.dof, 1.0), n), 1.0)
        x, y = (
            bend(scale * (views @ (weight / weight.norm(dim=2, keepdim=True)).mT))  # bends want unit variance
            for views, weight, bend in ((first, self.to_x, self.bend_x), (second, self.to_y, self.bend_y))
        )
        mi = self.mutual_information()
        return Codes(x, y, mi, mi)


class FlexiblePool(Pool):
    """Networks with two hidden layers that ascend; the views of half of them are bent, each by a map that stays.

    Some latents share little, so that what a network can pretend stands out from what it can hold.

    Args:
        trial: what they share.
        b: how many.
        device: where.
    """

    def __init__(self, trial: Trial, b: int, device: torch.device):
        top = 0.99 * torch.rand(b, 1, device=device)
        decay = torch.exp(-torch.arange(trial.views, device=device) * torch.rand(b, 1, device=device))
        few = torch.arange(trial.views, device=device) < torch.randint(1, trial.views + 1, (b, 1), device=device)
        super().__init__(trial, top * decay * few, torch.ones(b, device=device))
        self.bent = (torch.rand(b, device=device) < 0.5)[:, None, None]
        self.maps = int(torch.randint(2**31, ()))  # seed of those that stay
        self.x, self.y = (_network(b, trial.views, d, device) for d in (trial.dx, trial.dy))
        self._optimise()

    def encode(self, n: int) -> tuple[Tensor, Tensor]:
        """Codes of n fresh views of each pair."""
        d = self.trial.views
        first, second, _ = canonical_normal(self.rho, n, d, d)
        with seeded(self.maps, self.rho.device):
            rotations = [random_rotation(len(self.rho), d, self.rho.device) for _ in range(2)]
            first, second = (
                torch.where(self.bent, random_coupling(t @ rotation), t)
                for t, rotation in zip((first, second), rotations, strict=True)
            )
        return _apply(self.x, first), _apply(self.y, second)

    def draw(self) -> Codes:
        """Codes between what a critic tells apart on fresh rows and what the latents share."""
        with torch.no_grad():
            high = canonical_mi(self.rho).float()
            low = told_apart(*self.encode(FIT_ROWS + HELD_ROWS), HELD_ROWS).clamp(min=0.0).minimum(high)
        return Codes(*self.encode(self.trial.rows), low, high)


class SamplePool(Pool):
    """No encoders: rows drawn at random whose numbers themselves ascend.

    No distribution holds them any more. No more should be read into them than pairs that are told apart perfectly
    share, log n, or than Gaussians with their canonical correlations do, which they cannot be told from.

    Args:
        trial: what they share.
        b: how many.
        device: where.
    """

    def __init__(self, trial: Trial, b: int, device: torch.device):
        trial = trial._replace(lr=3 * trial.lr)  # numbers have further to go than weights
        super().__init__(trial, torch.zeros(b, trial.views, device=device), torch.ones(b, device=device))
        self.x, self.y = (nn.Parameter(torch.randn(b, trial.rows, d, device=device)) for d in (trial.dx, trial.dy))
        self._optimise()

    def draw(self) -> Codes:
        """The rows, between nothing and what they show."""
        with torch.no_grad():
            u, v = (whiten(standardize(t)).double() for t in (self.x, self.y))
            rho = torch.linalg.svdvals(u.mT @ v / self.trial.rows).clamp(max=0.9999)
            high = canonical_mi(rho).float().clamp(min=math.log(self.trial.rows))
        return Codes(self.x * 1, self.y * 1, torch.zeros_like(high), high)


def _network(b: int, views: int, d: int, device: torch.device) -> nn.ParameterList:
    """Weights of b networks; a bias is the last row of its weights."""
    sizes = (views, HIDDEN, HIDDEN, d)
    return nn.ParameterList(
        torch.randn(b, k + 1, m, device=device) / math.sqrt(k + 1) for k, m in itertools.pairwise(sizes)
    )


def _apply(weights: nn.ParameterList, z: Tensor) -> Tensor:
    for i, weight in enumerate(weights):
        z = torch.baddbmm(weight[:, -1:], gelu(z) if i else z, weight[:, :-1])
    return z


def told_apart(x: Tensor, y: Tensor, held: int) -> Tensor:
    """What I(x; y) is at least: InfoNCE (Oord et al. 2018) of a Gaussian critic, less two standard errors.

    The critic is the log density ratio of the Gaussian that has the covariance of the normal scores of the other rows.
    InfoNCE is a lower bound whatever the critic (Poole et al. 2019, arXiv 1905.06922), at most log ``held``.

    Args:
        x: (b, n, dx).
        y: (b, n, dy).
        held: rows that the bound is taken on.

    Returns:
        (b,) nats.
    """
    z = torch.cat([gaussianize(standardize(x)), gaussianize(standardize(y))], dim=2)
    fit = z[:, :-held]
    fit = (fit - fit.mean(1, keepdim=True)).double()
    covariance = fit.mT @ fit / fit.shape[1]
    covariance = covariance + 1e-3 * torch.eye(z.shape[2], device=z.device, dtype=torch.float64)
    precision, dx = torch.linalg.inv(covariance), x.shape[2]
    alone = precision[:, dx:, dx:] - torch.linalg.inv(covariance[:, dx:, dx:])
    u, v = z[:, -held:, :dx], z[:, -held:, dx:]
    across, alone = precision[:, :dx, dx:].to(u), alone.to(u)
    # what depends on u alone cancels
    scores = torch.baddbmm(-0.5 * ((v @ alone) * v).sum(2)[:, None], u @ across, v.mT, alpha=-1)
    each = math.log(held) + scores.diagonal(dim1=1, dim2=2) - scores.logsumexp(2)
    return each.mean(1) - 2 * each.std(1) / math.sqrt(held)
