"""Rows that are themselves what is trained: what an objective does where no distribution holds it back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mist_loss.evaluation.scenarios.problem import Truth


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
    steps: int = 1000
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
