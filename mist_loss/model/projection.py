"""Fewer dimensions for samples wider than the model reads, or than the rows can bear.

A projection is a function of its side alone, so it can only lower mutual information (data processing inequality): what
is estimated afterwards is at most I(x; y). A criterion that minimises therefore sees only what the directions keep.

What each keeps of the truth:

- "pca", the default: the directions of largest variance. All of it where the shared part is what varies most, as in the
  codes of an encoder; nothing of what hides in directions of small variance.
- "random": a fixed draw. Most of it where a sample varies in few directions, next to nothing where noise of equal size
  fills all of them; the same on every call, so an encoder that minimises can hide in the rest.
- "sliced": the mean over SLICES fresh draws, k-sliced mutual information (Goldfeld et al. 2022, arXiv 2206.08526). As
  low as "random", but zero only if x and y are independent: over many steps no direction is spared.
- ``LearnedProjection``: trained to keep the most, max-sliced mutual information (Tsur et al. 2023, arXiv 2309.16200).
  The tightest of these bounds once it has followed the encoder.
- "none": nothing is lost; more dimensions than the model reads are an error.

How many directions: n rows certify little in more than n / 8 dimensions, see ``directions``.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from mist_loss.model.frontend import standardize
from mist_loss.validation import check_count

SLICES = 8
_RANK = 1e-10  # eigenvalues below this share of the largest are rounding, not variance


def directions(n: int, limit: int) -> int:
    """Directions to keep of a wide sample: one for each eight rows, at least 4 and at most the model's limit.

    With more, the noise is estimated. Sixteen rows of 128 dimensions that share 1.67 nats were estimated, by the first
    weights, at 1.6 with 4 principal directions, and at 9 with 15; of these 7.7 remained when one side was shuffled.
    """
    return min(limit, max(4, n // 8))


def project(x: Tensor, k: int, method: str) -> Tensor:
    """Project every set on at most k directions, after bringing its features to one scale.

    "pca": the directions of largest variance of the set itself, at most n - 1 of them since n centred rows have no
    more. "random": k orthonormal directions that depend on (d, k) alone: nothing is fitted, it is cheaper, and the same
    ones serve x and y of equal width. "sliced": SLICES independent draws from torch's generator, as further sets.
    Directions are constants for autograd.

    Args:
        x: (b, n, d) floating point; half precision is raised to float32 first.
        k: most dimensions to keep, below d.
        method: a key of METHODS.

    Returns:
        (b, n, k), or (b, n, n - 1) if "pca" has only that many directions; (b * SLICES, n, k) if "sliced", the slices
        of a set together.

    Raises:
        ValueError: x is not of that shape, or the method is none of them.
    """
    if x.ndim != 3:
        raise ValueError(f"expected x of shape (b, n, d), got {tuple(x.shape)}: one set is x[None]")
    if method not in METHODS:
        raise ValueError(f"expected method to be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    z = standardize(x)
    if method == "sliced":
        z = z.repeat_interleave(SLICES, 0)
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


# an operator of its own, since a generator cannot be traced
@torch.library.custom_op("mist_loss::random_directions", mutates_args=())
def random_directions(z: Tensor, k: int) -> Tensor:
    """(d, k) orthonormal directions, uniform and the same on every call and device."""
    return torch.tensor(_orthonormal(z.shape[2], k), dtype=z.dtype, device=z.device)


@random_directions.register_fake
def _(z: Tensor, k: int) -> Tensor:
    return z.new_empty(z.shape[2], k)


@functools.lru_cache(maxsize=8)
def _orthonormal(d: int, k: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(0).standard_normal((d, k)))[0]


def fresh_directions(z: Tensor, k: int) -> Tensor:
    """(b, d, k) independent draws for every set; only the span matters, since the front end whitens."""
    return torch.randn(len(z), z.shape[2], k, device=z.device, dtype=z.dtype) / z.shape[2] ** 0.5


METHODS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "pca": principal_directions,
    "random": random_directions,
    "sliced": fresh_directions,
}


class LearnedProjection(nn.Module):
    """Linear maps of wide samples that are trained to keep as much mutual information as k dimensions can.

    A module of the criterion, ``MISTCriterion(projection=LearnedProjection(2048, 2048, 16))``: hand
    ``criterion.parameters()`` to the optimiser beside the encoder's. They ascend the mutual information also where the
    criterion minimises it: there the projection is an adversary of the encoder.

    Args:
        dx: dimensions of x.
        dy: dimensions of y.
        k: dimensions to keep of each side wider than that; about an eighth of the rows, at most what the model reads.

    Raises:
        ValueError: no whole number of at least 1.
    """

    def __init__(self, dx: int, dy: int, k: int):
        super().__init__()
        for name, value in (("dx", dx), ("dy", dy), ("k", k)):
            check_count(name, value)
        self.x, self.y = (nn.Parameter(torch.randn(d, min(d, k)) / d**0.5) for d in (dx, dy))

    @property
    def dims(self) -> tuple[int, int]:
        """Dimensions of x and of y afterwards."""
        return self.x.shape[1], self.y.shape[1]

    def forward(self, x: Tensor, y: Tensor, adversary: bool = False) -> tuple[Tensor, Tensor]:
        """Project both sides.

        Args:
            x: (b, n, dx).
            y: (b, n, dy).
            adversary: whether gradients reach the weights with their sign reversed.

        Returns:
            (b, n, k) each, features brought to one scale first.

        Raises:
            ValueError: other dimensions than the constructor was told.
        """
        return self._map("x", x, self.x, adversary), self._map("y", y, self.y, adversary)

    def _map(self, name: str, sample: Tensor, weight: Tensor, adversary: bool) -> Tensor:
        if sample.shape[2] != len(weight):
            raise ValueError(
                f"expected {name} with the {len(weight)} dimensions of its LearnedProjection, got {sample.shape[2]}"
            )
        z = standardize(sample)
        weight = weight.to(z.dtype)
        return z @ (2 * weight.detach() - weight if adversary else weight)
