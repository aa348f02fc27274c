"""A way down where rows are too few to see what is left: the estimate is flat there, a kernel measure is not.

A dependence that n rows cannot tell from chance hardly moves the estimate, whose gradient is then mostly noise, and an
encoder that minimises it keeps what a probe with more rows reads. The Hilbert-Schmidt independence criterion (Gretton
et al. 2005) has no threshold: its gradients of many batches add up, however little one of them shows.
"""

import math

import torch
from torch import Tensor

from mist_loss.facing import CLIP
from mist_loss.model.frontend import standardize, whiten

BLOCK = 256  # rows whose distances are compared at once: memory stays linear in n


def parting(x: Tensor, y: Tensor, weight: float) -> Tensor:
    """Zero, whose gradient parts x from y.

    The gradient is that of the cosine of both centred Gaussian kernels (bandwidth: the mean square distance of a row
    from the mean) of the whitened sides, times sqrt(dx dy) / 2, which makes it the mutual information of weakly
    correlated Gaussian sides, about. Without whitening it would point away from the gradient of their mutual
    information. Of many rows every block of at most BLOCK is compared in itself.

    Args:
        x: (b, n, dx) finite.
        y: (b, n, dy).
        weight: of the gradient; 1 for one that is about as steep as weak mutual information.

    Returns:
        0-d zero: add it to a loss that minimises mutual information.
    """
    kx, ky = (_kernel(t) for t in (x, y))
    cosine = (kx * ky).sum((1, 2)) / (kx.square().sum((1, 2)) * ky.square().sum((1, 2)) + 1e-12).sqrt()
    push = weight * 0.5 * math.sqrt(x.shape[2] * y.shape[2]) * cosine.mean()
    return push - push.detach()


def _blocks(t: Tensor) -> Tensor:
    """(b, n, d) to (b k, n // k, d), k blocks of every k-th row; less than k rows are left out."""
    b, n, d = t.shape
    k = -(-n // BLOCK)
    return t[:, : n // k * k].reshape(b, n // k, k, d).transpose(1, 2).reshape(b * k, n // k, d)


def _kernel(t: Tensor) -> Tensor:
    """(b k, n, n) Gaussian kernels of the blocks of a whitened side, without the means of their rows and columns."""
    t = standardize(t).clamp(-CLIP, CLIP)
    t = _blocks(whiten(t).to(t.dtype))
    norms = t.square().sum(2)
    squares = (norms[:, :, None] + norms[:, None] - 2 * t @ t.mT).clamp_min(0)
    kernel = torch.exp(-squares / (2 * norms.detach().mean(1).clamp_min(1e-12)[:, None, None]))
    kernel = kernel - kernel.mean(1, keepdim=True)
    return kernel - kernel.mean(2, keepdim=True)
