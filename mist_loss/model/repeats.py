"""How often values repeat: whether sides are numbers, levels, labels, or numbers with holes.

Normal scores and correlations hardly show it, and it decides what a correlation is worth: 0.9 between two normal
variables is 0.83 nats, between the same two rounded to whole numbers 0.59, between two labels something else again.
Any map that is one to one leaves repeats alone; numbers that never repeat have none, so that nothing is said of them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mist_loss.model.tracing import may_look

MULTIPLIER = 0x9E3779B97F4A7C15  # odd; its powers mix the features of a row into one code


@torch.no_grad()
def repeat_summary(x: Tensor, y: Tensor, of_x: tuple[Tensor, Tensor], of_y: tuple[Tensor, Tensor]) -> Tensor:
    """Repeated values of features, repeated rows, and rows that repeat on both sides at once.

    Of each feature the chance that two rows agree (the exponential of minus Renyi's entropy of order 2) and the share
    of the commonest value; of whole rows that chance for x, for y and for both, and by how much it is more than the
    product of the former two, which is what independent labels have. The same when x and y are exchanged.

    Args:
        x: (b, n, dx).
        y: (b, n, dy).
        of_x: what ``repeats`` gives of the features of x, (b, dx) each.
        of_y: (b, dy).

    Returns:
        (b, 14), all between 0 and about 4.
    """
    n = x.shape[1]
    sides = []
    for agree, top in (of_x, of_y):
        agree = agree**0.25  # a few values and a hundred should both be told from none
        sides.append(torch.stack([agree.mean(1), agree.amax(1), agree.amin(1), top.mean(1), top.amax(1)], dim=1))
    codes = row_codes(x), row_codes(y)
    rows = [
        repeats(code.sort(-1).values)[0].to(x.dtype) for code in (*codes, codes[0] + MULTIPLIER_OF_PAIRS * codes[1])
    ]
    rare = 1 / n**2
    excess = torch.log((rows[2] + rare) / (rows[0] * rows[1] + rare)) / 4
    a, b = rows[0] ** 0.25, rows[1] ** 0.25
    whole = torch.stack([a + b, (a - b).abs(), rows[2] ** 0.25, excess], dim=1)
    return torch.cat([sides[0] + sides[1], (sides[0] - sides[1]).abs(), whole], dim=1)


@torch.no_grad()
def repeats(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """The chance that two of n values agree, without bias, and the share of the commonest, 0 where none repeats.

    Args:
        ordered: (..., n), ascending.

    Returns:
        Two of (...,), in float32 or the dtype of the values.
    """
    n = ordered.shape[-1]
    place = torch.arange(n, device=ordered.device)
    other = ordered[..., 1:] != ordered[..., :-1]
    dtype = ordered.dtype if ordered.dtype.is_floating_point else torch.float32
    if may_look(ordered) and other.all():  # as numbers do not repeat, in most samples
        none = ordered.new_zeros(ordered.shape[:-1], dtype=dtype)
        return none, none
    first = F.pad(other, (1, 0), value=True)
    # how many equal values lie before each: summed over a run of c that is c (c - 1) / 2
    before = place - torch.where(first, place, 0).cummax(-1).values
    longest = before.amax(-1)
    agree = before.sum(-1).to(dtype) * 2 / (n * max(n - 1, 1))
    return agree, torch.where(longest > 0, longest + 1, 0).to(dtype) / n


def row_codes(x: Tensor) -> Tensor:
    """Whole numbers (b, n) that are equal where rows of (b, n, d) are, and else but for one chance in 2^40 not."""
    x = torch.where(x == 0, 0.0, x).to(torch.float32)  # zero and minus zero are one value in two patterns of bits
    keys = [_signed(pow(MULTIPLIER, j + 1, 1 << 64)) for j in range(x.shape[2])]
    # sums of whole numbers wrap around, so that they do not depend on their order
    return (x.contiguous().view(torch.int32).long() * torch.tensor(keys, device=x.device)).sum(-1)


def _signed(key: int) -> int:
    return key - (1 << 64) if key >> 63 else key


MULTIPLIER_OF_PAIRS = _signed(0xD1B54A32D192ED03)
