"""The families of the broad mixture whose dependence is discrete: labels, levels, zeros, tables."""

import math

import torch
from torch import Tensor

from mist_loss.meta import atoms, discrete
from mist_loss.meta.carrying import carry, chance, random_rho
from mist_loss.meta.families import Problem
from mist_loss.meta.paper import uniform


def labelled(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """One to eight independent sources, each a labelled mixture behind a symmetric channel; y at times the label.

    The clusters of real embeddings are no spheres, so every source has its own carrying maps before they are joined.
    """
    largest = min(dx, dy, 8)
    bits = chance(0.5)  # fair, behind one channel, plain to see: what embeddings of two classes show
    # many bits are the hardest to count and carry the most nats, so half of the time they come more often than few
    blocks = int(torch.randint(1, largest + 1, (2 if bits and chance(0.5) else 1,)).max())
    if not bits and chance(0.4):
        blocks = 1  # classes that are mistaken for one another
    px, py = dx // blocks, dy // blocks
    classes = 2 if bits or chance(0.5) else int(torch.randint(2, 11, ()))
    discrete_y = classes <= py and not bits and chance(0.3)
    s = b * blocks
    weights = torch.rand(s, classes, device=device) + 0.2
    fair = bits or chance(0.5)
    prior = torch.full_like(weights, 1 / classes) if fair else weights / weights.sum(1, keepdim=True)
    ceiling = (classes - 1) / classes  # the flip rate at which nothing gets through
    # low flip rates, where mutual information is high, more often than high ones; a fifth of the channels is clean
    rate = torch.rand(b, device=device) ** 1.5 * (torch.rand(b, device=device) < 0.8)
    flip = (ceiling * rate).repeat_interleave(blocks)
    # every cluster spreads in its own way, on both sides; of many sources too much would stay hidden
    shaped = blocks == 1 and chance(0.5)
    nearest, farthest = (4.0, 12.0) if bits else (0.7, 24.0)
    separation = torch.exp(uniform(b, math.log(nearest), math.log(farthest), device)).repeat_interleave(blocks)

    def means(d: int) -> Tensor:
        spread = torch.randn(s, classes, d, device=device) / math.sqrt(d)
        return spread * separation[:, None, None]

    joint = discrete.symmetric_channel(prior, flip)
    if bits and chance(0.6):
        x, y = map(discrete.parted_clusters, discrete.draw_labels(joint, n), (px, py))
        problem = Problem(x, y, discrete.label_mi(joint).to(x.dtype))
    else:
        means_y = None if discrete_y else means(py)
        scales_x, scales_y = (_scales(s, classes, d, device) if shaped else None for d in (px, py))
        problem = discrete.labelled_mixture(joint, means(px), means_y, n, scales_x=scales_x, scales_y=scales_y)
    if not discrete_y:
        problem = carry(problem)
    problem = discrete.independent_blocks(problem, b, dx, dy)
    if discrete_y or chance(0.5):
        return problem
    return carry(problem)


def labels(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """y is a label and nothing else: its indicators, all but one of them, or a code; x shows clusters, or a label too.

    Indicators add up to one, so a side has one direction less than columns; a code has an order that means nothing.
    """
    classes = _classes(dy)
    rate = torch.rand(b, device=device) ** 1.5 * (torch.rand(b, device=device) < 0.8)
    weights = torch.rand(b, classes, device=device) + 0.2
    prior = weights / weights.sum(1, keepdim=True) if chance(0.5) else torch.full_like(weights, 1 / classes)
    if chance(0.25):
        others = _classes(dx)
        joint = discrete.folded_channel(prior, rate, others)
        labels_y, labels_x = discrete.draw_labels(joint, n)
        x, y = (_columns(t, k, d) for t, k, d in ((labels_x, others, dx), (labels_y, classes, dy)))
        return Problem(x, y, discrete.label_mi(joint).to(x.dtype))
    joint = discrete.symmetric_channel(prior, rate * (classes - 1) / classes)
    separation = torch.exp(uniform(b, math.log(0.7), math.log(12.0), device))
    means = torch.randn(b, classes, dx, device=device) / math.sqrt(dx) * separation[:, None, None]
    scales = _scales(b, classes, dx, device) if chance(0.3) else None
    if scales is not None and chance(0.5):
        means = 0.1 * means
    problem = discrete.labelled_mixture(joint, means, None, n, scales_x=scales)
    labels = problem.y.argmax(-1)  # before they are carried anywhere, where they could not be told any more
    return carry(problem)._replace(y=_columns(labels, classes, dy))


def clustered(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """Classes, and what a pair shares beyond its class: two views of an image; some pairs share it better than others.

    More than two come about eight times or more on average, since nobody can count those that come less often.
    """
    k = int(2 * (max(3.0, min(33.0, n / 8)) / 2) ** float(torch.rand(())))
    weights = torch.rand(b, k, device=device) + 0.2
    prior = weights / weights.sum(1, keepdim=True) if chance(0.5) else torch.full_like(weights, 1 / k)
    spread = torch.exp(uniform(b, math.log(0.3), math.log(4.0), device)) * (torch.rand(b, device=device) < 0.85)
    crowding = torch.rand(b, device=device) / 2  # of the classes, in many dimensions

    def means(d: int) -> Tensor:
        shown = torch.arange(d, device=device) < torch.randint(1, d + 1, (b, 1), device=device)
        size = spread * d**-crowding
        return size[:, None, None] * shown[:, None] * torch.randn(b, k, d, device=device)

    def factors(share: float) -> Tensor:
        return torch.exp(uniform(b, 0, 1.0, device)[:, None] * torch.randn(b, k, device=device) * chance(share))

    means_x = means(dx)
    means_y = means_x if dx == dy and chance(0.5) else means(dy)
    rho = random_rho(b, min(dx, dy), device).clamp_max(0.98)
    return carry(discrete.clustered_normal(prior, means_x, means_y, factors(0.5), factors(0.5), rho, n))


def ordinal(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """Normal pairs known as levels: rounded, rated, counted; on both sides or on one."""
    m = max(dx, dy)
    both = chance(0.6)
    shape = (b, m) if chance(0.5) else (b, 1)

    def cuts() -> Tensor:
        k = int(2 * 12 ** float(torch.rand(())))  # levels: 2 to 23
        if chance(0.6):
            width = torch.exp(uniform(b, math.log(0.2), math.log(1.2), device))[:, None, None]
            shift = 1.5 * torch.randn(*shape, 1, device=device) * chance(0.5)
            places = shift + width * (torch.arange(k - 1, device=device) - (k - 2) / 2)
        else:
            places = torch.randn(*shape, k - 1, device=device).sort(-1).values
        return places.expand(b, m, -1)

    rho, pairs = _padded_rho(b, dx, dy, device), min(dx, dy)
    cuts_x, cuts_y = cuts() if both else None, cuts()
    x = torch.randn(b, n, m, device=device)
    y = rho[:, None] * x + (1 - rho[:, None] ** 2).sqrt() * torch.randn_like(x)
    known = None if cuts_x is None else cuts_x[:, :pairs].flatten(0, 1)
    mi = atoms.levels_mi(rho[:, :pairs].flatten(), known, cuts_y[:, :pairs].flatten(0, 1)).reshape(b, pairs).sum(1)
    if cuts_x is not None:
        x = atoms.levels(x, cuts_x)
    y = atoms.levels(y, cuts_y)
    return _shown(x, y, mi, dx, dy)


def present(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """Bits, rare or fair, and numbers that are zero where they are absent: masks, clicks, counts, hash codes."""
    m, pairs = max(dx, dy), min(dx, dy)
    rare = torch.exp(uniform(b, math.log(0.02), 0.0, device))[:, None]
    if chance(0.5):  # most are there, as of entries that are masked or missing
        rare = uniform(b, 0.4, 1.0, device)[:, None]
    fair = chance(0.3)

    def chances() -> Tensor:
        spread = torch.exp(0.5 * torch.randn(b, m, device=device) * chance(0.5))
        common = torch.full_like(spread, 0.5) if fair else (rare * spread).clamp(0.01, 1.0)
        return 1 - common if chance(0.2) else common

    p = chances()
    q = p if chance(0.6) else chances()
    strength = torch.rand(b, 1, device=device) * (torch.rand(b, 1, device=device) < 0.6)
    together = strength * (torch.rand(b, m, device=device) if chance(0.5) else 1.0)
    active = torch.arange(m, device=device) < torch.randint(1, pairs + 1, (b, 1), device=device)
    together = together * active * (1 if chance(0.8) else -1)
    rho = _padded_rho(b, dx, dy, device)
    if chance(0.2):  # zeros of both sides alone are no evidence of anything
        together, rho = 0 * together, 0 * rho
    there_x, there_y, x, y, mi = atoms.present_pairs(atoms.presence(p, q, together), rho, n)
    bits = chance(0.35)
    total = mi[0 if bits else 1, :, :pairs].sum(1)
    if bits:
        x, y = torch.ones_like(x), torch.ones_like(y)
    elif chance(0.5):
        x, y = torch.exp(0.7 * x), torch.exp(0.7 * y)
    return _shown(there_x * x, there_y * y, total, dx, dy)


def tables(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """Any table of two labels, or several tables side by side; labels as indicators or codes, common or rare."""
    dims = (dx, dy)
    codes = [d < 2 or chance(0.4) for d in dims]
    most = [max(2, min(20, n // 4) if code else min(d, 12)) for code, d in zip(codes, dims, strict=True)]
    classes = [2 + int((top - 1) * float(torch.rand(())) ** 1.5) for top in most]
    widths = [1 if code else k for code, k in zip(codes, classes, strict=True)]
    room = min(dx // widths[0], dy // widths[1], 6)
    joint = _joint(b, int(torch.randint(1, room + 1, ())) if chance(0.6) else 1, classes, device)
    labels_x, labels_y, mi = atoms.tables(joint, n)
    sides = []
    for label, code, k, d in zip((labels_x, labels_y), codes, classes, dims, strict=True):
        if code:
            order = torch.arange(k, device=device) if chance(0.4) else torch.randperm(k, device=device)
            shown = order[label].float()
        else:
            shown = torch.nn.functional.one_hot(label, k).flatten(2).float()
        sides.append(torch.cat([shown, _filler(b, n, d - shown.shape[2], device)], dim=-1))
    return Problem(sides[0], sides[1], mi.to(sides[0].dtype))


def _joint(b: int, m: int, classes: list[int], device: torch.device) -> Tensor:
    """(b, m, sent, received): labels of even or Zipf's priors, independent ones mixed with a table that depends."""
    sent, received = classes
    zipf = 2 * torch.rand(b, m, 1, device=device) * (torch.rand(b, 1, 1, device=device) < 0.6)
    prior_x, prior_y = (
        torch.softmax(-zipf * torch.arange(1, k + 1, device=device).log(), dim=-1) for k in (sent, received)
    )
    independent = prior_x[..., None] * prior_y[..., None, :]
    if chance(0.5):
        folded = torch.nn.functional.one_hot(torch.arange(sent, device=device) % received, received)
        dependent = prior_x[..., None] * folded
    else:
        evenness = torch.exp(uniform(b, math.log(0.1), math.log(3.0), device))[:, None, None, None]
        weights = torch.distributions.Gamma(evenness.expand_as(independent), torch.ones_like(independent)).sample()
        dependent = (weights + 1e-6) * independent
        dependent = dependent / dependent.sum((-2, -1), keepdim=True)
    share = torch.rand(b, 1, 1, 1, device=device) ** 0.5 * (torch.rand(b, 1, 1, 1, device=device) < 0.7)
    return (1 - share) * independent + share * dependent


def _padded_rho(b: int, dx: int, dy: int, device: torch.device) -> Tensor:
    """(b, max(dx, dy)) correlations, zero where one of the sides has no column left.

    Half of the sets are strong: levels hide much of what numbers share, and weights that had seen few such sets read
    them as numbers, at twice the nats.
    """
    m = min(dx, dy)
    pairs = torch.arange(m, device=device) < torch.randint(1, m + 1, (b, 1), device=device)
    weak = torch.rand(b, m, device=device) < 0.2
    nats = 2.5 * torch.rand(b, 1, device=device) * torch.where(weak, 0.2, 1.0) * pairs
    strong = (1 - torch.exp(-2 * nats)).sqrt()
    rho = torch.where(torch.rand(b, 1, device=device) < 0.5, strong, random_rho(b, m, device, extreme=0.05))
    return torch.nn.functional.pad(rho, (0, abs(dx - dy)))


def _shown(x: Tensor, y: Tensor, mi: Tensor, dx: int, dy: int) -> Problem:
    """Cut sides to their columns; mostly left as they are, since such columns come as they are."""
    problem = Problem(x[..., :dx], y[..., :dy], mi.to(x.dtype))
    return carry(problem) if chance(0.2) else problem


def _filler(b: int, n: int, d: int, device: torch.device) -> Tensor:
    """(b, n, d) columns that say nothing: numbers, bits or constants."""
    kind = int(torch.randint(3, ()))
    if kind == 0:
        return torch.randn(b, n, d, device=device)
    return (torch.rand(b, n, d, device=device) < (0.3 if kind == 1 else 0.0)).float()


def _scales(b: int, classes: int, d: int, device: torch.device) -> Tensor:
    """Standard deviations (b, classes, d) of clusters, each its own."""
    return torch.exp(uniform(b, 0.1, 1.0, device)[:, None, None] * torch.randn(b, classes, d, device=device))


def _classes(d: int) -> int:
    """How many labels d columns show: d or d + 1 as indicators; one column is an indicator, or a code of a few."""
    if d == 1:
        return 2 if chance(0.6) else int(torch.randint(3, 11, ()))
    return d + int(torch.randint(2, ()))


def _columns(labels: Tensor, classes: int, d: int) -> Tensor:
    """Labels (b, n) as columns (b, n, d): a code where d is 1, otherwise the first d indicators."""
    if d == 1:
        return torch.randperm(classes, device=labels.device)[labels][..., None].float()
    return torch.nn.functional.one_hot(labels, classes)[..., :d].float()
