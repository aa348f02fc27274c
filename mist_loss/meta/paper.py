"""The paper's configurations (arXiv 2511.18945): a base, a structure of its correlation and a map, as in its code."""

import torch
from torch import Tensor

from mist_loss.meta import families, maps, structures
from mist_loss.meta.families import Problem

CPU = torch.device("cpu")

# The configurations of the paper's code: base - structure - map
PAPER_TRAIN = (
    "multi_normal-dense-base",
    "multi_normal-dense-halfcube",
    "multi_normal-dense-asinh",
    "multi_normal-sparse-wigglify",
    "multi_normal-sparse-base",
    "multi_normal-lvm-wigglify",
    "multi_normal-lvm-base",
    "multi_normal-2pair-base",
    "multi_student-dense-base",
    "multi_student-dense-wigglify",
    "multi_student-sparse-halfcube",
    "multi_student-sparse-base",
    "multi_student-sparse-asinh",
    "multi_student-2pair-asinh",
    "multi_student-2pair-halfcube",
    "multi_additive_noise-wigglify",
)
PAPER_IMD = (
    "multi_normal-dense-base",
    "multi_normal-lvm-wigglify",
    "multi_normal-dense-halfcube",
    "multi_student-dense-base",
    "multi_student-sparse-base",
    "multi_student-sparse-asinh",
)
PAPER_OOMD = (
    "multi_normal-dense-wigglify",
    "multi_normal-sparse-halfcube",
    "multi_normal-sparse-asinh",
    "multi_student-sparse-wigglify",
    "multi_student-dense-halfcube",
    "multi_additive_noise-base",
    "multi_additive_noise-halfcube",
)


def uniform(b: int, low: float, high: float, device: torch.device) -> Tensor:
    """(b,) draws from the uniform distribution on (low, high)."""
    return low + (high - low) * torch.rand(b, device=device)


def correlation(structure: str, b: int, dx: int, dy: int, device: torch.device) -> Tensor:
    """Random correlation matrices of a structure of the paper, with the paper's parameter ranges.

    Args:
        structure: dense, sparse, 2pair, lvm or identity.
        b: how many.
        dx: dimensions of x.
        dy: dimensions of y.
        device: where.

    Returns:
        (b, dx + dy, dx + dy).
    """
    if structure == "dense":
        return structures.dense_correlation(uniform(b, 0, 0.5, device), dx, dy)
    if structure == "identity":
        return structures.dense_correlation(torch.zeros(b, device=device), dx, dy)
    m, zero = min(dx, dy), torch.zeros(b, device=device)
    interacting = torch.randint(1, m + 1, (b,), device=device)
    if structure == "lvm":
        alpha, beta = uniform(b, 0, 1, device), uniform(b, 0, 1.5, device)
        lambd, eta = uniform(b, 0.1, 3, device), uniform(b, 0.1, 5, device)
        return structures.latent_correlation(dx, dy, interacting, alpha, lambd, beta, eta)
    if structure == "2pair":
        interacting = torch.full_like(interacting, min(2, m))
    elif structure != "sparse":
        raise ValueError(f"structure must be dense, sparse, 2pair, lvm or identity, got {structure!r}")
    strength = uniform(b, 0.1, 5, device)
    return structures.latent_correlation(dx, dy, interacting, zero, strength, zero, strength)


def configuration(name: str, b: int, n: int, dx: int, dy: int, device: torch.device = CPU) -> Problem:
    """Draw b problems of a configuration of the paper, parameters uniform over the paper's ranges.

    Args:
        name: base-structure-map, for instance "multi_student-sparse-asinh" or "multi_additive_noise-wigglify".
        b: how many sets.
        n: rows of each.
        dx: dimensions of x.
        dy: dimensions of y.
        device: where.

    Raises:
        ValueError: the name is not of that form.
    """
    base, _, rest = name.partition("-")
    structure, _, map_name = rest.rpartition("-")
    if map_name not in maps.MAPS:
        raise ValueError(f"the map of a configuration must be one of {sorted(maps.MAPS)}, got {name!r}")
    if base == "multi_normal":
        problem = families.normal(correlation(structure, b, dx, dy, device), n, dx)
    elif base == "multi_student":
        dof = uniform(b, 1, 10, device)
        problem = families.student(correlation(structure, b, dx, dy, device), dof, n, dx)
    elif base == "multi_additive_noise":
        epsilon = 0.1 + 1.9 * torch.rand(b, min(dx, dy), device=device)
        problem = families.additive_noise(epsilon, n, dx, dy)
    else:
        raise ValueError(
            f"a configuration starts with multi_normal, multi_student or multi_additive_noise, got {name!r}"
        )
    map_x, map_y = maps.MAPS[map_name]
    return Problem(map_x(problem.x), map_y(problem.y), problem.mi)
