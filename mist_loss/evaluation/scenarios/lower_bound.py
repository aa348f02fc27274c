"""What held-out rows certify about the mutual information of codes without a formula."""

import math

import torch
from torch import Tensor

from mist_loss.evaluation.scenarios.encoders import mlp
from mist_loss.evaluation.scenarios.problem import TRUTH_SEED
from mist_loss.seeding import seeded

FIT_ROWS, HELD_ROWS = 8192, 2048  # behind the bound, which cannot exceed log HELD_ROWS
CRITIC_DIMS, CRITIC_BATCH = 32, 512


def certified(z1: Tensor, z2: Tensor, steps: int = 150) -> Tensor:
    """A lower bound of I(z1; z2), in expectation: a critic is fitted to some rows, InfoNCE on the others scores it.

    InfoNCE is a lower bound whatever the critic (Poole et al. 2019, arXiv 1905.06922). This one is the scalar product
    of two MLPs of the normal scores of the codes, trained by InfoNCE itself.

    Args:
        z1: (n, d1) codes, more than HELD_ROWS.
        z2: (n, d2) codes, row by row with z1.
        steps: of the critic's optimiser.

    Returns:
        0-d nats, float64, at most log HELD_ROWS; below 0 if the critic is worse than none.
    """
    fit = len(z1) - HELD_ROWS
    z1, z2 = (normal_scores(z[:fit], z).float() for z in (z1, z2))
    with seeded(TRUTH_SEED), torch.enable_grad():
        first, second = (mlp(z.shape[1], CRITIC_DIMS) for z in (z1, z2))
        optimizer = torch.optim.Adam([*first.parameters(), *second.parameters()], lr=5e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            rows = torch.randint(fit, (CRITIC_BATCH,))
            optimizer.zero_grad()
            (-_infonce(first(z1[rows]), second(z2[rows]))).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return _infonce(first(z1[fit:]), second(z2[fit:])).double()


def _infonce(left: Tensor, right: Tensor) -> Tensor:
    scores = left @ right.T
    return (scores.diagonal() - scores.logsumexp(dim=1)).mean() + math.log(len(left))


def normal_scores(reference: Tensor, values: Tensor) -> Tensor:
    """Normal quantiles of the ranks of values (m, d) among reference (n, d), column by column, in float64."""
    ordered = reference.double().T.contiguous().sort(dim=1).values
    columns = values.double().T.contiguous()
    rank = (torch.searchsorted(ordered, columns) + torch.searchsorted(ordered, columns, right=True)) / 2
    return torch.special.ndtri((rank + 0.5) / (len(reference) + 1)).T
