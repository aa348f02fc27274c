"""Invertible maps, which leave mutual information as it is.

The five element-wise maps are those of the "Beyond Normal" benchmark (Czyz et al. 2023). The others carry problems
towards real embeddings: random monotone marginals, linear mixing and coupling layers.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def identity(t: Tensor) -> Tensor:
    """Return t as it is."""
    return t


def half_cube(t: Tensor) -> Tensor:
    """t |t|^(1/2): heavier tails."""
    return t * t.abs().sqrt()


def wiggly_x(t: Tensor) -> Tensor:
    """Increasing sum of a line and three sines; the map of x."""
    return t + 0.4 * torch.sin(t) + 0.2 * torch.sin(1.7 * t + 1) + 0.03 * torch.sin(3.3 * t - 2.5)


def wiggly_y(t: Tensor) -> Tensor:
    """Increasing sum of a line and three sines; the map of y."""
    return t - 0.4 * torch.sin(0.4 * t) + 0.17 * torch.sin(1.3 * t + 3.5) + 0.02 * torch.sin(4.3 * t - 2.5)


# name -> (map of x, map of y); the names are those of the paper's configurations
MAPS: dict[str, tuple[Map, Map]] = {
    "base": (identity, identity),
    "halfcube": (half_cube, half_cube),
    "asinh": (torch.asinh, torch.asinh),
    "wigglify": (wiggly_x, wiggly_y),
    "normal_cdf": (torch.special.ndtr, torch.special.ndtr),
}


def random_monotone(t: Tensor) -> Tensor:
    """A random increasing map for every set and feature: a line plus three logistic steps.

    Args:
        t: (b, n, d), of about unit scale.

    Returns:
        (b, n, d).
    """
    b, _, d = t.shape
    line = torch.rand(b, 1, d, device=t.device) + 0.05
    out = line * t
    for _ in range(3):
        height = 2 * torch.randn(b, 1, d, device=t.device).abs()
        centre = 1.5 * torch.randn(b, 1, d, device=t.device)
        slope = torch.exp(0.7 * torch.randn(b, 1, d, device=t.device))
        out = out + height * torch.tanh(slope * (t - centre))
    return out


def random_warp(t: Tensor) -> Tensor:
    """An increasing map that bends every feature of a set alike: a power, a bounded or a lopsided one.

    After mixing, no map of single features can undo it. Far rows hardly merge in float32.

    Args:
        t: (b, n, d); brought to unit mean absolute deviation first.

    Returns:
        (b, n, d).
    """
    u = torch.rand(t.shape[0], 1, 1, device=t.device)
    t = t / t.abs().mean((1, 2), keepdim=True).clamp_min(1e-12)
    kind = int(torch.randint(3, ()))
    if kind == 0:
        return t.sign() * t.abs() ** torch.exp(2 * u - 0.9)  # to the power of .4 to 3
    bent = (0.3 + 3 * u) * t
    length = (1 + bent.square()).sqrt()
    # t + sqrt(1 + t^2), without the cancellation on the left
    return bent / length if kind == 1 else torch.where(bent > 0, bent + length, 1 / (length - bent))


def random_rotation(b: int, d: int, device: torch.device) -> Tensor:
    """(b, d, d) orthogonal matrices: Q of the QR decomposition of Gaussian matrices."""
    return torch.linalg.qr(torch.randn(b, d, d, device=device)).Q


def random_linear(b: int, d: int, device: torch.device, spread: float = 1.0) -> Tensor:
    """Random invertible matrices, also ill-conditioned ones.

    Args:
        b: how many.
        d: dimensions.
        device: where.
        spread: standard deviation of log singular values is uniform in [0, spread].

    Returns:
        (b, d, d) matrices Q1 diag(exp(spread U z)) Q2.
    """
    strength = spread * torch.rand(b, 1, device=device)
    singular = torch.exp(strength * torch.randn(b, d, device=device))
    return (random_rotation(b, d, device) * singular[:, None]) @ random_rotation(b, d, device)


def random_network(b: int, k: int, d: int, device: torch.device) -> Map:
    """A random network of one or two layers that carries k variables into d dimensions and loses nothing.

    Its weights have full rank, and its activations increase. Only rectifiers, which are flat on one side, do not; they
    are given eight units a variable, of which enough are active anywhere (Puthawala et al. 2022, arXiv 2006.08464).
    Half of the time a linear layer comes last, as in most encoders.

    Args:
        b: sets, each with a network of its own.
        k: variables.
        d: dimensions, at least k.
        device: where.

    Returns:
        A map (b, n, k) -> (b, n, d); what it is given is brought to unit scale first.
    """
    kind = int(torch.randint(4 if d >= 8 * k else 3, ()))
    layers = []
    for inputs in [k, d][: 1 + int(torch.randint(2, ()))]:
        gain = torch.exp(0.7 * torch.randn(b, 1, 1, device=device))
        weights = torch.randn(b, inputs, d, device=device) / math.sqrt(inputs)
        if inputs == d:  # a square matrix of normal numbers is next to singular
            weights = random_linear(b, d, device)
        layers.append((gain * weights, gain * torch.rand(b, 1, 1, device=device) * torch.randn(b, 1, d, device=device)))

    last = random_linear(b, d, device) if torch.rand(()) < 0.5 else None

    def network(t: Tensor) -> Tensor:
        for weights, bias in layers:
            t = t / t.square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-12)
            t = t @ weights + bias
            length = (1 + t.square()).sqrt()
            t = (t / length, torch.where(t > 0, t, 0.1 * t), t + length, t.clamp_min(0))[kind]
        return t if last is None else t @ last

    return network


def random_coupling(t: Tensor) -> Tensor:
    """A random affine coupling layer: the second half is scaled and shifted by a smooth function of the first half.

    Args:
        t: (b, n, d), of about unit scale; returned as it is for d = 1.

    Returns:
        (b, n, d).
    """
    b, _, d = t.shape
    if d < 2:
        return t
    k, hidden = d // 2, 16
    first, second = t[..., :k], t[..., k:]
    inner = torch.randn(b, k, hidden, device=t.device) / math.sqrt(k)
    outer = torch.randn(b, hidden, 2 * (d - k), device=t.device) / math.sqrt(hidden)
    strength = torch.rand(b, 1, 1, device=t.device)
    wave = torch.tanh(1.5 * first @ inner + torch.randn(b, 1, hidden, device=t.device))
    log_scale, shift = (wave @ outer * strength).chunk(2, dim=-1)
    return torch.cat([first, second * torch.exp(0.7 * torch.tanh(log_scale)) + 1.5 * shift], dim=-1)
