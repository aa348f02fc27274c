"""A second look at a first reading, once its value is known, beside what other estimates say.

The first reading is a sum of terms, and no layer that gives one of them knows the sum: not how wide an interval about
40 nats has to be, nor that near rows (``mist_loss.model.balls``, ``intrinsic``) or the formula for normal sides
(``mist_loss.model.normal``) say something else.
"""

import torch
from torch import Tensor, nn

from mist_loss.model.balls import BALLS, MIDDLE, NEIGHBOURS
from mist_loss.model.intrinsic import INTRINSIC
from mist_loss.model.normal import NORMAL
from mist_loss.model.quantiles import KNOTS

FURTHEST = 1.0  # of the logarithm of a scale: tails that were stretched further carried means of unfamiliar sets away


class SecondLook(nn.Module):
    """Moves a reading towards what others say as far as they can be trusted, and rescales it on either side.

    What it looks at carries no gradients: a criterion, whose weights are at rest, has those of the first reading. In
    training mode the gradient with respect to the first reading is that of the share it has, or the reading would be
    led to make up for the shares of others.
    """

    def __init__(self, vector: int, hidden: int, width: int, normal: bool, intrinsic: bool):
        super().__init__()
        self.normal, self.intrinsic = normal, intrinsic
        trusted, said = 1 + normal + intrinsic, len(NEIGHBOURS) * (1 + intrinsic) + normal
        self.layers = nn.Sequential(
            nn.Linear(vector + hidden + 3 + said, width), nn.GELU(), nn.Linear(width, trusted + 2)
        )
        self.begin()

    @torch.no_grad()
    def begin(self) -> None:
        """Say nearly nothing, so that weights without it, or with another first reading, go on from where they were."""
        last = self.layers[2]
        assert isinstance(last, nn.Linear)
        last.weight.zero_()
        last.bias.copy_(torch.tensor([-3.0] * (len(last.bias) - 2) + [0.0, 0.0]))

    def forward(self, reading: Tensor, summary: Tensor, vector: Tensor, hidden: Tensor) -> Tensor:
        """What the reading becomes.

        Args:
            reading: (b, KNOTS) quantiles in nats, increasing, any real numbers.
            summary: (b, v) the vector of the set, at its end normal sides, balls and balls before whitening.
            vector: (b, v) the same, normalised.
            hidden: (b, h) what the first reading was made from.
        """
        centre = reading[:, KNOTS // 2, None]
        shift, scale = self.judge(reading, summary, vector, hidden)
        return centre + shift + (reading - centre) * scale

    def judge(self, reading: Tensor, summary: Tensor, vector: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """How far the centre moves, (b, 1) nats, and how much farther from it each quantile lies, (b, KNOTS)."""
        middle = KNOTS // 2
        with torch.no_grad():
            centre = reading[:, middle, None]
            end = INTRINSIC if self.intrinsic else 0  # of what comes after balls
            balls = summary[:, -BALLS - end :][:, : len(NEIGHBOURS)] - centre
            said, others = [balls], [balls[:, MIDDLE, None]]
            if self.normal:
                said.append(summary[:, -NORMAL - BALLS - end, None] - centre)
                others.append(said[-1])
            if self.intrinsic:
                near = summary[:, -INTRINSIC:][:, : len(NEIGHBOURS)] - centre
                said.append(near)
                others.append(2 * near[:, :1] - near[:, 1:2])  # the smaller the balls, the less their bias
            spread = torch.log(reading[:, middle + 3, None] - reading[:, middle - 3, None] + 0.001)
            size = torch.log(centre.clamp_min(0) + 0.1)
            seen = torch.cat([vector, hidden, centre / 4, size, spread, torch.cat(said, dim=1).clamp(-4, 4)], dim=1)
            away = torch.cat(others, dim=1)
        if self.training:  # as it is, but with the gradient of the share that the reading has
            away = away + (centre - reading[:, middle, None])
        *trusts, below, above = self.layers(seen).split(1, dim=1)
        # shares of what is said in all, the first of them that of the reading
        trust = torch.cat([torch.zeros_like(below), *trusts], dim=1).softmax(dim=1)[:, 1:]
        scale = torch.cat([below.expand(-1, middle), torch.zeros_like(below), above.expand(-1, middle)], dim=1)
        return (trust * away).sum(1, keepdim=True), scale.clamp(-FURTHEST, FURTHEST).exp()
