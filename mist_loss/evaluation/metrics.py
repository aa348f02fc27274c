"""Errors of estimates against known MI: pure functions of arrays with an entry for each sample."""

import math
from collections.abc import Callable

import numpy as np
import torch

from mist_loss.model.quantiles import KNOTS, knot_scores

# Row counts up to and including each bound, as in the MIST paper, whose sets end at 500.
BUCKETS: dict[str, float] = {"10-100": 100, "100-300": 300, "over 300": float("inf")}


def mse(value: np.ndarray, mi: np.ndarray) -> float:
    """Mean squared error in nats^2 of estimates (k,) for the true MI (k,)."""
    return float(np.mean((value - mi) ** 2))


def mae(value: np.ndarray, mi: np.ndarray) -> float:
    """Mean absolute error in nats of estimates (k,) for the true MI (k,)."""
    return float(np.mean(np.abs(value - mi)))


def coverage(low: np.ndarray, high: np.ndarray, mi: np.ndarray) -> float:
    """Share of the true MI (k,) inside the closed intervals [low, high], each (k,)."""
    return float(np.mean((low <= mi) & (mi <= high)))


def predict_the_mean(mi: np.ndarray) -> np.ndarray:
    """The estimates (k,) of a method that ignores its input and knows the mean MI of the whole corpus."""
    return np.full_like(mi, np.mean(mi))


def bucket(rows: np.ndarray) -> np.ndarray:
    """Index (k,) into `BUCKETS` for row counts (k,)."""
    return np.searchsorted(list(BUCKETS.values()), rows, side="left")


def by_bucket(metric: Callable[..., float], rows: np.ndarray, *columns: np.ndarray) -> dict[str, float]:
    """A metric within each bucket of row counts.

    Args:
        metric: of this module, called with ``columns`` restricted to a bucket.
        rows: (k,) row counts.
        columns: arrays (k,), the arguments of the metric.

    Returns:
        bucket name to value, NaN for a bucket without samples.
    """
    index = bucket(rows)
    inside = {name: index == i for i, name in enumerate(BUCKETS)}
    return {
        name: metric(*(column[mask] for column in columns)) if mask.any() else float("nan")
        for name, mask in inside.items()
    }


def level(knots: np.ndarray, mi: float) -> float:
    """Probability that a predictive distribution gives to values up to ``mi``: the inverse of ``quantiles.quantile``.

    Args:
        knots: (KNOTS,) nats, increasing.
        mi: nats, not negative.

    Returns:
        a level in [0, 1]; over many problems uniform where the intervals hold (the probability integral transform).
    """
    scores = knot_scores(torch.empty((), dtype=torch.float64)).numpy()
    knots = knots.astype(np.float64)
    i = int(np.clip(np.searchsorted(knots, mi, side="right") - 1, 0, KNOTS - 2))
    slope = max(knots[i + 1] - knots[i], 1e-12) / (scores[i + 1] - scores[i])
    return float(torch.special.ndtr(torch.tensor(scores[i] + (mi - knots[i]) / slope, dtype=torch.float64)))


def coverage_of(nominal: float, level: np.ndarray, mi: np.ndarray) -> float:
    """Share of the true MI (k,) in the central intervals of a nominal level, from their levels (k,).

    No quantile is negative, so the upper end never lies below a true MI of zero.
    """
    tail = (1 - nominal) / 2
    return float(np.mean((level >= tail) & ((level <= 1 - tail) | (mi <= 0))))


def scale_to_cover(low: np.ndarray, high: np.ndarray, mi: np.ndarray, share: float) -> float:
    """Smallest factor by which intervals, each about its centre, must be widened to contain a share of the true MI.

    Args:
        low: (k,) lower ends.
        high: (k,) upper ends.
        mi: (k,) truths.
        share: of the k, in [0, 1].

    Returns:
        the factor; below 1 where the intervals may be narrower, infinite where one without width is missed.
    """
    centre, half = (low + high) / 2, (high - low) / 2
    needed = np.full(len(mi), np.inf)
    np.divide(np.abs(mi - centre), half, out=needed, where=half > 0)
    needed[mi == centre] = 0
    wanted = math.ceil(share * len(mi) - 1e-9)
    return float(np.sort(needed)[wanted - 1]) if wanted else 0.0


def rows_needed(rows: np.ndarray, error: np.ndarray, target: float) -> float:
    """Row count from which on an error curve stays at or below a target, linear in log n between its points.

    Args:
        rows: (k,) increasing row counts.
        error: (k,) errors at them.
        target: the error wanted.

    Returns:
        the row count; the first one if the whole curve lies below, infinity if it ends above or has gaps at its end.
    """
    above = np.flatnonzero(~(error <= target))
    if not len(above):
        return float(rows[0])
    last = int(above[-1])
    if last == len(rows) - 1:
        return math.inf
    if not np.isfinite(error[last]):
        return float(rows[last + 1])
    share = (error[last] - target) / (error[last] - error[last + 1])
    return float(rows[last] * (rows[last + 1] / rows[last]) ** share)
