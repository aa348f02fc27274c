"""A way out of collapse: to an estimator without scale, features that are constant have no gradient of their own."""

import torch
from torch import Tensor

from mist_loss.model.frontend import standardize


def way_out(x: Tensor, y: Tensor) -> Tensor:
    """Zero, whose gradient descends where constant features of either side come to follow the other side.

    Each constant feature is drawn towards its own fixed mixture of the other side's features; where all of these are
    constant too, towards a fixed pattern over the rows that both sides share. Features that vary get nothing, and a
    step later the constant ones vary. Exact copies of a varying feature are no case of this: their gradients are equal,
    and they stay copies.

    Args:
        x: (b, n, dx) finite.
        y: (b, n, dy).

    Returns:
        0-d zero: add it to a loss that maximises mutual information.
    """
    sides = [standardize(t.detach()).clamp(-3, 3) for t in (x, y)]
    live = [t.abs().amax(1) > 0.5 for t in sides]  # (b, d); what varies has a mean absolute deviation of one
    total = x.new_zeros((), dtype=sides[0].dtype)
    for sample, varies, other, other_varies in ((x, live[0], sides[1], live[1]), (y, live[1], sides[0], live[0])):
        n, d, source = sample.shape[1], sample.shape[2], other.shape[2]
        pattern = _scatter(n, max(d, source), sample.device)[:, :source]
        source_rows = torch.where(other_varies.any(1)[:, None, None], other, pattern.to(other))
        target = source_rows @ _scatter(source, d, sample.device).to(other) / source**0.5
        drawn = torch.where(varies[:, None], 0.0, target)
        total = total - ((sample - sample.detach()) * drawn).sum() / (n * len(sample))
    return total


def varying(side: Tensor, clip: float) -> Tensor:
    """A side (b, n, d), standardised and clipped; constant features are zero and without gradient, see ``way_out``."""
    side = standardize(side).clamp(-clip, clip)
    # what varies has a mean absolute deviation of one
    return torch.where(side.detach().abs().amax(1, keepdim=True) > 0.5, side, 0.0)


def _scatter(rows: int, columns: int, device: torch.device) -> Tensor:
    """(rows, columns) fixed irregular numbers of unit variance, without a generator to wait for."""
    i, j = torch.arange(1, rows + 1, device=device)[:, None], torch.arange(1, columns + 1, device=device)
    return 2**0.5 * torch.sin(12.9898 * i + 78.233 * j + 1.618 * i * j)
