import math

import numpy as np
import pytest

from mist_loss.evaluation import metrics

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
    assert result["300-500"] == pytest.approx(1.0)
