"""Wall time of a call, for the benchmarks."""

import statistics
import time
from collections.abc import Callable


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Median wall time, after one call that only warms up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
