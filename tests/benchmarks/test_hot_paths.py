"""Ratios between the paths that every user takes: ``pytest -m slow tests/benchmarks -s`` prints them."""

import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import pytest
import torch

from mist_loss import MIST, MISTCriterion
from mist_loss.matrix import mi_matrix

pytestmark = pytest.mark.slow


def seconds(action: Callable[[], object], repeats: int = 7) -> float:
    """Median processor time after one warm-up."""
    action()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return median(times)


def cpu_seconds(code: str) -> float:
    """Processor time of a fresh Python that runs some code, median of five: other work on the machine counts less."""
    measure = f"import time; {code}; print(time.process_time())"
    command = [sys.executable, "-c", measure]
    return median(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(5))


def test_importing_costs_little_more_than_torch():
    ratio = cpu_seconds("import mist_loss") / cpu_seconds("import torch")
    print(f"\nimport mist_loss / import torch = {ratio:.2f}")
    assert ratio < 1.2


def test_a_loss_and_its_gradient():
    criterion = MISTCriterion()
    x, y = torch.randn(512, 16, requires_grad=True), torch.randn(512, 16)

    def forward() -> None:
        with torch.no_grad():
            criterion(x, y)

    ratio = seconds(lambda: criterion(x, y).backward()) / seconds(forward)
    print(f"\nforward and backward / forward = {ratio:.1f}")
    assert ratio < 6


def test_a_matrix_is_cheaper_than_its_pairs_one_by_one():
    model = MIST.from_pretrained("mist-base")
    rows = torch.randn(200, 12).numpy()
    together = seconds(lambda: mi_matrix(rows, model=model), 3)
    apart = seconds(lambda: mi_matrix(rows[:, :2], model=model)) * 66
    print(f"\n66 pairs together / apart = {together / apart:.2f}")
    assert together < 0.7 * apart
