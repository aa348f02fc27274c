"""The families of the broad mixture: wider draws of parameters, carried towards what embeddings look like."""

import math

import torch
from torch import Tensor

from mist_loss.meta import discrete, families, maps
from mist_loss.meta.families import Family, Problem
from mist_loss.meta.paper import configuration, correlation, uniform


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
        # far clusters would end where float32 cannot tell a bounded map's values apart
        x, y = (t / t.abs().mean((1, 2), keepdim=True).clamp_min(1) for t in (x, y))
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
    bits = _chance(0.5)  # fair, behind one channel, plain to see: what embeddings of two classes show
    # many bits are the hardest to count and carry the most nats, so half of the time they come more often than few
    blocks = int(torch.randint(1, largest + 1, (2 if bits and _chance(0.5) else 1,)).max())
    px, py = dx // blocks, dy // blocks
    classes = 2 if bits or _chance(0.5) else int(torch.randint(2, 11, ()))
    discrete_y = classes <= py and not bits and _chance(0.3)
    s = b * blocks
    weights = torch.rand(s, classes, device=device) + 0.2
    fair = bits or _chance(0.5)
    prior = torch.full_like(weights, 1 / classes) if fair else weights / weights.sum(1, keepdim=True)
    ceiling = (classes - 1) / classes  # the flip rate at which nothing gets through
    # low flip rates, where mutual information is high, more often than high ones; a fifth of the channels is clean
    rate = torch.rand(b, device=device) ** 1.5 * (torch.rand(b, device=device) < 0.8)
    flip = (ceiling * rate).repeat_interleave(blocks)
    # every cluster spreads in its own way, on both sides; of many sources too much would stay hidden
    shaped = blocks == 1 and _chance(0.5)
    nearest = 4.0 if bits else 0.7
    separation = torch.exp(uniform(b, math.log(nearest), math.log(12.0), device)).repeat_interleave(blocks)

    def means(d: int) -> Tensor:
        spread = torch.randn(s, classes, d, device=device) / math.sqrt(d)
        return spread * separation[:, None, None]

    joint = discrete.symmetric_channel(prior, flip)
    if bits and _chance(0.6):
        x, y = map(discrete.parted_clusters, discrete.draw_labels(joint, n), (px, py))
        problem = Problem(x, y, discrete.label_mi(joint).to(x.dtype))
    else:
        means_y = None if discrete_y else means(py)
        scales_x, scales_y = (_scales(s, classes, d, device) if shaped else None for d in (px, py))
        problem = discrete.labelled_mixture(joint, means(px), means_y, n, scales_x=scales_x, scales_y=scales_y)
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
    scales = _scales(b, classes, dx, device) if _chance(0.3) else None
    if scales is not None and _chance(0.5):
        means = 0.1 * means
    problem = discrete.labelled_mixture(joint, means, None, n, scales_x=scales)
    labels = problem.y.argmax(-1)  # before they are carried anywhere, where they could not be told any more
    return _carry(problem)._replace(y=_columns(labels, classes, dy))


def _clustered(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """Classes, and what a pair shares beyond its class: two views of an image; some pairs share it better than others.

    More than two come about eight times or more on average, since nobody can count those that come less often.
    """
    k = int(2 * (max(3.0, min(33.0, n / 8)) / 2) ** float(torch.rand(())))
    weights = torch.rand(b, k, device=device) + 0.2
    prior = weights / weights.sum(1, keepdim=True) if _chance(0.5) else torch.full_like(weights, 1 / k)
    spread = torch.exp(uniform(b, math.log(0.3), math.log(4.0), device)) * (torch.rand(b, device=device) < 0.85)
    crowding = torch.rand(b, device=device) / 2  # of the classes, in many dimensions

    def means(d: int) -> Tensor:
        shown = torch.arange(d, device=device) < torch.randint(1, d + 1, (b, 1), device=device)
        size = spread * d**-crowding
        return size[:, None, None] * shown[:, None] * torch.randn(b, k, d, device=device)

    def factors(chance: float) -> Tensor:
        return torch.exp(uniform(b, 0, 1.0, device)[:, None] * torch.randn(b, k, device=device) * _chance(chance))

    means_x = means(dx)
    means_y = means_x if dx == dy and _chance(0.5) else means(dy)
    rho = _random_rho(b, min(dx, dy), device).clamp_max(0.98)
    return _carry(discrete.clustered_normal(prior, means_x, means_y, factors(0.5), factors(0.5), rho, n))


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


def _scales(b: int, classes: int, d: int, device: torch.device) -> Tensor:
    """Standard deviations (b, classes, d) of clusters, each its own."""
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


_BASES = {
    "multi_normal-dense": 6,
    "multi_normal-sparse": 6,
    "multi_normal-lvm": 5,
    "multi_normal-2pair": 3,
    "multi_student-dense": 6,
    "multi_student-sparse": 6,
    "multi_student-2pair": 3,
    "multi_additive_noise": 5,
}

# weight and family by name
BROAD: dict[str, tuple[float, Family]] = {
    **{base: (weight, _any_map(base)) for base, weight in _BASES.items()},
    "student-identity": (6, _student_identity),
    "canonical": (24, _canonical),
    "additive": (6, _additive),
    "signed": (4, _signed),
    "radial": (5, _radial),
    "modulated": (8, _modulated),
    "labelled": (34, _labelled),
    "labels": (12, _labels),
    "clustered": (10, _clustered),
    "redundant": (8, _redundant),
}
