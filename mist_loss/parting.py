"""A way down where rows are too few to see what is left: the estimate is flat there, a kernel measure is not.

A dependence that n rows cannot tell from chance hardly moves the estimate, whose gradient is then mostly noise, and an
encoder that minimises it keeps what a probe with more rows reads. The Hilbert-Schmidt independence criterion (Gretton
et al. 2005) has no threshold: its gradients of many batches add up, however little one of them shows.
"""

import math

import torch
from torch import Tensor

from mist_loss.collapse import varying
from mist_loss.model.frontend import whiten

CLIP = 3.0  # mean deviations: a few far rows should not decide
LEAST = 1e-8  # mean square of a centred kernel that is more than rounding
BLOCK = 256  # rows whose distances are compared at once: memory stays linear in n
GOLDEN = (math.sqrt(5) - 1) / 2


def parting(x: Tensor, y: Tensor, weight: float) -> Tensor:
    """Zero, whose gradient parts x from y where they share little.

    The gradient is that of HSIC between the whitened sides with Gaussian kernels (bandwidth: the mean square distance
    of a row from the mean), divided by the norms of both kernels and times sqrt(dx dy) / 2. In these units it is half
    to three quarters as steep as the mutual information of weakly correlated Gaussian sides, less where rows are few
    for the dimensions. Without whitening it would point away from the gradient of that mutual information. The
    estimator of HSIC is the unbiased one (Song et al. 2012), so that independent sides are left alone on average.

    Of more than BLOCK rows, every block of about as many is compared in itself; the blocks are spread evenly over the
    rows, whatever their order, but the gradient is then that of these blocks.

    Args:
        x: (b, n, dx) finite; features that are constant up to rounding are left alone.
        y: (b, n, dy).
        weight: of the gradient.

    Returns:
        0-d zero: add it to a loss that minimises mutual information.
    """
    kx, ky = (_kernel(t) for t in (x, y))
    squares = [_centred(k).square().mean((1, 2)) for k in (kx, ky)]
    # a block in which a side does not vary, as a rare label does, would be rounding divided by rounding
    varies = (squares[0] > LEAST) & (squares[1] > LEAST)
    product = (_u_centred(kx) * ky).mean((1, 2))
    cosine = torch.where(varies, product, 0.0) / torch.where(varies, squares[0] * squares[1], 1.0).sqrt()
    push = weight * 0.5 * math.sqrt(x.shape[2] * y.shape[2]) * cosine.mean()
    return push - push.detach()


def _blocks(t: Tensor) -> Tensor:
    """(b, n, d) to (b k, about n / k, d): blocks of rows in golden-ratio order, the last filled up by the first."""
    b, n, d = t.shape
    k = -(-n // BLOCK)
    size = -(-n // k)
    order = torch.argsort(torch.arange(n, dtype=torch.float64, device="cpu") * GOLDEN % 1)
    order = torch.cat([order, order[: k * size - n]]).to(t.device)
    return t[:, order].reshape(b * k, size, d)


def _kernel(t: Tensor) -> Tensor:
    """(b k, n, n) Gaussian kernels of the blocks of a side, whitened, with zeros on the diagonal."""
    t = varying(t, CLIP)
    t = _blocks(whiten(t, at_rest=True).to(t.dtype))
    norms = t.square().sum(2)
    squares = (norms[:, :, None] + norms[:, None] - 2 * t @ t.mT).clamp_min(0)
    kernel = torch.exp(-squares / (2 * norms.detach().mean(1).clamp_min(1e-12)[:, None, None]))
    return kernel - torch.diag_embed(kernel.diagonal(dim1=1, dim2=2))


def _centred(kernel: Tensor) -> Tensor:
    """The kernel, ones on its diagonal, without the means of its rows and columns."""
    kernel = kernel + torch.eye(kernel.shape[1], dtype=kernel.dtype, device=kernel.device)
    kernel = kernel - kernel.mean(1, keepdim=True)
    return kernel - kernel.mean(2, keepdim=True)


def _u_centred(kernel: Tensor) -> Tensor:
    """The kernel centred so that its product with another one without a diagonal has no bias (Székely & Rizzo 2014).

    Its rows, columns and diagonal sum to zero.
    """
    n = kernel.shape[1]
    rows = kernel.sum(2, keepdim=True) / (n - 2)
    total = kernel.sum((1, 2), keepdim=True) / ((n - 1) * (n - 2))
    centred = kernel - rows - rows.mT + total
    return centred - torch.diag_embed(centred.diagonal(dim1=1, dim2=2))
