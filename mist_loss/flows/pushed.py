"""Problems of known mutual information whose sides look like the data.

Rows u and v are drawn with standard normal marginals and a known mutual information, and each is mapped by the flow of
its side, which leaves the mutual information as it is. The dependence is that of a Gaussian of random canonical
structure, of a Student-t, or of pairs of random sign. Or the mapped rows themselves are paired: the cluster of x, which
is a function of the row, is sent through a noisy channel as a label, and y is a row of the cluster that arrives.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mist_loss.flows.marginals import Marginal
from mist_loss.meta import discrete, families, maps
from mist_loss.meta.families import Problem
from mist_loss.meta.paper import uniform
from mist_loss.training.stream import ROW_BUDGET

GRID = 4096  # points of the tables of radii
POOL = 8192  # mapped rows of a side that clusters are found in, and drawn from
CLUSTERS = 24
CANDIDATES = 4  # for a further cluster of a set
MOST_BLOCKS = 4
CLUSTERED = 0.4  # of single blocks: labels through a channel; the others are continuous
ALIKE = 0.75  # of the sets: all blocks are labels, through one channel
LARGEST = 32  # sets of a group


def normal_radius(rows: Tensor, dof: Tensor) -> Tensor:
    """Turn standard Student-t rows into standard normal ones, by an invertible map of their length.

    A spherical Student-t keeps its direction; the square of its length, d times an F variable of d and ``dof`` degrees
    of freedom, goes to the chi-square variable of the same rank. For one feature this is the Student-t copula.

    Args:
        rows: (b, n, d) of identity dispersion.
        dof: (b,) degrees of freedom.

    Returns:
        (b, n, d) whose rows are standard normal.
    """
    d = rows.shape[2]
    nu = dof.double()[:, None]
    log_square = rows.double().square().sum(2).clamp_min(1e-300).log()
    # from so far below that the lower tail is empty, to the largest length that ``student_scale`` can give
    grid = torch.linspace(-80 / d - 5, 90, GRID, dtype=torch.float64, device=rows.device)
    log_t = d / 2 * grid - (nu + d) / 2 * torch.log1p(torch.exp(grid - nu.log()))
    log_chi = (d / 2 * grid - torch.exp(grid.clamp_max(20)) / 2)[None]
    below_t, below_chi = (_cumulative(log) for log in (log_t, log_chi))
    above_t, above_chi = (_cumulative(log.flip(1)).flip(1) for log in (log_t, log_chi))
    # ranks from the nearer end, or the far tail would be rounded away
    rank = _interpolate(log_square, grid.expand_as(below_t), (below_t.log() - above_t.log()).clamp(-700, 700))
    # rising strictly, so that it can be read backwards
    ranks = (below_chi.log() - above_chi.log()).clamp(-700, 700)
    ranks = ranks + 1e-9 * torch.arange(GRID, device=rows.device, dtype=torch.float64)
    new = _interpolate(rank, ranks.expand_as(below_t).contiguous(), grid.expand_as(below_t))
    return rows * torch.exp((new - log_square) / 2)[..., None].to(rows.dtype)


def _cumulative(log_density: Tensor) -> Tensor:
    """Distribution function on an even grid, by the trapezoidal rule: (b, g) unnormalised log-densities -> (b, g)."""
    density = torch.exp(log_density - log_density.amax(1, keepdim=True))
    total = torch.cumsum((density[:, 1:] + density[:, :-1]) / 2, dim=1)
    return torch.cat([total[:, :1] * 0, total], dim=1).div(total[:, -1:]).clamp_min(1e-300)


def _interpolate(at: Tensor, known: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear: at (b, n), known (b, g) increasing, values (b, g) -> (b, n); constant beyond the ends."""
    upper = torch.searchsorted(known.contiguous(), at.contiguous()).clamp(1, known.shape[1] - 1)
    start, end = known.gather(1, upper - 1), known.gather(1, upper)
    share = ((at - start) / (end - start).clamp_min(1e-300)).clamp(0, 1)
    low, high = values.expand_as(known).gather(1, upper - 1), values.expand_as(known).gather(1, upper)
    return low + share * (high - low)


def random_correlations(b: int, m: int, device: torch.device) -> Tensor:
    """(b, m) canonical correlations: up to three nats, split at random over one to m pairs; a tenth has none."""
    nats = 3 * torch.rand(b, 1, device=device) ** 1.5 * (torch.rand(b, 1, device=device) < 0.9)
    number = torch.randint(1, m + 1, (b, 1), device=device)
    active = torch.arange(m, device=device) < number
    parts = torch.rand(b, m, device=device).log().neg() * active  # exponential, so that the shares are Dirichlet
    share = parts / parts.sum(1, keepdim=True)
    return (-torch.expm1(-2 * nats * share)).sqrt().clamp_max(0.999)


def gaussian(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """Gaussian pairs of random canonical correlations."""
    return families.canonical_normal(random_correlations(b, min(dx, dy), device), n, dx, dy)


def student(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """The same with a common random scale, each side then brought back to normal rows by a map of its length."""
    dof = uniform(b, 1, 10, device)
    x, y, mi = families.with_student_scale(gaussian(b, n, dx, dy, device), dof)
    return Problem(normal_radius(x, dof), normal_radius(y, dof), mi)


def signed(b: int, n: int, dx: int, dy: int, device: torch.device) -> Problem:
    """Gaussian pairs some of which have the opposite sign."""
    rho = random_correlations(b, min(dx, dy), device).clamp_max(0.95)
    return families.signed_normal(rho, 0.25 * torch.rand(b, device=device), n, dx, dy)


def _flip(b: int, cells: int, device: torch.device) -> Tensor:
    """(b,) flip rates up to that at which nothing gets through, low ones more often; a fifth of channels is clean."""
    rate = torch.rand(b, device=device) ** 1.5 * (torch.rand(b, device=device) < 0.8)
    return (cells - 1) / cells * rate


class PushedProblem(NamedTuple):
    """A ``Problem`` whose rows came from normal ones: u (b, n, width) became x, and v became y."""

    x: Tensor
    y: Tensor
    mi: Tensor
    normal: tuple[Tensor, Tensor]


NORMAL: dict[str, tuple[float, Callable[[int, int, int, int, torch.device], Problem]]] = {
    "gaussian": (4, gaussian),
    "student": (2, student),
    "signed": (1, signed),
}


def rotated(problem: Problem) -> Problem:
    """Turn each side at random, so that dependence is along no coordinate of the flow; normal rows stay normal."""
    x, y, mi = problem
    x, y = (t @ maps.random_rotation(len(mi), t.shape[2], t.device) for t in (x, y))
    return Problem(x, y, mi)


class Pool(NamedTuple):
    """Mapped rows (p, d) of one side, the cluster of each (p,), from 0 without gaps, and the centre of each (k, d)."""

    rows: Tensor
    clusters: Tensor
    centres: Tensor

    def choose(self, count: int) -> Tensor:
        """Different clusters (count,) at random, apart: each is the farthest from the others of a few candidates.

        Neighbours touch; which of two is meant then hardly shows, and would teach to expect more than shows.
        """
        distance = torch.cdist(self.centres, self.centres)
        chosen = torch.randint(len(self.centres), (1,))
        for _ in range(count - 1):
            left = torch.tensor([i for i in range(len(self.centres)) if i not in chosen.tolist()])
            candidates = left[torch.randperm(len(left))[:CANDIDATES]]
            nearest = distance[candidates.to(distance.device)][:, chosen.to(distance.device)].amin(1)
            chosen = torch.cat([chosen, candidates[nearest.argmax().cpu()][None]])
        return chosen.to(self.clusters.device)


def cluster(rows: Tensor, count: int, rounds: int = 15) -> Pool:
    """Find clusters by Lloyd's algorithm on standardised rows (p, d), starting from random rows.

    A cluster is a function of the row, which is all that is asked of it.
    """
    standard = (rows - rows.mean(0)) / rows.std(0).clamp_min(1e-12)
    centres = standard[torch.randperm(len(rows))[:count].to(rows.device)]
    for _ in range(rounds):
        member = torch.nn.functional.one_hot(torch.cdist(standard, centres).argmin(1), len(centres)).to(rows)
        size = member.sum(0)[:, None]
        centres = torch.where(size > 0, member.T @ standard / size.clamp_min(1), centres)
    labels = torch.cdist(standard, centres).argmin(1)
    used = torch.nonzero(labels.bincount(minlength=len(centres)))[:, 0]
    return Pool(rows, torch.searchsorted(used, labels), centres[used])


class Pushed:
    """Draws problems whose x and y look like the data that two flows were fitted to.

    Args:
        x: flow of the one side.
        y: flow of the other side; it may be the same.
        rows: inclusive range of the rows of a set, drawn on a log scale.
        widest: most dimensions of a side; several independent problems stand side by side where there is room.

    The rows that clusters are found in are drawn from torch's global generator, here and once.
    """

    def __init__(self, x: Marginal, y: Marginal, rows: tuple[int, int] = (64, 1024), widest: int = 64):
        self.x, self.y, self.rows = x, y, rows
        self.most_blocks = max(1, min(MOST_BLOCKS, widest // max(x.dims, y.dims)))
        self.device = x.center.device
        pool, normal = self._pool(x)
        other = (pool, normal) if x is y else self._pool(y)
        self.pools, self.normal_rows = (pool, other[0]), (normal, other[1])

    def _pool(self, side: Marginal) -> tuple[Pool, Tensor]:
        normal = torch.randn(POOL, side.width, device=self.device)
        return cluster(self._push(side, normal), CLUSTERS), normal

    def _push(self, side: Marginal, normal: Tensor) -> Tensor:
        rows = side.generate(normal)
        return rows.float() if self.x.single and self.y.single else rows  # both sides in one precision

    def normal(self, b: int, n: int) -> Problem:
        """b sets of n rows with standard normal marginals: what is mapped."""
        names = list(NORMAL)
        weights = torch.tensor([float(NORMAL[name][0]) for name in names])
        family = NORMAL[names[int(torch.multinomial(weights, 1))]][1]
        return rotated(family(b, n, self.x.width, self.y.width, self.device))

    def channel(self, b: int) -> Tensor:
        """(b, k, k) joint probabilities of a label of few values and what a symmetric channel makes of it."""
        groups = int(torch.randint(2, 6, ())) if torch.rand(()) < 0.5 else 2
        prior = torch.rand(b, groups, device=self.device) + 0.2
        prior = prior / prior.sum(1, keepdim=True) if torch.rand(()) < 0.5 else torch.full_like(prior, 1 / groups)
        return discrete.symmetric_channel(prior, _flip(b, groups, self.device))

    def clustered(self, joint: Tensor, n: int) -> PushedProblem:
        """b sets of n mapped rows whose clusters are labels of joint probabilities (b, k, k).

        Classes are compact: a linear function of the rows tells two of them apart almost as well as it does two
        clusters. Unions of clusters look nothing like classes; what they share is hidden from sets of few rows, and
        teaches an estimator to expect more than it sees.
        """
        groups = joint.shape[1]
        cells = torch.multinomial(joint.flatten(1), n, replacement=True)
        picked: list[list[Tensor]] = [[], []]
        for i in range(len(joint)):
            chosen = self.pools[0].choose(groups)
            for side, pool, labels in zip(picked, self.pools, (cells[i] // groups, cells[i] % groups), strict=True):
                if pool is not self.pools[0]:  # one flow for both sides: a label names the same clusters on both
                    chosen = pool.choose(groups)
                side.append(_pick(pool, chosen, labels))
        ix, iy = (torch.stack(side) for side in picked)
        normal = self.normal_rows[0][ix], self.normal_rows[1][iy]
        mi = discrete.label_mi(joint).clamp_min(0).float()
        return PushedProblem(self.pools[0].rows[ix], self.pools[1].rows[iy], mi, normal)

    def block(self, b: int, n: int) -> PushedProblem:
        """b sets of n rows of one kind of dependence, mapped."""
        if torch.rand(()) < CLUSTERED:
            return self.clustered(self.channel(b), n)
        u, v, mi = self.normal(b, n)
        return PushedProblem(self._push(self.x, u), self._push(self.y, v), mi, (u, v))

    def batch(self, b: int, n: int, blocks: int = 1) -> PushedProblem:
        """b sets of n rows; each holds ``blocks`` independent problems side by side, whose nats add up.

        Three times in four they are labels that went through the same channel: several sources of one kind.
        """
        if torch.rand(()) < ALIKE:
            joint = self.channel(b)
            parts = [self.clustered(joint, n) for _ in range(blocks)]
        else:
            parts = [self.block(b, n) for _ in range(blocks)]
        sides = zip(*((part.x, part.y, *part.normal) for part in parts), strict=True)
        x, y, u, v = (torch.cat(side, dim=2) for side in sides)
        return PushedProblem(x, y, torch.stack([part.mi for part in parts]).sum(0), (u, v))

    def group(self) -> PushedProblem:
        """Sets of one random shape, from torch's global generator; about as many rows as in a group of pretraining."""
        low, high = (math.log(r) for r in self.rows)
        n = round(math.exp(low + (high - low) * float(torch.rand(()))))
        blocks = 1 if torch.rand(()) < 0.5 else int(torch.randint(1, self.most_blocks + 1, ()))
        sets = max(4, min(LARGEST, ROW_BUDGET // n))
        halves = [self.batch(sets // 2, n, blocks) for _ in range(2)]  # two kinds of dependence
        x, y, mi, u, v = (torch.cat(t) for t in zip(*((*half[:3], *half.normal) for half in halves), strict=True))
        return PushedProblem(x, y, mi, (u, v))


def _pick(pool: Pool, chosen: Tensor, labels: Tensor) -> Tensor:
    """Indices (n,) of random rows of the pool, each of the cluster (k,) that its label (n,) names."""
    order = pool.clusters.argsort()
    size = pool.clusters.bincount()
    start = size.cumsum(0) - size
    asked = chosen[labels]
    place = (torch.rand(len(labels), device=labels.device) * size[asked]).long().clamp_max(size[asked] - 1)
    return order[start[asked] + place]
