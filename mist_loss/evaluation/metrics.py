"""Errors of estimates against known MI: pure functions of arrays with an entry for each sample."""

from collections.abc import Callable

import numpy as np

# Row counts up to and including each bound, as in the MIST paper; the last bucket has no upper bound.
BUCKETS: dict[str, float] = {"10-100": 100, "100-300": 300, "300-500": float("inf")}


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
