"""One side is a function of the other and noise: y = f(g) + s e, with f of any shape and noise of any, also one-sided.

I(g; y) = h(y) - h(s e), and the density of y is that of f(g) convolved with the noise, on a grid.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mist_loss.meta.families import Problem
from mist_loss.meta.paper import uniform


def _normal_cdf(t: Tensor) -> Tensor:
    return torch.special.ndtr(t)


def _laplace_cdf(t: Tensor) -> Tensor:
    return 0.5 + 0.5 * t.sign() * -torch.expm1(-t.abs())


def _uniform_cdf(t: Tensor) -> Tensor:
    return (t + 0.5).clamp(0, 1)


def _exponential_cdf(t: Tensor) -> Tensor:
    return -torch.expm1(-t.clamp_min(0))


def _uniform_noise(shape: torch.Size, device: torch.device) -> Tensor:
    return torch.rand(shape, device=device) - 0.5


def _exponential_noise(shape: torch.Size, device: torch.device) -> Tensor:
    return -torch.log1p(-torch.rand(shape, device=device))


def _laplace_noise(shape: torch.Size, device: torch.device) -> Tensor:
    return _exponential_noise(shape, device) - _exponential_noise(shape, device)


def _normal_noise(shape: torch.Size, device: torch.device) -> Tensor:
    return torch.randn(shape, device=device)


class Noise(NamedTuple):
    """A distribution of noise.

    sample: of a shape, on a device; cdf: distribution function; entropy: in nats; left, right: how far it reaches;
    deviation: standard deviation.
    """

    sample: Callable[[torch.Size, torch.device], Tensor]
    cdf: Callable[[Tensor], Tensor]
    entropy: float
    left: float
    right: float
    deviation: float


NOISES = {
    "normal": Noise(_normal_noise, _normal_cdf, 0.5 * math.log(2 * math.pi * math.e), 7, 7, 1.0),
    "laplace": Noise(_laplace_noise, _laplace_cdf, 1 + math.log(2), 16, 16, math.sqrt(2)),
    "uniform": Noise(_uniform_noise, _uniform_cdf, 0.0, 0.5, 0.5, 1 / math.sqrt(12)),
    "exponential": Noise(_exponential_noise, _exponential_cdf, 1.0, 0, 16, 1.0),
}


# Functions of g (b, n, m, k), whose last dimension counts inputs; p (2, b, 1, m) are even in (0, 1) and shape them.
# Those of one input ignore the others.
Function = Callable[[Tensor, Tensor], Tensor]


def _line(g: Tensor, p: Tensor) -> Tensor:
    return g[..., 0]


def _one_sided(g: Tensor, p: Tensor) -> Tensor:
    return -torch.special.log_ndtr(-g[..., 0])  # an exponential variable


def _sigmoid(g: Tensor, p: Tensor) -> Tensor:
    return torch.tanh((0.5 + 3 * p[0]) * g[..., 0] + 2 * p[1] - 1)


def _hinge(g: Tensor, p: Tensor) -> Tensor:
    t = g[..., 0]
    return (t - 2 * p[1] + 1).clamp_min(0) + (p[0] - 0.5).clamp_min(0) * t  # flat on the left half of the time


def _exponential(g: Tensor, p: Tensor) -> Tensor:
    return torch.exp((0.3 + 0.7 * p[0]) * g[..., 0])


def _power(g: Tensor, p: Tensor) -> Tensor:
    return g[..., 0].sign() * g[..., 0].abs() ** (0.4 + 2.6 * p[0])


def _even(g: Tensor, p: Tensor) -> Tensor:
    return (g[..., 0] + (p[1] - 0.5) * (p[1] > 0.3)).abs() ** (0.7 + 2 * p[0])


def _cubic(g: Tensor, p: Tensor) -> Tensor:
    t = g[..., 0]
    return (t**2 - 3 * p[0]) * t + (2 * p[1] - 1) * t**2


def _wave(g: Tensor, p: Tensor) -> Tensor:
    return torch.sin(2 * math.pi * ((0.4 + 1.8 * p[0]) * torch.special.ndtr(g[..., 0]) + p[1]))


def _product(g: Tensor, p: Tensor) -> Tensor:
    return g[..., 0] * torch.tanh((0.5 + 3 * p[0]) * g[..., 1])


def _length(g: Tensor, p: Tensor) -> Tensor:
    return (g.square().sum(-1)) ** (0.3 + 0.5 * p[0])


def _largest(g: Tensor, p: Tensor) -> Tensor:
    return torch.where(p[0] < 0.5, g.amax(-1), g.abs().amax(-1))


MONOTONE: dict[str, Function] = {
    "line": _line,
    "one-sided": _one_sided,
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "exponential": _exponential,
    "power": _power,
}
FOLDED: dict[str, Function] = {"even": _even, "cubic": _cubic, "wave": _wave}
PAIRED: dict[str, Function] = {"product": _product}
GROUPED: dict[str, Function] = {"length": _length, "largest": _largest}
FUNCTIONS = MONOTONE | FOLDED | PAIRED | GROUPED
GROUP = 6  # inputs of a function of a group, at most


def lattice(points: int, inputs: int, device: torch.device) -> Tensor:
    """(points, inputs) float64 even points of the unit cube (Roberts' sequence), none on its faces."""
    root = 1.0  # of t^(inputs + 1) = t + 1
    for _ in range(64):
        root = (1 + root) ** (1 / (inputs + 1))
    i = torch.arange(1, points + 1, dtype=torch.float64, device=device)[:, None]
    steps = root ** -torch.arange(1, inputs + 1, dtype=torch.float64, device=device)
    return (i * steps + 0.5) % 1


def noisy_mi(centres: Tensor, chances: Tensor, scale: Tensor, noise: str, cells: int = 4096) -> Tensor:
    """I(f; f + scale e) in nats, from values that f takes.

    Args:
        centres: (s, k) values of f, as close to each other as the noise is wide wherever that matters.
        chances: (k,) of these values; adding up to one.
        scale: (s,) of the noise; its error is small where the noise spreads over a few cells.
        noise: one of NOISES.
        cells: of the grid over what y may be.

    Returns:
        (s,) float64.
    """
    _, cdf, entropy, left, right, _ = NOISES[noise]
    c, s = centres.double(), scale.double()[:, None]
    low, high = c.amin(1, keepdim=True) - left * s, c.amax(1, keepdim=True) + right * s
    step = (high - low) / (cells - 3)
    position = (c - low) / step + 1
    first = position.floor().long().clamp(0, cells - 2)
    weight = position - first
    share = torch.zeros(len(c), cells, dtype=c.dtype, device=c.device)
    chance = chances.double()
    share.scatter_add_(1, first, chance * (1 - weight)).scatter_add_(1, first + 1, chance * weight)
    offsets = torch.arange(1 - cells, cells, device=c.device) * step
    kernel = cdf((offsets + step / 2) / s) - cdf((offsets - step / 2) / s)
    size = 2 * cells  # what wraps around lies before the part that is kept
    spectrum = torch.fft.rfft(share, size) * torch.fft.rfft(kernel, size)
    density = torch.fft.irfft(spectrum, size)[:, cells - 1 : 2 * cells - 1].clamp_min(0)
    density = density / density.sum(1, keepdim=True)
    return (-torch.special.xlogy(density, density).sum(1) + (step / s)[:, 0].log() - entropy).clamp_min(0)


def normal_points(inputs: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Points (k, inputs) of standard normal variables, and their chances (k,).

    Of one, even in the variable itself: quantiles would leave gaps in the tails that are wider than the noise.
    """
    if inputs > 1:
        z = torch.special.ndtri(lattice(2**15, inputs, device))
        return z, torch.full_like(z[:, 0], 2**-15)
    z = torch.linspace(-5, 5, 2**11, dtype=torch.float64, device=device)
    return z[:, None], torch.softmax(-0.5 * z**2, dim=0)


def noisy_function(function: str, noise: str, scale: Tensor, n: int, inputs: int = 1) -> Problem:
    """m independent pairs: y_i = f_i(g_i) + noise, f_i of one or more normal variables, scaled to unit deviation.

    Args:
        function: one of FUNCTIONS; its shape is drawn for every pair.
        noise: one of NOISES.
        scale: (b, m) of the noise; raised to a four-hundredth of the range of f, which the grid resolves.
        n: rows of each set.
        inputs: of f: 2 of those in PAIRED, 2 to GROUP of those in GROUPED, 1 of the others.

    Returns:
        x (b, n, inputs m); y (b, n, m).
    """
    b, m = scale.shape
    device = scale.device
    f = FUNCTIONS[function]
    shape = torch.rand(2, b, 1, m, device=device)
    g = torch.randn(b, n, m, inputs, device=device)
    points, chances = normal_points(inputs, device)
    values = f(points.to(g.dtype)[None, :, None], shape).expand(b, -1, m)
    weights = chances.to(g.dtype)[None, :, None]
    mean = (weights * values).sum(1, keepdim=True)
    deviation = (weights * (values - mean).square()).sum(1, keepdim=True).sqrt()
    values = ((values - mean) / deviation).mT  # (b, m, k)
    scale = torch.maximum(scale, (values.amax(2) - values.amin(2)) / 400)
    mi = noisy_mi(values.flatten(0, 1), chances, scale.flatten(), noise).reshape(b, m).sum(1)
    y = (f(g, shape) - mean) / deviation + scale[:, None] * NOISES[noise].sample(torch.Size((b, n, m)), device)
    return Problem(g.flatten(2), y, mi.float())


def draw_scale(b: int, m: int, device: torch.device) -> Tensor:
    """(b, m) widths of noise, scattered around one for a set, a hundredth to twice the deviation of f."""
    low, high = math.log(0.01), math.log(2.0)
    common = uniform(b, low, high, device)[:, None]
    return torch.exp(common + 0.5 * torch.randn(b, m, device=device))
