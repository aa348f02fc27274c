"""Costs, as ratios within one run or against generous limits: ``pytest -m slow tests/benchmarks -s`` prints them."""

import time
from collections.abc import Callable
from statistics import median

import pytest
import torch

from mist_loss.meta.mixtures import MIXTURES
from mist_loss.model.network import MIST
from mist_loss.training.losses import relative_loss
from mist_loss.training.stream import group

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


def seconds(action: Callable[[], object], repeats: int = 7) -> float:
    """Median wall time after one warm-up."""
    action()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return median(times)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MIST()


def test_sampling_takes_less_than_a_third_of_a_training_step(model):
    def sample() -> list:
        return [group(MIXTURES["broad"], 0, step, 0, 0, CPU) for step in range(16)]

    def train() -> None:
        for x, y, mi in problems:
            relative_loss(model(x, y), mi).mean().backward()

    problems = sample()
    sampling, training = seconds(sample, 3), seconds(train, 3)
    print(f"\nsampling / (sampling + training) = {sampling / (sampling + training):.3f}")
    assert sampling < (sampling + training) / 3


def test_one_estimate_and_a_batch(model):
    def estimate(sets: int) -> Callable[[], object]:
        x, y = torch.randn(sets, 500, 16), torch.randn(sets, 500, 16)
        return lambda: model(x, y)

    with torch.inference_mode():
        one, many = seconds(estimate(1)), seconds(estimate(64))
    print(f"\nn = 500, d = 16: one set {1e3 * one:.0f} ms, 64 sets {1e3 * many:.0f} ms")
    assert one < 0.06
    assert many < 1.5


def test_cost_is_linear_in_the_rows(model):
    def estimate(rows: int) -> Callable[[], object]:
        x, y = torch.randn(1, rows, 8), torch.randn(1, rows, 8)
        return lambda: model(x, y)

    with torch.inference_mode():
        ratio = seconds(estimate(64_000)) / seconds(estimate(16_000))
    print(f"\ntime at 64,000 rows / time at 16,000 rows = {ratio:.1f}")
    assert ratio < 8
