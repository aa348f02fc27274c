"""Differences of near rows: what pairs share beyond the cluster they fall into.

Two rows of one cluster differ by what varies within it, whatever its centre is, so the canonical correlations of such
differences tell of those within clusters. Nothing has to say how many clusters there are, nor what shape they have.
They are lower, since rows that are near on both sides differ little where the sides agree; a metric that whitens both
sides at once would mend that, but finds clusters worse.
"""

import torch
from torch import Tensor

from mist_loss.model.frontend import Canonical, align

NEAREST = 2  # rows that each row is compared with
ANCHORS = 1024  # rows that are compared, at most, so that memory and time are linear in the rows


def near(linear: Canonical, pairs: int) -> Canonical:
    """The canonical frame of the differences of near rows, near in the leading canonical pairs of both sides at once.

    Nothing here carries gradients: which rows are near is a constant of this sample, as is the frame of
    ``mist_loss.model.independence``.

    Args:
        linear: the canonical frame of a sample; u and v (b, n, m).
        pairs: leading pairs that are looked at.

    Returns:
        Canonical of NEAREST differences for each of min(n, ANCHORS) rows, with min(pairs, m) pairs.
    """
    with torch.no_grad():
        u, v = linear.u[..., :pairs], linear.v[..., :pairs]
        rows = torch.cat([u, v], dim=-1)
        here = anchors(rows)
        there = neighbours(rows, here)
        here = here[..., None].expand_as(there)
        apart_u, apart_v = (take(side, here.flatten(1)) - take(side, there.flatten(1)) for side in (u, v))
        return align(apart_u, apart_v)


def anchors(rows: Tensor) -> Tensor:
    """Indices (b, min(n, ANCHORS)) of rows (b, n, d): all, or evenly many of every length, whatever their order."""
    n = rows.shape[1]
    order = rows.square().sum(2).argsort(dim=1)
    if n <= ANCHORS:
        return order
    return order[:, torch.arange(ANCHORS, device=rows.device) * n // ANCHORS]


def neighbours(rows: Tensor, here: Tensor) -> Tensor:
    """Indices (b, a, NEAREST) of the rows (b, n, d) that are nearest to those at ``here`` (b, a)."""
    # squared distances without a term of the anchor's own, which changes no order
    distance = torch.baddbmm(rows.square().sum(2)[:, None], take(rows, here), rows.mT, alpha=-2)
    distance.scatter_(2, here[..., None], torch.inf)  # a row is not its own neighbour
    found = []
    for _ in range(NEAREST):  # faster than sorting
        nearest = distance.argmin(2, keepdim=True)
        distance.scatter_(2, nearest, torch.inf)
        found.append(nearest)
    return torch.cat(found, dim=2)


def take(rows: Tensor, index: Tensor) -> Tensor:
    """Rows (b, k, d) of (b, n, d) at an index (b, k)."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[2]))
