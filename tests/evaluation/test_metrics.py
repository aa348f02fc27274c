import math

import numpy as np
import pytest
import torch

from mist_loss.evaluation import metrics
from mist_loss.model import quantiles

MI = np.array([1.0, 2.0, 4.0])
VALUE = np.array([1.5, 2.0, 3.0])


def test_errors():
    assert metrics.mse(VALUE, MI) == pytest.approx((0.25 + 0 + 1) / 3)
    assert metrics.mae(VALUE, MI) == pytest.approx((0.5 + 0 + 1) / 3)


def test_coverage_counts_the_ends():
    low, high = np.array([1.0, 2.1, 0.0]), np.array([3.0, 3.0, 4.0])
    assert metrics.coverage(low, high, MI) == pytest.approx(2 / 3)


def test_predict_the_mean_has_the_variance_as_error():
    constant = metrics.predict_the_mean(MI)
    assert constant == pytest.approx([7 / 3] * 3)
    assert metrics.mse(constant, MI) == pytest.approx(np.var(MI))


def test_buckets_include_their_upper_bound():
    rows = np.array([10, 100, 101, 300, 301, 500, 5000])
    assert metrics.bucket(rows).tolist() == [0, 0, 1, 1, 2, 2, 2]


def test_metric_by_bucket():
    rows = np.array([50, 80, 400])
    result = metrics.by_bucket(metrics.mse, rows, VALUE, MI)
    assert result["10-100"] == pytest.approx(0.125)
    assert math.isnan(result["100-300"])
    assert result["over 300"] == pytest.approx(1.0)


def uniform_knots(low: float, high: float) -> np.ndarray:
    """Knots of the uniform distribution on (low, high)."""
    return low + (high - low) * quantiles.knot_levels(torch.zeros((), dtype=torch.float64)).numpy()


def test_level_inverts_the_quantile_function():
    knots = uniform_knots(1, 3)
    assert metrics.level(knots, 2.0) == pytest.approx(0.5)
    for level in (0.001, 0.05, 0.3, 0.5, 0.77, 0.999):
        mi = float(quantiles.quantile(torch.from_numpy(knots), level))
        assert metrics.level(knots, mi) == pytest.approx(level, abs=1e-6)
    assert metrics.level(knots, 0.0) == pytest.approx(0, abs=1e-6)
    assert metrics.level(knots, 99.0) == pytest.approx(1)


def test_level_of_a_distribution_without_width():
    knots = np.full(quantiles.KNOTS, 0.5)
    assert [metrics.level(knots, mi) for mi in (0.4, 0.5, 0.6)] == pytest.approx([0, 0.5, 1], abs=0.5)
    assert metrics.level(knots, 0.4) == 0
    assert metrics.level(knots, 0.6) == 1


@pytest.mark.parametrize("nominal", [0.5, 0.9])
def test_coverage_from_levels_is_that_of_the_intervals(nominal):
    rng = np.random.default_rng(0)
    mi = np.maximum(rng.uniform(-0.5, 3, 400), 0)
    knots = np.stack([uniform_knots(a, a + 1) for a in rng.uniform(-0.6, 2.5, 400)])
    levels = np.array([metrics.level(k, m) for k, m in zip(knots, mi, strict=True)])
    low, high = (
        quantiles.quantile(torch.from_numpy(knots), tail).numpy() for tail in ((1 - nominal) / 2, (1 + nominal) / 2)
    )
    assert metrics.coverage_of(nominal, levels, mi) == pytest.approx(metrics.coverage(low, high, mi))


def test_scale_to_cover():
    low, high, mi = np.zeros(4), np.full(4, 2.0), np.array([1.0, 1.5, 3.0, 5.0])
    # distances from the centre: 0, 0.5, 2 and 4 half widths
    factors = [metrics.scale_to_cover(low, high, mi, share) for share in (0, 0.25, 0.5, 0.75, 1)]
    assert factors == [0, 0, 0.5, 2, 4]
    assert metrics.scale_to_cover(low, low, mi, 1) == math.inf
    assert metrics.scale_to_cover(mi, mi, mi, 1) == 0


def test_rows_needed():
    rows = np.array([10, 100, 1000])
    assert metrics.rows_needed(rows, np.array([1.0, 0.5, 0.1]), 0.5) == pytest.approx(100)
    assert metrics.rows_needed(rows, np.array([1.0, 0.5, 0.1]), 0.3) == pytest.approx(10**2.5)
    assert metrics.rows_needed(rows, np.array([1.0, 0.5, 0.1]), 2.0) == 10
    assert metrics.rows_needed(rows, np.array([1.0, 0.5, 0.1]), 0.05) == math.inf
    # a curve that rises again has not reached the target before
    assert metrics.rows_needed(rows, np.array([0.1, 0.9, 0.5]), 0.5) == pytest.approx(1000)
    assert metrics.rows_needed(rows, np.array([math.nan, 0.2, 0.1]), 0.3) == 100
    assert metrics.rows_needed(rows, np.array([0.3, 0.2, math.nan]), 0.3) == math.inf
