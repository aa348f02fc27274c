"""Dependence that comes from discrete structure: hidden labels on both sides of a noisy channel.

A label c is drawn, a channel turns it into c', x is a Gaussian around the mean of c and y around the mean of c', or y
is the label itself. Class-structured embeddings look like this: pairs of images of the same class (Lee & Rhee 2024,
arXiv 2410.10924). Two views of one image share more than its class: there the rows of a class depend as well.
"""

import math

import torch
from torch import Tensor

from mist_loss.meta.families import Problem
from mist_loss.meta.maps import random_rotation
from mist_loss.meta.paper import uniform


def symmetric_channel(prior: Tensor, flip: Tensor) -> Tensor:
    """Joint probabilities of a label and what a symmetric channel makes of it.

    Args:
        prior: (b, k) probabilities of the labels.
        flip: (b,) probability that the label is replaced by one of the others, all alike.

    Returns:
        (b, k, k) joint probabilities, row: sent, column: received.
    """
    k = prior.shape[1]
    eye = torch.eye(k, device=prior.device)
    f = flip[:, None, None]
    return prior[:, :, None] * ((1 - f) * eye + f / max(k - 1, 1) * (1 - eye))


def folded_channel(prior: Tensor, noise: Tensor, received: int) -> Tensor:
    """Joint probabilities of a label c and another of a given number of values: c modulo that, or, by noise, any.

    Args:
        prior: (b, k) probabilities of the labels sent.
        noise: (b,) probability that the label received is drawn evenly.
        received: number of labels received, l.

    Returns:
        (b, k, l) joint probabilities.
    """
    k = prior.shape[1]
    folded = torch.nn.functional.one_hot(torch.arange(k, device=prior.device) % received, received).to(prior.dtype)
    f = noise[:, None, None]
    return prior[:, :, None] * ((1 - f) * folded + f / received)


def draw_labels(joint: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """n pairs of labels (b, n), int64, sent and received, with joint probabilities (b, k, l)."""
    cells = torch.multinomial(joint.flatten(1), n, replacement=True)
    return cells // joint.shape[2], cells % joint.shape[2]


def label_mi(joint: Tensor) -> Tensor:
    """Mutual information of two discrete labels with joint probabilities (b, k, l) -> (b,) nats, float64."""
    p = joint.double()
    independent = p.sum(2, keepdim=True) * p.sum(1, keepdim=True)
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, independent)).sum((1, 2))


def labelled_mixture(
    joint: Tensor,
    means_x: Tensor,
    means_y: Tensor | None,
    n: int,
    monte_carlo: int = 1024,
    scales_x: Tensor | None = None,
    scales_y: Tensor | None = None,
) -> Problem:
    """Gaussian mixtures on both sides whose labels depend on each other.

    The density ratio of (x, y) is known in closed form from the posteriors of the labels, so the mutual information is
    the mean of its logarithm over fresh rows (standard error about 0.02 nats at the default; zero where y is the label
    and the clusters of x do not overlap).

    Args:
        joint: (b, k, l) joint probabilities of the labels of x and y.
        means_x: (b, k, dx) cluster means; the noise around them has unit variance.
        means_y: (b, l, dy) cluster means, or None: y is then the one-hot label (b, n, l).
        n: rows of each set.
        monte_carlo: fresh rows for the mutual information.
        scales_x: (b, k, dx) standard deviations around the means of x, in place of 1: a label can then show itself in
            the spread of x alone.
        scales_y: (b, l, dy) the same of y; without means_y there is nothing to spread.
    """
    m = joint.shape[2]
    label_x, label_y = draw_labels(joint, n + monte_carlo)
    x, log_x = _clusters(means_x, scales_x, label_x)
    if means_y is None:
        y = torch.nn.functional.one_hot(label_y, m).to(x.dtype)
        log_y = torch.log(y)
    else:
        y, log_y = _clusters(means_y, scales_y, label_y)
    prior_x, prior_y = joint.sum(2), joint.sum(1)
    posterior_x = torch.softmax(log_x[:, n:] + prior_x.log()[:, None], dim=-1)
    posterior_y = torch.softmax(log_y[:, n:] + prior_y.log()[:, None], dim=-1)
    lift = joint / (prior_x[:, :, None] * prior_y[:, None, :]).clamp_min(1e-30)
    ratio = ((posterior_x @ lift) * posterior_y).sum(-1)
    return Problem(x[:, :n], y[:, :n], ratio.clamp_min(1e-30).log().mean(1).clamp_min(0))


def _clusters(means: Tensor, scales: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (b, n, d) of labels (b, n) with means and scales (b, k, d); log densities (b, n, k) up to a constant."""
    scales = torch.ones_like(means) if scales is None else scales
    centre, scale = (t.gather(1, labels[..., None].expand(-1, -1, t.shape[2])) for t in (means, scales))
    rows = centre + scale * torch.randn_like(centre)
    precision = 1 / scales**2
    log_density = rows @ (means * precision).transpose(1, 2) - 0.5 * (rows**2) @ precision.transpose(1, 2)
    return rows, log_density - (0.5 * means**2 * precision + scales.log()).sum(-1)[:, None]


def parted_clusters(labels: Tensor, d: int) -> Tensor:
    """Rows of two clusters that do not touch, however wide they are: each row tells its label without error.

    Real classes are like this. They fill much of the space between their means, and still leave a gap; a Gaussian as
    wide would overlap the other, and share less. Along the direction that parts them a cluster has a density of any
    shape (Kumaraswamy 1980), along the others three smaller clusters of its own, which may bend with the first.

    Args:
        labels: (b, n) 0 or 1.
        d: dimensions.

    Returns:
        (b, n, d), in a random frame.
    """
    b, n = labels.shape
    device = labels.device
    powers = torch.exp(uniform(4 * b, math.log(0.4), math.log(2.5), device)).reshape(2, b, 2)
    inner, outer = (power.gather(1, labels) for power in powers)
    depth = (1 - torch.rand(b, n, device=device) ** (1 / outer)).clamp_min(1e-6) ** (1 / inner)
    gap = torch.exp(uniform(b, math.log(0.1), math.log(1.0), device))[:, None]
    first = (2 * labels - 1) * (gap / 2 + depth)
    # cluster and smaller cluster as one label of six
    place = (3 * labels + torch.randint(3, labels.shape, device=device))[..., None].expand(-1, -1, d - 1)
    means = torch.rand(b, 1, 1, device=device) * torch.randn(b, 6, d - 1, device=device)
    scales = torch.exp(0.5 * torch.randn(b, 6, d - 1, device=device))
    bend = torch.rand(b, 1, 1, device=device) * torch.randn(b, 1, d - 1, device=device)
    others = means.gather(1, place) + scales.gather(1, place) * torch.randn(b, n, d - 1, device=device)
    rows = torch.cat([first[..., None], others / 2 + bend * depth[..., None] ** 2], dim=-1)
    return rows @ random_rotation(b, d, device)


def clustered_normal(
    prior: Tensor,
    means_x: Tensor,
    means_y: Tensor,
    scale: Tensor,
    noise: Tensor,
    rho: Tensor,
    n: int,
    monte_carlo: int = 1024,
) -> Problem:
    """Pairs that share their class, and share something within it: x = mu_c + s_c g, y = nu_c + s_c (rho g + t_c e).

    The mutual information is the mean logarithm of the density ratio over fresh rows. What the ratio within the known
    class adds to its scatter is taken out, as its mean is known (a control variate).

    Args:
        prior: (b, k) probabilities of the classes.
        means_x: (b, k, dx).
        means_y: (b, k, dy).
        scale: (b, k) standard deviation of x within a class, and of y where the noise is 1.
        noise: (b, k) factor of what coordinates of y do not share with x within a class.
        rho: (b, m) correlations in [0, 1) of facing coordinates within a class of noise 1; m at most min(dx, dy).
        n: rows of each set.
        monte_carlo: fresh rows for the mutual information.
    """
    b, m = rho.shape
    rows = n + monte_carlo
    label = torch.multinomial(prior, rows, replacement=True)
    rest = (0, means_y.shape[2] - m)
    r = torch.nn.functional.pad(rho, rest)[:, None]
    own = (1 - r**2).sqrt()
    scale_of, noise_of = (t.gather(1, label)[..., None] for t in (scale, noise))
    centre_x, centre_y = (t.gather(1, label[..., None].expand(-1, -1, t.shape[2])) for t in (means_x, means_y))
    g = torch.randn(b, rows, means_x.shape[2], device=rho.device)
    e = torch.randn(b, rows, means_y.shape[2], device=rho.device)

    def follow(z: Tensor) -> Tensor:
        return torch.nn.functional.pad(rho[:, None] * z[..., :m], rest)

    x, y = centre_x + scale_of * g, centre_y + scale_of * (follow(g) + own * noise_of * e)

    def log_normal(z: Tensor, deviation: Tensor) -> Tensor:
        return (-0.5 * (z / deviation) ** 2 - deviation.log()).sum(-1)

    fresh_x, fresh_y, told = x[:, n:], y[:, n:], label[:, n:]
    logs = []  # of the densities of x, of y, and of y given x in every class, up to constants that cancel
    for c in range(prior.shape[1]):
        s, t = (values[:, c, None, None] for values in (scale, noise))
        u, v = fresh_x - means_x[:, None, c], fresh_y - means_y[:, None, c]
        whole = s * (r**2 + (own * t) ** 2).sqrt()
        given = log_normal(v - follow(u), s * own * t)
        logs.append(torch.stack([log_normal(u, s.expand_as(u)), log_normal(v, whole), given]))
    log_x, log_y, log_given = torch.stack(logs, dim=-1).unbind(0)
    log_prior = prior.log()[:, None]
    ratio = (log_prior + log_x + log_given).logsumexp(-1)
    ratio = ratio - (log_prior + log_x).logsumexp(-1) - (log_prior + log_y).logsumexp(-1)
    within = (log_given - log_y).gather(2, told[..., None])[..., 0]
    known = 0.5 * torch.log1p(r**2 / (own * noise[..., None]) ** 2).sum(-1)  # its mean in every class
    return Problem(x[:, :n], y[:, :n], ((ratio - within).mean(1) + (prior * known).sum(1)).clamp_min(0))


def independent_blocks(blocks: Problem, b: int, dx: int, dy: int) -> Problem:
    """Concatenate independent blocks along the features and fill up with noise; their mutual informations add up.

    Args:
        blocks: (b k) sets, the k blocks of a set in a row.
        b: number of sets.
        dx: dimensions of x after filling up.
        dy: dimensions of y after filling up.
    """
    n = blocks.x.shape[1]

    def side(t: Tensor, d: int) -> Tensor:
        t = t.reshape(b, -1, n, t.shape[-1]).transpose(1, 2).flatten(2)
        return torch.cat([t, torch.randn(b, n, d - t.shape[2], device=t.device)], dim=-1)

    return Problem(side(blocks.x, dx), side(blocks.y, dy), blocks.mi.reshape(b, -1).sum(1))
