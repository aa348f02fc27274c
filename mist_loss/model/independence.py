"""Independent components of the canonical frame: they tell hidden labels from Gaussian coordinates.

Where pairs are equally correlated their frame is one of many, and in all but one of them sums of independent sources
look Gaussian (the central limit theorem). The one that looks least Gaussian shows the sources alone.
"""

import math

import torch
from torch import Tensor

from mist_loss.model.frontend import Canonical

STEPS = 8
DAMPING = 0.4  # about a standard error of the contrast: without it a Gaussian sample magnifies rounding at every step


def independent(linear: Canonical, pairs: int) -> Canonical:
    """Rotate the leading canonical pairs, both sides alike, until their sums are independent.

    The rotation is a constant for autograd, as that of ``align`` is.

    Args:
        linear: the canonical frame of a sample; u and v (b, n, m).
        pairs: how many are rotated, at most.

    Returns:
        Canonical with u, v (b, n, min(pairs, m)) and their correlations; the rest is as it was.
    """
    u, v, rho = linear.u[..., :pairs], linear.v[..., :pairs], linear.rho[:, :pairs]
    with torch.no_grad():
        rotation = components((u + v) / (2 + 2 * rho).clamp_min(1e-3).sqrt()[:, None])
        sign = torch.where(((u @ rotation) ** 3 + (v @ rotation) ** 3).sum(1) < 0, -1.0, 1.0).to(u)
        rotation = rotation * sign[:, None]
    u, v = u @ rotation, v @ rotation
    return linear._replace(u=u, v=v, rho=(u * v).mean(1))


def components(white: Tensor) -> Tensor:
    """Rotation of white coordinates (b, n, m) to their independent components: (b, m, m), a component a column.

    FastICA with the contrast log cosh, all components at once (Hyvarinen 1999, IEEE Trans. Neural Networks 10(3)),
    from the identity, a fixed number of steps, in float64 where there is one.
    """
    b, n, m = white.shape
    z = white.to(torch.float32 if white.device.type == "mps" else torch.float64)
    rotation = torch.eye(m, dtype=z.dtype, device=z.device).expand(b, m, m)
    for _ in range(STEPS):
        bounded = torch.tanh(z @ rotation)
        newton = z.mT @ bounded / n - rotation * (1 - bounded.square()).mean(1, keepdim=True)
        # of either sign, as a component may have fewer far values than a Gaussian, or more
        sign = torch.where((rotation * newton).sum(1, keepdim=True) < 0, -1.0, 1.0).to(z)
        left, _, right = torch.linalg.svd(newton * sign + DAMPING / math.sqrt(n) * rotation)
        rotation = left @ right
    return rotation.to(white.dtype)
