"""What a sample would share if it were jointly normal, and whether what is left of its pairs looks normal.

Where noise is little, a pair's mutual information is a matter of what the noise is like: uniform noise leaves 0.18 nats
a pair more than normal noise of the same correlation, which no correlation shows.
"""

import math

import torch
from torch import Tensor

from mist_loss.model.frontend import Canonical

NORMAL = 3  # entries of the summary, the estimate first
CAP = 0.9999  # of a correlation
WIDEST = math.log(100.0)  # of what is said of residuals


@torch.no_grad()
def normal_summary(linear: Canonical) -> Tensor:
    """The Gaussian estimate less its bias, and how residuals spread beside normal ones.

    The estimate is -1/2 sum log(1 - rho^2), less what it would be expected to exceed the truth by for normal sides
    (of log determinants of Wishart matrices, Goodman 1963, Ann. Math. Statist. 34). Residuals are those of v given u,
    and of u given v, in units of their deviation. The variance of their squared length, each pair weighted with its
    term of the estimate, is compared with that of normal ones: no rotation among equally strong pairs changes it.
    Unchanged when x and y are exchanged. Nothing here carries gradients.

    Args:
        linear: the canonical frame of a sample.

    Returns:
        (b, 3): nats; sum and absolute difference of both ways' logarithms of that ratio of variances, 0 where normal.
    """
    u, v = linear.u, linear.v
    rho = (CAP * linear.rho.abs()).clamp(max=CAP)
    terms = -0.5 * torch.log1p(-rho.square())
    nats = terms.sum(1) - excess(u.shape[1], linear.x.shape[2], linear.y.shape[2]).to(terms)
    weights = (terms + 1e-6) / (terms + 1e-6).sum(1, keepdim=True)
    normal = 2 * weights.square().sum(1)
    one, other = (_relative_variance(b - linear.rho[:, None] * a, weights, rho) / normal for a, b in ((u, v), (v, u)))
    one, other = (ratio.clamp_min(1e-6).log().clamp(-WIDEST, WIDEST) for ratio in (one, other))
    return torch.stack([nats, one + other, (one - other).abs()], dim=1)


def _relative_variance(residual: Tensor, weights: Tensor, rho: Tensor) -> Tensor:
    """(b,) of the weighted squared length of residuals (b, n, m), in units of its squared mean."""
    length = (residual.square() * (weights / (1 - rho.square()))[:, None]).sum(2)
    return length.var(1, unbiased=False) / length.mean(1).square().clamp_min(1e-12)


def excess(n: int, dx: int, dy: int) -> Tensor:
    """Nats by which the Gaussian estimate from n rows is expected to exceed the truth, for normal sides.

    Where rows hardly exceed features, or do not, there is no such number worth taking off; it is then that of two rows
    more than features.
    """
    n = max(n, dx + dy + 2)
    terms = torch.digamma((n - torch.arange(1, dx + dy + 1, dtype=torch.float64, device="cpu")) / 2)
    return (terms[:dx].sum() + terms[:dy].sum() - terms.sum()) / 2
