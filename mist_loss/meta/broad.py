"""The families of the broad mixture: wider draws of parameters, carried towards what embeddings look like."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mist_loss.meta import broad_discrete, families, functions, maps, spheres
from mist_loss.meta.carrying import carry, chance, choice, random_rho
from mist_loss.meta.families import Family, Problem
from mist_loss.meta.paper import configuration, correlation, uniform


def _any_map(base: str) -> Family:
    """A base and structure of the paper under one of the five maps."""

    def draw(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
        return configuration(f"{base}-{choice(list(maps.MAPS))}", b, n, dx, dy, device)

    return draw


def _canonical(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    problem = families.canonical_normal(random_rho(b, min(dx, dy), device), n, dx, dy)
    if chance(0.3):
        problem = families.with_student_scale(problem, uniform(b, 1, 10, device))
    return carry(problem)


def _student_identity(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    dispersion = correlation("identity", b, dx, dy, device)
    problem = families.student(dispersion, uniform(b, 1, 10, device), n, dx)
    map_x, map_y = maps.MAPS[choice(["base", "asinh", "wigglify"])]
    return Problem(map_x(problem.x), map_y(problem.y), problem.mi)


def _additive(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """Additive noise of any width, one width for all coordinates or each its own, some without dependence."""
    m = min(dx, dy)
    low, high = math.log(0.08), math.log(2.0)
    each = torch.rand(b, m, device=device)
    common = torch.rand(b, 1, device=device).expand(-1, m)
    epsilon = torch.exp(low + (high - low) * (common if chance(0.5) else each))
    active = torch.arange(m, device=device) < torch.randint(1, m + 1, (b, 1), device=device)
    return carry(families.additive_noise(torch.where(active, epsilon, 50.0), n, dx, dy))


def _signed(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """Correlations of random sign, in many dimensions at most partly so.

    A sign that hides all correlation can be seen in a few dimensions only. In more it would teach nothing but
    doubt: every sample that looks independent would be given the nats of those that merely do.
    """
    rho = random_rho(b, min(dx, dy), device).clamp_max(0.95)
    few = max(dx, dy) <= 4
    flip = (0.5 if few else 0.25) * torch.rand(b, device=device)
    if few and chance(0.5):
        flip = torch.full_like(flip, 0.5)
    return carry(families.signed_normal(rho, flip, n, dx, dy))


def _radial(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """Lengths that rise or fall together, alone or in a few coordinates beside Gaussian ones.

    Lengths that fall as others rise, which no Student-t has, are what encoders learn to make that climb an estimate
    trained without them.
    """
    px, py = (int(torch.randint((d + 1) // 2, d + 1, ())) for d in (dx, dy))
    if min(dx - px, dy - py) < 1 or chance(0.5):
        px, py = dx, dy
    rho = uniform(b, -0.99, 0.99, device) * (torch.rand(b, device=device) < 0.9)
    spread = torch.exp(uniform(2 * b, math.log(0.1), math.log(1.5), device)).reshape(b, 2)
    problem = families.radial(rho, spread, n, px, py)
    if px < dx:
        rest = families.canonical_normal(random_rho(b, min(dx - px, dy - py), device), n, dx - px, dy - py)
        x, y = (torch.cat(sides, dim=-1) for sides in zip(problem[:2], rest[:2], strict=True))
        problem = Problem(x, y, problem.mi + rest.mi)
    return carry(problem)


def _modulated(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """One side moves where the other spreads: linear in one, quadratic in the other, whichever is which.

    Few pairs and not too strong: more would hide nats that nothing can show, and teach doubt.
    """
    swap = chance(0.5)
    if swap:
        dx, dy = dy, dx
    m = int(torch.randint(1, min(dx, dy, 3) + 1, ()))
    spread = torch.exp(uniform(b, math.log(0.3), math.log(1.2), device))
    x, y, mi = families.modulated(random_rho(b, m, device).clamp_max(0.9), spread, n, dx, dy)
    return carry(Problem(y, x, mi) if swap else Problem(x, y, mi))


def _functional(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """Coordinates of y that are functions of one or more of x and noise, or the other way round.

    Functions that turn back, or take more inputs, only a few at a time and where rows are plenty, for the reason given
    at ``_signed``: what hides from correlation in many dimensions teaches doubt. Nor are wide sides mixed.
    """
    swap = chance(0.5)
    if swap:
        dx, dy = dy, dx
    kinds = [functions.MONOTONE]
    if max(dx, dy) <= max(4, n / 10):
        kinds.append(functions.FOLDED)
        if dx > 1:  # those of groups, of any size, twice as often
            kinds += [functions.PAIRED, functions.GROUPED, functions.GROUPED]
    kind = kinds[int(torch.randint(len(kinds), ()))]
    inputs = 2 if kind is functions.PAIRED else 1
    if kind is functions.GROUPED:
        inputs = int(torch.randint(2, min(dx, functions.GROUP) + 1, ()))
    most = min(dx // inputs, dy, _shown_by(n, 4) if kind is functions.MONOTONE else 3)
    m = 1 + int(most * float(torch.rand(())) ** 2)  # few more often than many
    if kind is functions.MONOTONE and chance(0.3):
        m = most  # as of two sides that face each other feature by feature
    scale = functions.draw_scale(b, m, device)
    x, y, mi = functions.noisy_function(choice(list(kind)), choice(list(functions.NOISES)), scale, n, inputs)
    x, y = (_beside_noise(t, d) for t, d in ((x, dx), (y, dy)))
    return carry(Problem(y, x, mi) if swap else Problem(x, y, mi), mixing=0.4 if max(dx, dy) <= 16 else 0.0)


def _spherical(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """Rows of unit length: pairs around each other, or a problem of one dimension less, lifted onto a sphere.

    One dimension has no sphere worth the name: such shapes are left to the canonical family.
    """
    d = min(dx, dy)
    if d < 2:
        return _canonical(b, n, dx, dy, device)
    if chance(0.5):
        kappa = d * torch.exp(uniform(b, math.log(0.2), math.log(12.0), device)) * (torch.rand(b, device=device) < 0.85)
        x, y, mi = spheres.von_mises_fisher(kappa, n, d)
        x, y = spheres.beside(x, dx), spheres.beside(y, dy)
    else:
        family = [_canonical, broad_discrete.clustered, broad_discrete.labelled, _additive][int(torch.randint(4, ()))]
        x, y, mi = family(b, n, dx - 1, dy - 1, device)
        x, y = (spheres.onto_sphere(t, torch.exp(uniform(b, math.log(0.3), math.log(3.0), device))) for t in (x, y))
    if chance(0.5):
        x, y = spheres.stretched(x), spheres.stretched(y)
    return Problem(x, y, mi)


def _angular(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """Angles, each around one of the other side: hours, headings, phases; as numbers or as points of circles."""
    m = 1 + int(min(dx, dy, 4) * float(torch.rand(())) ** 2)
    kappa = torch.exp(uniform(b * m, math.log(0.3), math.log(200.0), device)) * (torch.rand(b * m, device=device) < 0.9)
    x, y, mi = spheres.von_mises_fisher(kappa, n, 2)
    x, y = (_beside_noise(spheres.shown(t.unflatten(0, (b, m)), d), d) for t, d in ((x, dx), (y, dy)))
    problem = Problem(x, y, mi.reshape(b, m).sum(1))
    return carry(problem, mixing=0.4 if max(dx, dy) <= 16 else 0.0) if chance(0.5) else problem


def _independent(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """x of one family beside y of another, or of the same problem, its rows in another order: they share nothing."""
    others = [entry for name, entry in BROADER.items() if name not in ("independent", "resampled")]
    weights = torch.tensor([float(weight) for weight, _ in others])
    first, second = (others[i][1] for i in torch.multinomial(weights, 2, replacement=True).tolist())
    x, y, mi = first(b, n, dx, dy, device)
    y = y[:, torch.randperm(n, device=device)] if chance(0.5) else second(b, n, dx, dy, device).y
    return Problem(x, y, torch.zeros_like(mi))


def _redundant(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """Columns that say nothing new, constant or linear in the others, which leave mutual information as it is."""
    fewer_x, fewer_y = int(torch.randint(1, dx + 1, ())), int(torch.randint(1, dy + 1, ()))
    problem = _canonical(b, n, fewer_x, fewer_y, device)
    return Problem(_padded(problem.x, dx), _padded(problem.y, dy), problem.mi)


def _curved(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """Columns beside their squares and the like: polynomial features, which say nothing new either."""
    fewer_x, fewer_y = int(torch.randint(1, dx + 1, ())), int(torch.randint(1, dy + 1, ()))
    problem = _canonical(b, n, fewer_x, fewer_y, device)
    return Problem(_padded(problem.x, dx, ["curves"]), _padded(problem.y, dy, ["curves"]), problem.mi)


def _warped(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """Sides bent feature by feature, each in its own way, and mixed afterwards, where the bends cannot be undone.

    Wide sides are not mixed: where nobody can see what they share, they teach doubt.
    """
    family = [_canonical, broad_discrete.clustered, broad_discrete.labelled, _additive][int(torch.randint(4, ()))]
    x, y, mi = family(b, n, dx, dy, device)
    x, y = (maps.random_warp(t) for t in (x, y))
    x, y = (t / t.square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-12) for t in (x, y))
    if max(dx, dy) <= 16:
        x, y = (t @ maps.random_linear(b, t.shape[2], device) for t in (x, y))
    return Problem(x, y, mi)


def _embedded(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """Codes of networks: a few latent variables, by random layers in all dimensions of a side.

    Every feature correlates with many of the other side, and together they say no more than the latent variables do.
    Half of the time one network gives both sides, as of two views. Class bits as often as all else: without them the
    codes of image encoders were read with doubt.
    """
    most = min(LATENT, _shown_by(n, 8))
    kx, ky = (1 + int(torch.randint(min(d, most), ())) for d in (dx, dy))
    alike = dx == dy and chance(0.5)
    if alike:
        ky = kx
    others = [_canonical, _additive, _functional, broad_discrete.clustered]
    family = broad_discrete.labelled if chance(0.5) else others[int(torch.randint(4, ()))]
    x, y, mi = family(b, n, kx, ky, device)
    first = maps.random_network(b, kx, dx, device)
    second = first if alike else maps.random_network(b, ky, dy, device)
    return Problem(first(x), second(y), mi)


def _resampled(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """Rows that come more than once: drawn with replacement, or a set in which some are repeated.

    They tell what the distinct ones do, and pairs that face each other again are no evidence of anything.
    """
    distinct = max(8, int(n * (0.1 + 0.9 * float(torch.rand(())))))
    others = [entry for name, entry in BROADER.items() if name not in ("resampled", "independent")]
    others.append((15, _independent))  # more often than by itself: copies look most like dependence where there is none
    weights = torch.tensor([float(weight) for weight, _ in others])
    x, y, mi = others[int(torch.multinomial(weights, 1))][1](b, distinct, dx, dy, device)
    drawn = chance(0.5)  # or all of them, as often as it goes
    row = torch.randint(distinct, (n,), device=device) if drawn else torch.arange(n, device=device) % distinct
    return Problem(x[:, row], y[:, row], mi)


def _near(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """Correlations next to 1."""
    rho = random_rho(b, min(dx, dy), device, extreme=0.7)
    return carry(families.canonical_normal(rho, n, dx, dy))


def _strong(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """Many strongly correlated pairs, as of views with little noise: 1 - rho of 10^-3.5 to 10^-0.5.

    Mostly of normal sides, and as they are or mixed. Noise of other kinds leaves the same correlations, and more nats.
    """
    m = min(dx, dy, _shown_by(n, 8))
    pairs = m if chance(0.6) else int(torch.randint(1, m + 1, ()))
    loss = 10 ** uniform(b, -3.5, -0.5, device)[:, None].expand(-1, pairs)
    if chance(0.5):
        loss = loss * torch.exp(0.5 * torch.randn(b, pairs, device=device))
    rho = (1 - loss).clamp(0.1, 0.9999)
    if chance(0.5):
        x, y, mi = families.canonical_normal(rho, n, pairs, pairs)
    else:
        noise = choice([name for name in functions.NOISES if name != "normal"])
        scale = (rho**-2 - 1).sqrt() / functions.NOISES[noise].deviation
        x, y, mi = functions.noisy_function("line", noise, scale, n)
    x, y = (_beside_noise(t, d) for t, d in ((x, dx), (y, dy)))
    if chance(0.4):
        return carry(Problem(x, y, mi))
    if chance(0.5):
        x, y = (t @ maps.random_linear(b, t.shape[2], device) for t in (x, y))
    return Problem(x, y, mi)


LATENT = 16  # variables behind the codes of a network, at most


def _shown_by(n: int, each: int) -> int:
    """How many pairs n rows can show, at ``each`` rows a pair.

    Of more, nothing tells whether they depend. An estimator that has seen such sets reads tens of nats into any few
    rows of many dimensions.
    """
    return max(1, n // each)


def _beside_noise(side: Tensor, d: int) -> Tensor:
    """Fill (b, n, k) up to (b, n, d) with normal columns that say nothing."""
    b, n, k = side.shape
    return torch.cat([side, torch.randn(b, n, d - k, device=side.device)], dim=-1)


def _padded(side: Tensor, d: int, kinds: Sequence[str] = ("constant", "copies", "combinations")) -> Tensor:
    """Fill (b, n, k) up to (b, n, d) with constants, copies, sums or curves of its columns, in random places."""
    b, _, k = side.shape
    scale = side.square().mean((1, 2), keepdim=True).sqrt()
    kind = choice(list(kinds))
    if kind == "constant":
        weights = torch.zeros(b, k, d - k, device=side.device)
    elif kind == "copies":
        index = torch.randint(k, (b, d - k), device=side.device)
        weights = torch.nn.functional.one_hot(index, k).transpose(1, 2).to(side.dtype)
    else:
        weights = torch.randn(b, k, d - k, device=side.device) / math.sqrt(k)
    extra = side @ weights + scale * torch.randn(b, 1, d - k, device=side.device)
    if kind == "curves":
        extra = extra * extra.abs() if chance(0.5) else extra.square()
    return torch.cat([side, extra], dim=-1)[..., torch.randperm(d, device=side.device)]


_BASES = {
    "multi_normal-dense": 9,
    "multi_normal-sparse": 9,
    "multi_normal-lvm": 8,
    "multi_normal-2pair": 5,
    "multi_student-dense": 9,
    "multi_student-sparse": 9,
    "multi_student-2pair": 5,
    "multi_additive_noise": 8,
}

# weight and family by name
BROAD: dict[str, tuple[float, Family]] = {
    **{base: (weight, _any_map(base)) for base, weight in _BASES.items()},
    "student-identity": (6, _student_identity),
    "canonical": (30, _canonical),
    "additive": (6, _additive),
    "signed": (4, _signed),
    "radial": (5, _radial),
    "modulated": (8, _modulated),
    "labelled": (34, broad_discrete.labelled),
    "labels": (12, broad_discrete.labels),
    "clustered": (10, broad_discrete.clustered),
    "redundant": (8, _redundant),
}

# what estimates trained on these alone get wrong, see mist_loss/evaluation/everyday.py
BROADER: dict[str, tuple[float, Family]] = BROAD | {
    "warped": (10, _warped),
    "curved": (3, _curved),
    "near": (3, _near),
    "strong": (14, _strong),
    "functional": (30, _functional),
    "ordinal": (24, broad_discrete.ordinal),
    "present": (20, broad_discrete.present),
    "tables": (14, broad_discrete.tables),
    "spherical": (10, _spherical),
    "angular": (7, _angular),
    "embedded": (30, _embedded),
    "independent": (10, _independent),
    "resampled": (8, _resampled),
}
