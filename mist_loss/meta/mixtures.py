"""Named meta-distributions: which families, dimensions and row counts are drawn, and how often."""

import math
from dataclasses import dataclass

import torch

from mist_loss.meta.broad import BROAD, BROADER
from mist_loss.meta.families import Family, Problem
from mist_loss.meta.paper import CPU, PAPER_IMD, PAPER_OOMD, PAPER_TRAIN, configuration

SMALL = 3  # dimensions


@dataclass(frozen=True)
class Mixture:
    """A meta-distribution.

    families: (weight, family) by name; rows and dims: inclusive ranges; equal: share of shapes with dx = dy, drawn
    evenly from ``equal_dims``; wide: share with dx = dy beyond those; small: share with dx and dy in 1 to SMALL, 1 more
    often than not, where most of what people measure column by column lies; the other shapes draw dx and dy on a log
    scale, each alone.
    """

    families: dict[str, tuple[float, Family]]
    rows: tuple[int, int]
    dims: tuple[int, int]
    equal: float
    equal_dims: tuple[int, int]
    wide: float = 0.0
    small: float = 0.0

    def shape(self) -> tuple[int, int, int]:
        """Draw (n, dx, dy): rows on a log scale."""
        n = _log_uniform(*self.rows)
        kind = float(torch.rand(()))
        if kind < self.equal + self.wide:
            low, high = self.equal_dims if kind < self.equal else (self.equal_dims[1] + 1, self.dims[1])
            d = int(torch.randint(low, high + 1, ()))
            return n, d, d
        if kind < self.equal + self.wide + self.small:
            dx, dy = (1 + int(SMALL * float(torch.rand(())) ** 2) for _ in range(2))
            return n, dx, dy
        return n, _log_uniform(*self.dims), _log_uniform(*self.dims)

    def pick(self, k: int) -> list[str]:
        """Draw the names of k families, by their weights."""
        names, weights = list(self.families), torch.tensor([float(weight) for weight, _ in self.families.values()])
        return [names[i] for i in torch.multinomial(weights, k, replacement=True).tolist()]

    def batch(self, sets: int, n: int, dx: int, dy: int, device: torch.device = CPU, chunk: int = 4) -> Problem:
        """Draw sets of one shape; every ``chunk`` of them comes from one family, so that a batch mixes families."""
        sizes = [min(chunk, sets - start) for start in range(0, sets, chunk)]
        parts = [
            self.families[name][1](b, n, dx, dy, device) for b, name in zip(sizes, self.pick(len(sizes)), strict=True)
        ]
        x, y, mi = (torch.cat(t) for t in zip(*parts, strict=True))
        return Problem(x, y, mi)


def _log_uniform(low: int, high: int) -> int:
    """An integer in [low, high], even on a log scale."""
    u = float(torch.rand(()))
    return min(high, int(math.exp(math.log(low) + u * math.log((high + 1) / low))))


def _configured(name: str) -> Family:
    return lambda b, n, dx, dy, device: configuration(name, b, n, dx, dy, device)


def _paper(names: tuple[str, ...]) -> Mixture:
    return Mixture(
        families={name: (1.0, _configured(name)) for name in names},
        rows=(10, 512),
        dims=(2, 32),
        equal=1.0,
        equal_dims=(2, 32),
    )


MIXTURES: dict[str, Mixture] = {
    "paper": _paper(PAPER_TRAIN),
    "paper-imd": _paper(PAPER_IMD),
    "paper-oomd": _paper(PAPER_OOMD),
    "broad": Mixture(
        families=BROAD,
        rows=(10, 4096),
        dims=(1, 64),
        equal=0.62,
        equal_dims=(1, 34),
        wide=0.08,
    ),
    "broader": Mixture(
        families=BROADER,
        rows=(10, 4096),
        dims=(1, 64),
        equal=0.42,
        equal_dims=(1, 34),
        wide=0.08,
        small=0.35,
    ),
    # codes of networks alone, for a second look to meet more of them beside broader (mist-loss look --also)
    "codes": Mixture(
        families={"embedded": BROADER["embedded"]},
        rows=(64, 4096),
        dims=(1, 64),
        equal=0.5,
        equal_dims=(1, 64),
    ),
}
