"""Fewer dimensions for samples wider than the model reads.

A projection is a function of its side alone, so it can only lower mutual information (data processing inequality): what
is estimated afterwards is at most I(x; y). A criterion that minimises therefore sees only what the directions keep.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mist_loss.model.frontend import standardize

_RANK = 1e-10  # eigenvalues below this share of the largest are rounding, not variance


def project(x: Tensor, k: int, method: str) -> Tensor:
    """Project every set on at most k directions, after bringing its features to one scale.

    "pca": the directions of largest variance of the set itself, at most n - 1 of them since n centred rows have no
    more; it keeps the most variance, not necessarily the most information. "random": k orthonormal directions that
    depend on (d, k) alone: nothing is fitted, it is cheaper, and the same ones serve x and y of equal width. Directions
    are constants for autograd.

    Args:
        x: (b, n, d) floating point; half precision is raised to float32 first.
        k: most dimensions to keep, below d.
        method: a key of METHODS.

    Returns:
        (b, n, k), or (b, n, n - 1) if "pca" has only that many directions.
    """
    z = standardize(x)
    return z @ METHODS[method](z.detach(), k)


def principal_directions(z: Tensor, k: int) -> Tensor:
    """Leading right singular vectors of centred sets (b, n, d) -> (b, d, min(k, n - 1)); zero where nothing varies.

    From the eigenvectors of the smaller of the two Gram matrices, in float64 (float32 on devices without it).
    """
    n, d = z.shape[1:]
    k, dtype = min(k, n - 1), z.dtype
    z = z.to(torch.float32 if z.device.type == "mps" else torch.float64)
    gram = z.transpose(1, 2) @ z if d <= n else z @ z.transpose(1, 2)
    values, vectors = (t[..., -k:].flip(-1) for t in torch.linalg.eigh(gram))
    varies = values > _RANK * values[:, :1]
    scale = varies.to(z)
    if d > n:
        vectors = z.transpose(1, 2) @ vectors
        scale = torch.where(varies, values, 1).rsqrt() * scale
    return (vectors * scale[:, None]).to(dtype)


def random_directions(z: Tensor, k: int) -> Tensor:
    """(d, k) orthonormal directions, uniform and the same on every call and device."""
    return _as_constant(z.shape[2], k).to(z)


@functools.lru_cache(maxsize=8)
def _orthonormal(d: int, k: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(0).standard_normal((d, k)))[0]


@torch.compiler.assume_constant_result  # a generator cannot be traced
def _as_constant(d: int, k: int) -> Tensor:
    return torch.from_numpy(_orthonormal(d, k))


METHODS: dict[str, Callable[[Tensor, int], Tensor]] = {"pca": principal_directions, "random": random_directions}
