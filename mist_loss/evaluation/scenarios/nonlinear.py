"""MLP encoders of views that are bent: bounds of the truth in place of a formula."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mist_loss.evaluation.scenarios.encoders import mlp
from mist_loss.evaluation.scenarios.lower_bound import FIT_ROWS, HELD_ROWS, certified
from mist_loss.evaluation.scenarios.problem import MAP_SEED, TRUTH_SEED, Truth
from mist_loss.meta.families import additive_noise, additive_noise_mi, canonical_normal
from mist_loss.meta.maps import random_coupling, random_rotation
from mist_loss.meta.structures import canonical_mi
from mist_loss.seeding import seeded


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
    steps: int = 1000
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
        return mlp(self.view_dims, self.dims), mlp(self.view_dims, self.dims)

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


def bend(latents: Tensor, seed: int) -> Tensor:
    """A fixed invertible map for each seed: three coupling layers, each after a rotation. (1, n, d) -> (1, n, d)."""
    with seeded(seed):
        for _ in range(3):
            latents = random_coupling(latents @ random_rotation(1, latents.shape[2], latents.device))
    return latents
