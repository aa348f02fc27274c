"""How problems are carried towards what embeddings look like, and the draws that the broad families share."""

import torch
from torch import Tensor

from mist_loss.meta import maps
from mist_loss.meta.families import Problem


def chance(p: float) -> bool:
    """Whether something of probability p happens."""
    return bool(torch.rand(()) < p)


def choice(options: list[str]) -> str:
    """One of them, all alike."""
    return options[int(torch.randint(len(options), ()))]


def carry(problem: Problem, mixing: float = 0.6) -> Problem:
    """Carry a problem towards real embeddings: by chance coupling, element-wise maps, mixing, monotone marginals.

    Args:
        problem: of about unit scale.
        mixing: chance of linear maps of both sides.
    """
    (x, y, mi), b = problem, len(problem.mi)
    if chance(0.25):
        x, y = maps.random_coupling(x), maps.random_coupling(y)
    if chance(0.25):
        map_x, map_y = maps.MAPS[choice(list(maps.MAPS))]
        # far clusters would end where float32 cannot tell a bounded map's values apart
        x, y = (t / t.abs().mean((1, 2), keepdim=True).clamp_min(1) for t in (x, y))
        x, y = map_x(x), map_y(y)
    if chance(mixing):
        x = x @ maps.random_linear(b, x.shape[2], x.device)
        y = y @ maps.random_linear(b, y.shape[2], y.device)
        x, y = (t / t.square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-12) for t in (x, y))
    if chance(0.3):
        x, y = maps.random_monotone(x), maps.random_monotone(y)
    return Problem(x, y, mi)


def random_rho(b: int, m: int, device: torch.device, extreme: float = 0.0) -> Tensor:
    """(b, m) canonical correlations: any number of them, a tenth of the sets without; decaying, scattered or level.

    The largest is at most .995, but for a share ``extreme`` of the sets, where it comes within 10^-2.3 to
    10^-4.5 of 1.
    """
    top = 0.995 * torch.rand(b, 1, device=device) ** 0.5
    if extreme:
        near = 1 - 10 ** -(2.3 + 2.2 * torch.rand(b, 1, device=device))
        top = torch.where(torch.rand(b, 1, device=device) < extreme, near, top)
    i = torch.arange(m, device=device)
    decaying = torch.exp(-i * torch.rand(b, 1, device=device) ** 2)
    scattered, level = torch.rand(b, m, device=device), torch.ones(b, m, device=device)
    kind = torch.randint(3, (b, 1), device=device)
    shape = torch.where(kind == 0, decaying, torch.where(kind == 1, scattered, level))
    number = torch.randint(1, m + 1, (b, 1), device=device) * (torch.rand(b, 1, device=device) < 0.9)
    return top * shape * (i < number)
