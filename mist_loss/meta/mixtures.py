"""Named meta-distributions: which families, dimensions and row counts are drawn, and how often."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mist_loss.meta import discrete, families, maps, structures
from mist_loss.meta.families import Problem

# A family draws b problems with random parameters: (b, n, dx, dy, device) -> Problem
Family = Callable[[int, int, int, int, torch.device], Problem]

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


def _configured(name: str) -> Family:
    return lambda b, n, dx, dy, device: configuration(name, b, n, dx, dy, device)


def _any_map(base: str) -> Family:
    """A base and structure of the paper under one of the five maps."""

    def draw(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
        return configuration(f"{base}-{_choice(list(maps.MAPS))}", b, n, dx, dy, device)

    return draw


def _chance(p: float) -> bool:
    return bool(torch.rand(()) < p)


def _choice(options: list[str]) -> str:
    return options[int(torch.randint(len(options), ()))]


def _carry(problem: Problem) -> Problem:
    """Carry a problem towards real embeddings: by chance coupling, element-wise map, mixing, monotone marginals."""
    (x, y, mi), b = problem, len(problem.mi)
    if _chance(0.25):
        x, y = maps.random_coupling(x), maps.random_coupling(y)
    if _chance(0.25):
        map_x, map_y = maps.MAPS[_choice(list(maps.MAPS))]
        x, y = map_x(x), map_y(y)
    if _chance(0.6):
        x = x @ maps.random_linear(b, x.shape[2], x.device)
        y = y @ maps.random_linear(b, y.shape[2], y.device)
        x, y = (t / t.square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-12) for t in (x, y))
    if _chance(0.3):
        x, y = maps.random_monotone(x), maps.random_monotone(y)
    return Problem(x, y, mi)


def _random_rho(b: int, m: int, device: torch.device) -> Tensor:
    """(b, m) canonical correlations: any number of them, a tenth of the sets without; decaying, scattered or level."""
    top = 0.995 * torch.rand(b, 1, device=device) ** 0.5
    i = torch.arange(m, device=device)
    decaying = torch.exp(-i * torch.rand(b, 1, device=device) ** 2)
    scattered, level = torch.rand(b, m, device=device), torch.ones(b, m, device=device)
    kind = torch.randint(3, (b, 1), device=device)
    shape = torch.where(kind == 0, decaying, torch.where(kind == 1, scattered, level))
    number = torch.randint(1, m + 1, (b, 1), device=device) * (torch.rand(b, 1, device=device) < 0.9)
    return top * shape * (i < number)


def _canonical(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    problem = families.canonical_normal(_random_rho(b, min(dx, dy), device), n, dx, dy)
    if _chance(0.3):
        problem = families.with_student_scale(problem, uniform(b, 1, 10, device))
    return _carry(problem)


def _student_identity(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    dispersion = correlation("identity", b, dx, dy, device)
    problem = families.student(dispersion, uniform(b, 1, 10, device), n, dx)
    map_x, map_y = maps.MAPS[_choice(["base", "asinh", "wigglify"])]
    return Problem(map_x(problem.x), map_y(problem.y), problem.mi)


def _additive(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """Additive noise of any width, one width for all coordinates or each its own, some without dependence."""
    m = min(dx, dy)
    low, high = math.log(0.08), math.log(2.0)
    each = torch.rand(b, m, device=device)
    common = torch.rand(b, 1, device=device).expand(-1, m)
    epsilon = torch.exp(low + (high - low) * (common if _chance(0.5) else each))
    active = torch.arange(m, device=device) < torch.randint(1, m + 1, (b, 1), device=device)
    return _carry(families.additive_noise(torch.where(active, epsilon, 50.0), n, dx, dy))


def _signed(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """Correlations of random sign, in many dimensions at most partly so.

    A sign that hides all correlation can be seen in a few dimensions only. In more it would teach nothing but
    doubt: every sample that looks independent would be given the nats of those that merely do.
    """
    rho = _random_rho(b, min(dx, dy), device).clamp_max(0.95)
    few = max(dx, dy) <= 4
    flip = (0.5 if few else 0.25) * torch.rand(b, device=device)
    if few and _chance(0.5):
        flip = torch.full_like(flip, 0.5)
    return _carry(families.signed_normal(rho, flip, n, dx, dy))


def _radial(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """Lengths that rise or fall together, alone or in a few coordinates beside Gaussian ones.

    Lengths that fall as others rise, which no Student-t has, are what encoders learn to make that climb an estimate
    trained without them.
    """
    px, py = (int(torch.randint((d + 1) // 2, d + 1, ())) for d in (dx, dy))
    if min(dx - px, dy - py) < 1 or _chance(0.5):
        px, py = dx, dy
    rho = uniform(b, -0.99, 0.99, device) * (torch.rand(b, device=device) < 0.9)
    spread = torch.exp(uniform(2 * b, math.log(0.1), math.log(1.5), device)).reshape(b, 2)
    problem = families.radial(rho, spread, n, px, py)
    if px < dx:
        rest = families.canonical_normal(_random_rho(b, min(dx - px, dy - py), device), n, dx - px, dy - py)
        x, y = (torch.cat(sides, dim=-1) for sides in zip(problem[:2], rest[:2], strict=True))
        problem = Problem(x, y, problem.mi + rest.mi)
    return _carry(problem)


def _modulated(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """One side moves where the other spreads: linear in one, quadratic in the other, whichever is which.

    Few pairs and not too strong: more would hide nats that nothing can show, and teach doubt.
    """
    swap = _chance(0.5)
    if swap:
        dx, dy = dy, dx
    m = int(torch.randint(1, min(dx, dy, 3) + 1, ()))
    spread = torch.exp(uniform(b, math.log(0.3), math.log(1.2), device))
    x, y, mi = families.modulated(_random_rho(b, m, device).clamp_max(0.9), spread, n, dx, dy)
    return _carry(Problem(y, x, mi) if swap else Problem(x, y, mi))


def _labelled(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """One to eight independent sources, each a labelled mixture behind a symmetric channel; y at times the label.

    The clusters of real embeddings are no spheres, so every source has its own carrying maps before they are joined.
    """
    largest = min(dx, dy, 8)
    blocks = int(torch.randint(1, largest + 1, ()))
    px, py = dx // blocks, dy // blocks
    classes = int(torch.randint(2, 11, ())) if _chance(0.5) else 2
    discrete_y = classes <= py and _chance(0.3)
    s = b * blocks
    weights = torch.rand(s, classes, device=device) + 0.2
    prior = weights / weights.sum(1, keepdim=True) if _chance(0.5) else torch.full_like(weights, 1 / classes)
    ceiling = (classes - 1) / classes  # the flip rate at which nothing gets through
    # low flip rates, where mutual information is high, more often than high ones; a fifth of the channels is clean
    rate = torch.rand(b, device=device) ** 1.5 * (torch.rand(b, device=device) < 0.8)
    flip = (ceiling * rate).repeat_interleave(blocks)
    separation = torch.exp(uniform(b, math.log(0.7), math.log(12.0), device)).repeat_interleave(blocks)

    def means(d: int) -> Tensor:
        spread = torch.randn(s, classes, d, device=device) / math.sqrt(d)
        return spread * separation[:, None, None]

    joint = discrete.symmetric_channel(prior, flip)
    means_y = None if discrete_y else means(py)
    scales = _scales(s, classes, px, device) if blocks == 1 else None  # of many sources too much would stay hidden
    problem = discrete.labelled_mixture(joint, means(px), means_y, n, scales_x=scales)
    if not discrete_y:
        problem = _carry(problem)
    problem = discrete.independent_blocks(problem, b, dx, dy)
    if discrete_y or _chance(0.5):
        return problem
    return _carry(problem)


def _labels(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """y is a label and nothing else: its indicators, all but one of them, or a code; x shows clusters, or a label too.

    Indicators add up to one, so a side has one direction less than columns; a code has an order that means nothing.
    """
    classes = _classes(dy)
    rate = torch.rand(b, device=device) ** 1.5 * (torch.rand(b, device=device) < 0.8)
    weights = torch.rand(b, classes, device=device) + 0.2
    prior = weights / weights.sum(1, keepdim=True) if _chance(0.5) else torch.full_like(weights, 1 / classes)
    if _chance(0.25):
        others = _classes(dx)
        joint = discrete.folded_channel(prior, rate, others)
        labels_y, labels_x = discrete.draw_labels(joint, n)
        x, y = (_columns(t, k, d) for t, k, d in ((labels_x, others, dx), (labels_y, classes, dy)))
        return Problem(x, y, discrete.label_mi(joint).to(x.dtype))
    joint = discrete.symmetric_channel(prior, rate * (classes - 1) / classes)
    separation = torch.exp(uniform(b, math.log(0.7), math.log(12.0), device))
    means = torch.randn(b, classes, dx, device=device) / math.sqrt(dx) * separation[:, None, None]
    scales = _scales(b, classes, dx, device)
    if scales is not None and _chance(0.5):
        means = 0.1 * means
    problem = _carry(discrete.labelled_mixture(joint, means, None, n, scales_x=scales))
    return problem._replace(y=_columns(problem.y.argmax(-1), classes, dy))


def _redundant(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """Columns that say nothing new, constant or linear in the others, which leave mutual information as it is."""
    fewer_x, fewer_y = int(torch.randint(1, dx + 1, ())), int(torch.randint(1, dy + 1, ()))
    problem = _canonical(b, n, fewer_x, fewer_y, device)
    return Problem(_padded(problem.x, dx), _padded(problem.y, dy), problem.mi)


def _padded(side: Tensor, d: int) -> Tensor:
    """Fill (b, n, k) up to (b, n, d) with constants, copies or combinations of its columns, in random places."""
    b, _, k = side.shape
    scale = side.square().mean((1, 2), keepdim=True).sqrt()
    kind = _choice(["constant", "copies", "combinations"])
    if kind == "constant":
        weights = torch.zeros(b, k, d - k, device=side.device)
    elif kind == "copies":
        index = torch.randint(k, (b, d - k), device=side.device)
        weights = torch.nn.functional.one_hot(index, k).transpose(1, 2).to(side.dtype)
    else:
        weights = torch.randn(b, k, d - k, device=side.device) / math.sqrt(k)
    extra = side @ weights + scale * torch.randn(b, 1, d - k, device=side.device)
    return torch.cat([side, extra], dim=-1)[..., torch.randperm(d, device=side.device)]


def _scales(b: int, classes: int, d: int, device: torch.device) -> Tensor | None:
    """Standard deviations (b, classes, d) of clusters: at times each its own, or all alike."""
    if _chance(0.7):
        return None
    return torch.exp(uniform(b, 0.1, 1.0, device)[:, None, None] * torch.randn(b, classes, d, device=device))


def _classes(d: int) -> int:
    """How many labels d columns show: d or d + 1 as indicators; one column is an indicator, or a code of a few."""
    if d == 1:
        return 2 if _chance(0.6) else int(torch.randint(3, 11, ()))
    return d + int(torch.randint(2, ()))


def _columns(labels: Tensor, classes: int, d: int) -> Tensor:
    """Labels (b, n) as columns (b, n, d): a code where d is 1, otherwise the first d indicators."""
    if d == 1:
        return torch.randperm(classes, device=labels.device)[labels][..., None].float()
    return torch.nn.functional.one_hot(labels, classes)[..., :d].float()


@dataclass(frozen=True)
class Mixture:
    """A meta-distribution.

    families: (weight, family) by name; rows and dims: inclusive ranges; equal: share of shapes with dx = dy, drawn
    evenly from ``equal_dims``, the other shapes draw dx and dy on a log scale, each alone.
    """

    families: dict[str, tuple[float, Family]]
    rows: tuple[int, int]
    dims: tuple[int, int]
    equal: float
    equal_dims: tuple[int, int]

    def shape(self) -> tuple[int, int, int]:
        """Draw (n, dx, dy): rows on a log scale."""
        n = _log_uniform(*self.rows)
        if _chance(self.equal):
            low, high = self.equal_dims
            d = int(torch.randint(low, high + 1, ()))
            return n, d, d
        return n, _log_uniform(*self.dims), _log_uniform(*self.dims)

    def pick(self, k: int) -> list[str]:
        """Draw the names of k families, by their weights."""
        names, weights = list(self.families), torch.tensor([float(weight) for weight, _ in self.families.values()])
        return [names[i] for i in torch.multinomial(weights, k, replacement=True).tolist()]

    def batch(self, sets: int, n: int, dx: int, dy: int, device: torch.device = CPU, chunk: int = 4) -> Problem:
        """Draw sets of one shape; every ``chunk`` of them comes from one family, so that a batch mixes families."""
        sizes = [min(chunk, sets - start) for start in range(0, sets, chunk)]
        parts = [
            self.families[name][1](b, n, dx, dy, device) for b, name in zip(sizes, self.pick(len(sizes)), strict=True)
        ]
        x, y, mi = (torch.cat(t) for t in zip(*parts, strict=True))
        return Problem(x, y, mi)


def _log_uniform(low: int, high: int) -> int:
    """An integer in [low, high], even on a log scale."""
    u = float(torch.rand(()))
    return min(high, int(math.exp(math.log(low) + u * math.log((high + 1) / low))))


def _paper(names: tuple[str, ...]) -> Mixture:
    return Mixture(
        families={name: (1.0, _configured(name)) for name in names},
        rows=(10, 512),
        dims=(2, 32),
        equal=1.0,
        equal_dims=(2, 32),
    )


_BROAD_BASES = {
    "multi_normal-dense": 6,
    "multi_normal-sparse": 6,
    "multi_normal-lvm": 5,
    "multi_normal-2pair": 3,
    "multi_student-dense": 6,
    "multi_student-sparse": 6,
    "multi_student-2pair": 3,
    "multi_additive_noise": 5,
}

MIXTURES: dict[str, Mixture] = {
    "paper": _paper(PAPER_TRAIN),
    "paper-imd": _paper(PAPER_IMD),
    "paper-oomd": _paper(PAPER_OOMD),
    "broad": Mixture(
        families={
            **{base: (weight, _any_map(base)) for base, weight in _BROAD_BASES.items()},
            "student-identity": (6, _student_identity),
            "canonical": (24, _canonical),
            "additive": (6, _additive),
            "signed": (4, _signed),
            "radial": (5, _radial),
            "modulated": (8, _modulated),
            "labelled": (20, _labelled),
            "labels": (12, _labels),
            "redundant": (8, _redundant),
        },
        rows=(10, 4096),
        dims=(1, 64),
        equal=0.65,
        equal_dims=(1, 34),
    ),
}
