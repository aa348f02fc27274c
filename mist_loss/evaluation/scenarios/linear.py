"""Linear encoders of views whose joint distribution is Gaussian or Student-t: the truth has a formula."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mist_loss.evaluation.scenarios.encoders import matrix
from mist_loss.evaluation.scenarios.problem import MAP_SEED, Truth
from mist_loss.meta.families import canonical_normal, student_mi, student_scale
from mist_loss.meta.maps import random_rotation
from mist_loss.meta.structures import canonical_mi, gaussian_mi
from mist_loss.seeding import seeded


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
    steps: int = 1000
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
        return matrix(len(self.rho), self.dims), matrix(len(self.rho), self.dims)

    def views(self, n: int) -> tuple[Tensor, Tensor]:
        """Canonical coordinates, each side rotated by a fixed rotation."""
        d = len(self.rho)
        x, y, _ = canonical_normal(torch.tensor(self.rho)[None], n, d, d)
        scale = student_scale(torch.tensor([self.dof]), n) if math.isfinite(self.dof) else torch.ones(1, n, 1)
        turn_x, turn_y = rotations(d)
        return (scale * x)[0] @ turn_x, (scale * y)[0] @ turn_y

    def truth(self, first: nn.Module, second: nn.Module) -> Truth:
        """Of the joint dispersion of the codes, with gradients to the weights."""
        a, b = (
            encoder.get_parameter("weight").double() @ turn.double().T
            for encoder, turn in zip((first, second), rotations(len(self.rho)), strict=True)
        )
        cross = (a * torch.tensor(self.rho, dtype=torch.float64)) @ b.T
        joint = torch.cat([torch.cat([a @ a.T, cross], 1), torch.cat([cross.T, b @ b.T], 1)])
        nats = gaussian_mi(joint[None], self.dims)[0] + self._radius()
        return Truth(nats, nats)

    def _radius(self) -> Tensor:
        if math.isinf(self.dof):
            return torch.zeros((), dtype=torch.float64)
        return student_mi(torch.tensor([self.dof]), self.dims, self.dims)[0]


def rotations(d: int) -> tuple[Tensor, Tensor]:
    """The fixed rotations (d, d) between canonical coordinates and the views of each side."""
    with seeded(MAP_SEED):
        turns = random_rotation(2, d, torch.device("cpu"))
    return turns[0], turns[1]
