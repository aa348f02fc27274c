"""How many rows lie near a row on each side, where few do on both: mutual information by nearest neighbours.

Kraskov, Stoegbauer and Grassberger (2004, Phys. Rev. E 69, 066138), with ties counted as in Gao et al. (2017, NeurIPS
30), so that numbers, labels and mixtures of both are read. Its bias grows with dimensions and with dependence; the
network learns it, also from what balls of several sizes say.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mist_loss.model.frontend import Canonical
from mist_loss.model.neighbours import take

NEIGHBOURS = (1, 2, 4)  # few: the smallest balls are the least biased, and a partial sort of few is fast
MIDDLE = 1  # the one of them that a reading may be drawn towards
WIDEST = 16  # dimensions of a side beyond which its leading canonical coordinates stand for it
BALLS = 6  # entries of the summary, the estimates first, the smallest balls first
CENTRES = 512  # rows that are centres of balls, at most, so that memory and time are linear in the rows
CACHED = 1 << 17  # distances that are held at a time, on a CPU
NEAR, TIED = 1e-4, 1e-5  # relative and absolute, within which distances count as equal: rounding should part no ties


@torch.no_grad()
def ball_summary(linear: Canonical) -> Tensor:
    """Estimates from balls of three sizes, their spread over rows, and how much of the sample is in a ball on one side.

    Distances are Euclidean within a whitened side, so that no rotation of a side changes them, and the larger of both
    over the pair. Unchanged when x and y are exchanged. Nothing here carries gradients.

    Args:
        linear: the canonical frame of a sample.

    Returns:
        (b, 6): nats, from each size; and of the middle one the standard deviation of the rows' terms, and sum and
        absolute difference of the sides' mean logarithms of the share of rows in a ball, a quarter of them.
    """
    sides = [
        side if side.shape[2] <= WIDEST else turned[..., :WIDEST]
        for side, turned in ((linear.x, linear.u), (linear.y, linear.v))
    ]
    return in_parts(lambda x, y: estimates(neighbours(x, y), x.shape[1]), *sides)


def in_parts(summary: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """What a summary gives of x (b, n, dx) and y (b, n, dy), of a few sets at a time on a CPU.

    Distances that leave the cache, or need fresh memory every time, take longer.
    """
    sets, n = len(x), x.shape[1]
    if x.device.type == "cpu":
        sets = max(1, CACHED // (n * min(n, CENTRES)))
    return torch.cat([summary(*part) for part in zip(x.split(sets), y.split(sets), strict=True)])


def centres(x: Tensor, y: Tensor) -> Tensor:
    """Indices (b, min(n, CENTRES)) of rows: all, or evenly many of every length, whatever their order."""
    n = x.shape[1]
    if n <= CENTRES:
        return torch.arange(n, device=x.device).expand(len(x), n)
    order = (x.square().sum(2) + y.square().sum(2)).argsort(dim=1)
    return order[:, torch.arange(CENTRES, device=x.device) * n // CENTRES]


class Neighbours(NamedTuple):
    """Of the balls around c centres that hold NEIGHBOURS rows on both sides, one ball a size.

    radius: K of (b, c, 1); both, one, other: K of (b, c), digamma of how many rows they hold on both sides, in x, in y.
    """

    radius: list[Tensor]
    both: list[Tensor]
    one: list[Tensor]
    other: list[Tensor]


def neighbours(x: Tensor, y: Tensor) -> Neighbours:
    """Count in x (b, n, dx) and y (b, n, dy)."""
    here = centres(x, y)
    at_once = here.shape[1]
    if x.device.type == "cpu":
        at_once = max(1, CACHED // (len(x) * x.shape[1]))
    parts = [_neighbours(x, y, some) for some in here.split(at_once, dim=1)]
    return Neighbours(*([torch.cat(some, dim=1) for some in zip(*of, strict=True)] for of in zip(*parts, strict=True)))


def _neighbours(x: Tensor, y: Tensor, here: Tensor) -> Neighbours:
    n = x.shape[1]
    apart = [_squares(side, here) for side in (x, y)]
    far = torch.maximum(*apart)
    nearest = far.topk(min(NEIGHBOURS[-1], n - 1) + 1, dim=2, largest=False).values.sqrt()
    radius = [nearest[..., min(k, n - 1), None] * (1 + NEAR) + TIED for k in NEIGHBOURS]
    return Neighbours(radius, *([_digamma_of_neighbours(t, r.square()) for r in radius] for t in (far, *apart)))


def estimates(found: Neighbours, n: int) -> Tensor:
    """What ``ball_summary`` gives, of n rows."""
    whole = math.log(n - 1) - 1 / (2 * (n - 1))  # the digamma of n - 1, but for 1 / (12 n^2)
    nats, shapes = [], []
    for _, both, one, other in zip(*found, strict=True):
        terms, one, other = both + whole - one - other, (one - whole).mean(1), (other - whole).mean(1)
        nats.append(terms.mean(1))
        # of the size of what else the network reads
        shapes.append(torch.stack([terms.std(1), (one + other) / 4, (one - other).abs() / 4], dim=1))
    return torch.cat([torch.stack(nats, dim=1), shapes[MIDDLE]], dim=1)


def _squares(side: Tensor, here: Tensor) -> Tensor:
    """(b, c, n) squared distances: by inner products, in float32 of which near rows and ties would be rounding."""
    own, dtype = take(side, here), side.dtype
    if side.device.type == "mps":  # has no float64
        return torch.cdist(own, side, compute_mode="donot_use_mm_for_euclid_dist").square()
    own, side = own.double(), side.double()
    lengths = side.square().sum(2)
    squares = torch.baddbmm(lengths[:, None], own, side.mT, alpha=-2) + lengths.gather(1, here)[..., None]
    return squares.to(dtype).clamp_min(0)


def _digamma_of_neighbours(squares: Tensor, within: Tensor) -> Tensor:
    """(b, c) of (b, c, n) and (b, c, 1): the centre itself lies in each of its balls, and does not count."""
    inside = (squares - within).le_(0)  # numbers: making flags and adding these up takes twice as long
    return torch.digamma(inside.sum(2) - 1)
