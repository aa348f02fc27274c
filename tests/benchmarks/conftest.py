"""Benchmarks compare a path with a baseline in the same run: no test knows how fast a machine should be."""

import os
from collections.abc import Callable
from statistics import median

import pytest
import torch


@pytest.fixture(autouse=True)
def all_threads(one_thread: None) -> None:
    """As a user would have them; the other tests run on one."""
    torch.set_num_threads(os.cpu_count() or 1)


@pytest.fixture
def ratio(benchmark, request) -> Callable[..., float]:
    """Median time of a path over that of a baseline, by the marker's timer; in turn, so that other load meets both."""
    if not benchmark.enabled:
        pytest.skip("there is nothing to compare without times")
    timer = request.node.get_closest_marker("benchmark").kwargs["timer"]

    def measure(path: Callable[[], object], baseline: Callable[[], object], rounds: int = 7) -> float:
        times: list[float] = []

        def before() -> None:
            start = timer()
            baseline()
            times.append(timer() - start)

        benchmark.pedantic(path, setup=before, rounds=rounds, warmup_rounds=1)
        found = benchmark.stats.stats.median / median(times[1:])
        benchmark.extra_info["ratio to the baseline"] = round(found, 3)
        return found

    return measure
