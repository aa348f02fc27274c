"""What a scenario is: a problem for an objective, whose mutual information stays known."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor, nn

MAP_SEED = 11  # of the fixed maps between latents and views
TRUTH_SEED = 12  # of the rows that truths without a formula are averaged over


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
