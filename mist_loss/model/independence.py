"""Independent components of the canonical frame: they tell hidden labels from Gaussian coordinates.

Where pairs are equally correlated their frame is one of many. Most show sums of independent sources, which look more
Gaussian than the sources do (the central limit theorem); the one that looks least Gaussian shows each source alone.
"""

import math

import torch
from torch import Tensor

from mist_loss.model.frontend import Canonical

STEPS = 8
GAUSSIAN = 0.374567  # mean of log cosh of a standard normal variable
DAMPING = 0.4  # about a standard error of the contrast: without it a Gaussian sample magnifies rounding at every step


def independent(linear: Canonical, pairs: int) -> Canonical:
    """Rotate the leading canonical pairs, both sides alike, towards independence of their sums.

    Nothing here carries gradients. The turned correlations are averages of the canonical ones, which carry theirs
    already; with a second path, free samples were driven to 10 nats in place of 4, and encoders of 64 rows reached 93%
    of the truth in place of 98% (docs/objective.md).

    Args:
        linear: the canonical frame of a sample; u and v (b, n, m).
        pairs: how many are rotated, at most.

    Returns:
        Canonical with u, v (b, n, min(pairs, m)) and their correlations, largest first; the rest is as it was.
    """
    with torch.no_grad():
        u, v, rho = linear.u[..., :pairs], linear.v[..., :pairs], linear.rho[:, :pairs]
        rotation = components((u + v) / (2 + 2 * rho).clamp_min(1e-3).sqrt()[:, None])
        rho = ((u @ rotation) * (v @ rotation)).mean(1)
        rho, order = rho.sort(dim=1, descending=True, stable=True)
        rotation = rotation.gather(2, order[:, None].expand_as(rotation))
        u, v = u @ rotation, v @ rotation
        sign = torch.where((u**3 + v**3).sum(1) < 0, -1.0, 1.0).to(u)[:, None]
        # by position: the compiler of torch 2.4 cannot follow _replace
        return Canonical(sign * u, sign * v, rho, *linear[3:])


def components(white: Tensor, steps: int = STEPS, skew: float = 0.0) -> Tensor:
    """Rotation of white coordinates (b, n, m) to their independent components: (b, m, m), a component a column.

    FastICA with ``contrast``, all components at once (Hyvarinen 1999, IEEE Trans. Neural Networks 10(3)), from the
    identity, a fixed number of steps. Rotations are in float64 where there is one; rows, most of the work, as they are.
    """
    b, n, m = white.shape
    wide = torch.float32 if white.device.type == "mps" else torch.float64
    rotation = torch.eye(m, dtype=wide, device=white.device).expand(b, m, m)
    for _ in range(steps):
        bounded = torch.tanh(white @ rotation.to(white.dtype))
        slope = 1 - bounded.square()
        if skew:
            slope, bounded = slope * (1 + 2 * skew * bounded), bounded * (1 + skew * bounded)
        newton = (white.mT @ bounded / n).to(wide) - rotation * slope.mean(1, keepdim=True)
        # of either sign, as a component may have fewer far values than a Gaussian, or more
        sign = torch.where((rotation * newton).sum(1, keepdim=True) < 0, -1.0, 1.0).to(wide)
        rotation = _nearest_rotation(newton * sign + DAMPING / math.sqrt(n) * rotation)
    return rotation.to(white.dtype)


def _nearest_rotation(matrix: Tensor) -> Tensor:
    """The orthogonal factor M (M' M)^(-1/2) of the polar decomposition, in half the time of a singular value one."""
    values, vectors = torch.linalg.eigh(matrix.mT @ matrix)
    return matrix @ (vectors * values.clamp_min(1e-30).rsqrt()[:, None]) @ vectors.mT


def contrast(white: Tensor, skew: float = 0.0) -> Tensor:
    """How far white coordinates (b, n, m) are from Gaussian ones: (b, m), zero for these.

    The mean of log cosh t + skew (t - tanh t), less what it is for a Gaussian; without its second part it sees no
    difference between a distribution and its mirror image.
    """
    return (torch.log(torch.cosh(white)) + skew * (white - torch.tanh(white))).mean(1) - GAUSSIAN
