"""Cross-moment summaries of a canonical sample: one vector for the set, one token for each facing pair of coordinates.

Every summary is a mean over rows, unchanged when x and y are exchanged, and costs time linear in the rows.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mist_loss.model.balls import ball_summary
from mist_loss.model.features import facing_features
from mist_loss.model.frontend import Canonical, align, ascending, gaussianize, standard_score, standardize
from mist_loss.model.independence import independent
from mist_loss.model.intrinsic import intrinsic_summary
from mist_loss.model.neighbours import near
from mist_loss.model.normal import normal_summary
from mist_loss.model.repeats import repeat_summary
from mist_loss.model.repeats import repeats as repeats_of
from mist_loss.model.sources import facing_sources

PAIRS = 32  # facing pairs that become tokens
CAPS = (0.9999, 0.95, 0.7)  # of the Gaussian terms of a token
CORRELATION = 1 + len(CAPS)  # leading entries of a token, which may carry gradients: the correlation and those terms
QUADRATIC = 4  # leading coordinates whose products are aligned a second time
# marks of the kinds of token
LINEAR, PRODUCT, RADIUS, BETWEEN, INDEPENDENT, NEAR = (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0)
FEATURE, SOURCE = (1, 1, 1), (0, 0, 0)


class Summary(NamedTuple):
    """What the network sees of a set.

    vector: (b, s); tokens: (b, t, f), first the canonical pairs, then the pairs of products, of products of one
    side with the other, of independent components, of the sources of a side, of the radii, of differences of near rows,
    and of features that have levels;
    u, v: (b, n, m) canonical coordinates; radii: (b, n, 2) normal scores of the lengths of the whitened rows.
    """

    vector: Tensor
    tokens: Tensor
    u: Tensor
    v: Tensor
    radii: Tensor


def summarize(
    x: Tensor,
    y: Tensor,
    max_rows: int,
    mixed_pairs: int,
    independent_pairs: int,
    near_pairs: int,
    feature_pairs: int,
    source_pairs: int,
    repeats: bool,
    normal: bool,
    balls: bool,
    intrinsic: bool,
) -> Summary:
    """Run the front end and summarise what it gives.

    Args:
        x: (b, n, dx).
        y: (b, n, dy).
        max_rows: row count beyond which the summary says "this many": more rows only lower the noise.
        mixed_pairs: of a product of one side and a direction of the other, for each of the two ways.
        independent_pairs: leading canonical pairs that are described once more as independent components.
        near_pairs: leading canonical pairs in which near rows are found and compared.
        feature_pairs: of features with levels that face each other as they are.
        source_pairs: of a source of one side and a direction of the other.
        repeats: whether the vector says how often values repeat.
        normal: whether it says what the sample would share if it were normal.
        balls: whether it says how many rows lie near a row.
        intrinsic: whether it says, last, the same of features that are not whitened, and of how many dimensions.
    """
    n, dx, dy = x.shape[1], x.shape[2], y.shape[2]
    x, y = standardize(x), standardize(y)
    in_order = ascending(x), ascending(y)
    zx, zy = (gaussianize(*side) for side in zip((x, y), in_order, strict=True))
    linear = align(zx, zy, at_rest=True)
    quadratic = align(products(linear.u), products(linear.v))
    ways = [(linear.x, linear.y), (linear.y, linear.x)] if mixed_pairs else []
    mixed = [between(*way) for way in ways]
    radii = gaussianize(torch.stack([log_radius(linear.x), log_radius(linear.y)], dim=-1))
    radial_rho = (radii[..., 0] * radii[..., 1]).mean(1, keepdim=True)
    frames = [(linear, PAIRS, LINEAR), (quadratic, PAIRS, PRODUCT), *((m, mixed_pairs, BETWEEN) for m in mixed)]
    if independent_pairs:
        frames.append((independent(linear, independent_pairs), independent_pairs, INDEPENDENT))
    kinds = [Facing(c.u[..., :most], c.v[..., :most], c.rho[:, :most], marks) for c, most, marks in frames]
    if source_pairs:
        kinds.append(Facing(*facing_sources(x, y, source_pairs), SOURCE))
    tokens = pair_tokens([*kinds, Facing(radii[..., :1], radii[..., 1:], radial_rho, RADIUS)])
    if near_pairs:
        apart = near(linear, near_pairs)
        tokens = torch.cat([tokens, pair_tokens([Facing(apart.u, apart.v, apart.rho, NEAR)])], dim=1)
    of_x, of_y = (repeats_of(side.values) for side in in_order)
    if feature_pairs:  # a call of its own, since it is of one row where nothing has levels
        shown = Facing(*facing_features(of_x[0], of_y[0], zx, zy, feature_pairs), FEATURE)
        tokens = torch.cat([tokens, pair_tokens([shown])], dim=1)
    gate = 1 / (1 + (n / (4 * (dx + dy))) ** 4)
    vector = torch.cat(
        [
            correlation_summary(linear.rho, PAIRS),
            correlation_summary(quadratic.rho, 6),
            radial_summary(linear, radial_rho),
            gate * frame_summary(x, y, zx, zy),
            shape_summary(x, min(n, max_rows), dx, dy),
            *([repeat_summary(x, y, of_x, of_y)] if repeats else []),
            *([normal_summary(linear)] if normal else []),
            *([ball_summary(linear)] if balls else []),
            *([intrinsic_summary(zx, zy)] if intrinsic else []),
        ],
        dim=1,
    )
    return Summary(vector, tokens, linear.u, linear.v, radii)


def products(u: Tensor) -> Tensor:
    """Second-order features of the leading coordinates, u_i u_j for i <= j: they see dependence without correlation.

    Together they span the same space after any rotation of those coordinates, so nothing of the invariance is lost.
    """
    head = bounded(u[..., :QUADRATIC])
    i, j = torch.triu_indices(head.shape[-1], head.shape[-1], device=u.device)
    return head.index_select(-1, i) * head.index_select(-1, j)


def between(x: Tensor, y: Tensor) -> Canonical:
    """Products of x facing directions of y, both whitened: what moves one side where the other spreads.

    Without correlation the canonical frame of x is arbitrary, so the products are of other directions: those that
    weigh most in the third moments E[y_k x x'], the leading ones of a higher-order singular value decomposition (De
    Lathauwer et al. 2000). Any rotation of x or y leaves their span alone.
    """
    with torch.no_grad():
        frame = third_moments(x, y)
        # in float64 and of unit trace: solvers gave up on a few in a million that were neither
        frame = frame / frame.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1e-30)[:, None, None]
        lead = torch.linalg.eigh(frame).eigenvectors.flip(2)[..., :QUADRATIC]
    return align(products(x @ lead.to(x.dtype)), y)


def third_moments(x: Tensor, y: Tensor, chunk: int = 8) -> Tensor:
    """(b, dx, dx), float64: the sum over k of M_k M_k' with M_k = E[y_k (x x' - 1)], of centred rows (b, n, d).

    Where rows are few for the dimensions, by way of the inner products of rows: the sum is X' (X X' * Y Y') X / n^2,
    the inner star by entries.
    """
    b, n, dx = x.shape
    dy = y.shape[2]
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    x = x / (x.square().mean(-1, keepdim=True).sqrt() / 2).clamp_min(1)  # far rows should not decide
    if n * (2 * dx + dy) < dx * dx * dy:
        weights = (x @ x.mT).mul_(y @ y.mT)
        return (x.mT @ (weights @ x) / n**2).to(wide)
    total = x.new_zeros(b, dx, dx, dtype=wide)
    for part in y.split(chunk, dim=2):  # memory stays linear in the rows
        weighted = rearrange(x[:, :, None] * part[..., None], "b n k d -> b (k d) n")
        moments = rearrange(weighted @ x / n, "b (k i) j -> b k i j", k=part.shape[2])
        moments = moments.to(total.dtype)
        total = total + (moments.mT @ moments).sum(1)
    return total


def log_radius(white: Tensor) -> Tensor:
    """(b, n) log mean square of the whitened rows; a common scale, as of a Student-t, moves it on both sides."""
    return torch.log(white.square().mean(-1) + 1e-4)


def gaussian_terms(rho: Tensor, caps: tuple[float, ...]) -> Tensor:
    """Gaussian mutual information of a pair, shrunk by each cap c: -1/2 log(1 - (c rho)^2), (...,) -> (..., caps)."""
    rho = rho.abs().clamp(max=0.99999)
    return -0.5 * torch.log1p(-(torch.stack([c * rho for c in caps], dim=-1) ** 2))


def correlation_summary(rho: Tensor, width: int) -> Tensor:
    """Sorted correlations padded to a width, their Gaussian mutual information at several shrinkages, and norms."""
    padded = F.pad(rho[:, :width], (0, max(0, width - rho.shape[1])))
    terms = gaussian_terms(rho, (0.9999, 0.99, 0.95, 0.8, 0.5)).sum(1)
    square = rho.square().sum(1, keepdim=True)
    norms = [(square + 1e-8).sqrt(), rho.mean(1, keepdim=True), (rho.pow(4).sum(1, keepdim=True) + 1e-8) ** 0.25]
    return torch.cat([padded, terms, square, *norms], dim=1)


def radial_summary(linear: Canonical, radial_rho: Tensor) -> Tensor:
    """Correlation and spread of the radii, fourth moments, and what shrinkage left of each side."""
    spread_x, spread_y = log_radius(linear.x).std(1), log_radius(linear.y).std(1)
    # Mardia's kurtosis: of the length of a row, so that the frame does not matter
    fourth_x, fourth_y = (t.square().mean(2).square().mean(1).log1p() for t in (linear.x, linear.y))
    pairs = [(spread_x, spread_y), (fourth_x, fourth_y), (linear.dof_x, linear.dof_y)]
    return torch.cat([radial_rho, gaussian_terms(radial_rho[:, 0], (0.99, 0.9)), symmetric(pairs)], dim=1)


def frame_summary(x: Tensor, y: Tensor, zx: Tensor, zy: Tensor) -> Tensor:
    """What single features tell when rows are too few to whiten: their cross-correlations, and their tails.

    Not invariant under linear maps; the caller gates it so that it vanishes as rows become plenty.
    """
    cross = standard_score(zx).transpose(1, 2) @ standard_score(zy) / x.shape[1]
    width, parts = 16, []
    for side in (1, 2):
        best = cross.abs().amax(side).sort(dim=1, descending=True).values
        terms = gaussian_terms(best, (0.99, 0.9, 0.7)).sum(1)
        parts.append(torch.cat([F.pad(best[:, :width], (0, max(0, width - best.shape[1]))), terms], dim=1))
    size = (cross.square().sum((1, 2)) + 1e-8).sqrt()[:, None]
    mean = cross.mean((1, 2)).abs()[:, None]
    within = [(mean_square_correlation(zx), mean_square_correlation(zy)), (tail_weight(x), tail_weight(y))]
    return torch.cat(
        [parts[0] + parts[1], (parts[0] - parts[1]).abs()[:, width:], size, mean, symmetric(within)], dim=1
    )


def mean_square_correlation(z: Tensor) -> Tensor:
    """(b,) mean squared correlation between the features of one side."""
    s = standard_score(z)
    return (s.transpose(1, 2) @ s / s.shape[1]).square().mean((1, 2))


def tail_weight(x: Tensor) -> Tensor:
    """(b,) mean over features of log1p of the standard deviation in units of the mean absolute deviation."""
    return x.square().mean(1).log1p().mean(1)


def symmetric(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum and absolute difference of what belongs to x and to y: (b, 2 len(pairs))."""
    return torch.stack([t for a, b in pairs for t in (a + b, (a - b).abs())], dim=1)


def shape_summary(x: Tensor, n: int, dx: int, dy: int) -> Tensor:
    """(b, 7) logarithms and ratios of rows and dimensions."""
    low, high = min(dx, dy), max(dx, dy)
    ratio = (dx + dy) / n
    values = [math.log(n), math.log(low), math.log(high), low / 32, high / 32, math.sqrt(ratio), math.log(ratio)]
    return x.new_tensor(values).expand(len(x), -1)


def basis(t: Tensor) -> list[Tensor]:
    """Eight functions of a coordinate of about unit variance, every other one of ``even_functions``."""
    c = bounded(t)
    second, absolute, cos, cos_twice = even_functions(c)
    sin = torch.sin(2 * c)
    return [c, second, (c * c - 3) * c / math.sqrt(6), absolute, sin, cos, 2 * sin * cos, cos_twice]


def even_functions(c: Tensor) -> list[Tensor]:
    """Four functions that a coordinate and its negative share."""
    cos = torch.cos(2 * c)
    return [(c * c - 1) / math.sqrt(2), c.abs(), cos, 2 * cos * cos - 1]


def bounded(t: Tensor) -> Tensor:
    """A coordinate of about unit variance, bounded, so that a single row cannot own a mean."""
    return 4 * torch.tanh(t / 4)


class Facing(NamedTuple):
    """Facing pairs of one kind: u and v (b, n, m), their correlations (b, m), and the marks written into the tokens."""

    u: Tensor
    v: Tensor
    rho: Tensor
    marks: tuple[int, int, int]


def pair_tokens(kinds: list[Facing]) -> Tensor:
    """Describe the joint distribution of each facing pair, of all kinds with as many rows in one go.

    Its correlation and Gaussian terms carry the gradients they come with; what else is said, see ``pair_shapes``, is
    constant for autograd (``mist_loss.model.network.steady`` has the reason), which spares much of a backward pass.

    Returns:
        (b, t, f), t the pairs of all kinds.
    """
    rho = torch.cat([facing.rho for facing in kinds], dim=1)
    with torch.no_grad():
        u = torch.cat([facing.u.mT for facing in kinds], dim=1)
        v = torch.cat([facing.v.mT for facing in kinds], dim=1)
        shapes = pair_shapes(u, v, rho)
    places = [(math.log1p(i), i / 16, *map(float, marks)) for _, _, own, marks in kinds for i in range(own.shape[1])]
    place = rho.new_tensor(places).expand(len(rho), -1, -1)
    # Not of ``rho``: a backward pass compiled by inductor (torch 2.14) writes over a concatenation that was kept for it
    # although a part of it, kept for something else, is the same memory. Nothing else keeps the absolute values.
    strength = torch.cat([facing.rho.abs() for facing in kinds], dim=1)
    return torch.cat([rho[..., None], gaussian_terms(strength, CAPS), shapes, place], dim=-1)


def pair_shapes(u: Tensor, v: Tensor, rho: Tensor) -> Tensor:
    """What a token says beyond the correlation.

    Cross-covariances of eight functions of u and of v (the Gram matrix of a truncated expansion of the density ratio),
    and moments of the sum and of the difference of the pair, which a Gaussian pair has independent and normal.

    Args:
        u: (b, t, n), a pair a line.
        v: (b, t, n).
        rho: (b, t) correlations of the pairs.

    Returns:
        (b, t, f').
    """
    n = u.shape[2]
    fu, fv = (torch.stack(basis(side), dim=2) for side in (u, v))
    mean_u, mean_v = fu.mean(3), fv.mean(3)
    gram = fu @ fv.mT / n - mean_u[..., :, None] * mean_v[..., None, :]
    even, odd = (gram + gram.mT) / 2, (gram - gram.mT) / 2
    total = even_functions(bounded((u + v) / (2 + 2 * rho).clamp_min(1e-3).sqrt()[..., None]))
    difference = even_functions(bounded((u - v) / (2 - 2 * rho).clamp_min(1e-3).sqrt()[..., None]))
    along = torch.stack([torch.ones_like(u), *total[:3]], dim=2)
    across = torch.stack(difference, dim=2)
    band = along @ across.mT / n
    i, j = torch.triu_indices(8, 8, device=u.device)
    parts = [
        even[..., i, j],
        (odd.square().sum((2, 3)) + 1e-8).sqrt()[..., None],
        band.flatten(2),
        mean_u + mean_v,
        (mean_u - mean_v).abs(),
    ]
    return torch.cat(parts, dim=-1)
