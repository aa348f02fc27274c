"""Sides that are labels: the most that they can share, and tables of two of them, which are counted, not estimated."""

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

REPEATS = 4  # rows that are equal, on average, where a sample is a label
CELL = 8  # rows for every possible cell of a table that is counted: fewer leave cells unseen, and the count too high
SINGLE = 0.002  # share of rows alone in their cell, up to which a table is counted that has fewer


class Count(NamedTuple):
    """Nats found by counting, with their standard error: 0-d float64 (float32 on devices without it)."""

    value: Tensor
    error: Tensor

    def interval(self, level: float) -> Tensor:
        """(3,): the value and a central interval around it, none of them negative."""
        reach = -NormalDist().inv_cdf((1 - level) / 2) * self.error  # the other tail would round to 1
        return torch.stack([self.value, self.value - reach, self.value + reach]).clamp_min(0)


def shares(rows: Tensor) -> tuple[Tensor, Tensor] | None:
    """The share (k,) of each of the k different rows of (n, d) and which one each row is (n,); None if it is no label.

    A label is a sample whose rows come REPEATS times on average.
    """
    n = len(rows)
    # a column has no more values than there are rows: a look at one spares most samples the sorting of rows
    if REPEATS * len(rows[:, 0].unique()) > n:
        return None
    _, which, counts = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    return None if REPEATS * len(counts) > n else (counts.to(_wide(rows.device)) / n, which)


def entropy(share: Tensor, n: int) -> Count:
    """H of a label with shares (k,) in n rows, at least that of the rows.

    Corrected as by Miller (1955), plus (k - 1) / 2n, or where that is more as by Chao and Shen (2003): where values
    come once there are others that have not come yet.
    """
    k, surprise = len(share), -share.log()
    plain = (share * surprise).sum()
    variance = (share * (surprise - plain).square()).sum() / n + (k - 1) / (2 * n**2)
    once = (share * n < 1.5).sum() / n  # as likely is the next row of a value not seen yet (Good 1953)
    seen = (1 - once) * share
    whole = (seen * -seen.log() / -torch.expm1(n * torch.log1p(-seen.clamp_max(1 - 1e-12)))).sum()
    return Count(torch.maximum(plain + (k - 1) / (2 * n), whole), variance.sqrt())


def are_names(rows: Tensor) -> bool:
    """Whether the columns of (n, d) hold whole numbers or two values each, as labels do.

    Numbers of other kinds that come again are copies of rows, as of oversampling or of a person measured often. Copies
    of whole numbers cannot be told from labels.
    """
    two = (rows == rows.amin(0)) | (rows == rows.amax(0))
    return bool((two.all(0) | (rows == rows.round()).all(0)).all())


def table_mi(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor], names: bool) -> Count | None:
    """I of two labels from their table, each entropy corrected as by Miller; None if it is too thin for that.

    It is not if it has CELL rows for every possible cell, or, of names, as many for every cell that occurs and hardly a
    row alone in one, as tables of labels that determine each other.

    The error is that of the delta method, plus that of chi-squared with (kx - 1)(ky - 1) degrees of freedom, which is
    what remains of it where the labels are independent, plus log min(kx, ky) for the share of rows alone in their cell:
    about as much is unseen (Good 1953), and the count too high by so much.

    Args:
        x: what ``shares`` returns of one side.
        y: of the other.
        names: whether both sides are, see ``are_names``.
    """
    (px, ix), (py, iy), n = x, y, len(x[1])
    _, cell, counts = torch.unique(ix * len(py) + iy, return_inverse=True, return_counts=True)
    joint = counts.to(px) / n
    alone = (counts == 1).sum().to(px) / n
    full = CELL * len(px) * len(py) <= n
    if not full and (not names or CELL * len(counts) > n or alone > SINGLE):
        return None
    ratio = torch.empty_like(joint)
    ratio[cell] = joint[cell].log() - px[ix].log() - py[iy].log()
    plain = (joint * ratio).sum()
    freedom = (len(px) - 1) * (len(py) - 1)
    unseen = alone * math.log(min(len(px), len(py)))
    variance = (joint * (ratio - plain).square()).sum() / n + freedom / (2 * n**2) + unseen.square()
    correction = (len(px) + len(py) - len(joint) - 1) / (2 * n)
    return Count((plain + correction).clamp_min(0), variance.sqrt())


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def known(x: Tensor, y: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """What counting says about sets (b, n, dx) and (b, n, dy).

    Returns:
        (3, b) value and interval that nothing may exceed, since I(x; y) <= H(x) of a label; infinite without one.
        (3, b) value and interval of tables of two labels; NaN for other sets.
    """
    most = torch.full((3, len(x)), torch.inf, dtype=_wide(x.device), device=x.device)
    counted = torch.full_like(most, torch.nan)
    for i, rows in enumerate(zip(x, y, strict=True)):
        sides = [shares(side) for side in rows]
        for side in sides:
            if side is not None:
                all_seen = len(side[0]) if side[0].min() * x.shape[1] > 1.5 else math.inf
                most[:, i] = torch.minimum(most[:, i], entropy(side[0], x.shape[1]).interval(level))
                most[:, i] = most[:, i].clamp_max(math.log(all_seen))
        if sides[0] is None or sides[1] is None:
            continue
        if table := table_mi(sides[0], sides[1], all(map(are_names, rows))):
            counted[:, i] = table.interval(level)
    return most, counted
