"""Costs, as ratios within one run or against generous limits: ``pytest -m slow tests/benchmarks -s`` prints them."""

import time
from collections.abc import Callable
from statistics import median

import pytest
import torch

from mist_loss import MISTCriterion
from mist_loss.meta.mixtures import MIXTURES
from mist_loss.model.network import MIST
from mist_loss.training.losses import relative_loss
from mist_loss.training.stream import group

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


def seconds(action: Callable[[], object], repeats: int = 7, clock: Callable[[], float] = time.perf_counter) -> float:
    """Median wall time after one warm-up, or time of another clock."""
    action()
    times = []
    for _ in range(repeats):
        start = clock()
        action()
        times.append(clock() - start)
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


@pytest.mark.parametrize("stem", ["3x3, stride 1", "7x7, stride 2, pooling"])
def test_criterion_beside_a_resnet_step(stem):
    """256 codes of 64 dimensions beside ResNet-18 on 256 x 3 x 32 x 32, processor time: other load does not count.

    The first stem is the usual one for images of this size (He et al. 2016, section 4.2), the second that of ImageNet,
    which leaves 8 x 8 pixels to the network and 1/15 of the work.
    """
    torchvision = pytest.importorskip("torchvision")
    network = torchvision.models.resnet18(num_classes=64)
    if stem.startswith("3x3"):
        network.conv1, network.maxpool = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.Identity()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    images, parts = torch.randn(32, 3, 32, 32), 8  # an eighth of the batch, eight times: the work is linear in it

    def train() -> None:
        optimizer.zero_grad()
        network(images).square().mean().backward()
        optimizer.step()

    criterion = MISTCriterion()
    x, y = torch.randn(256, 64, requires_grad=True), torch.randn(256, 64, requires_grad=True)
    loss = seconds(lambda: criterion(x, y).backward(), 11, time.process_time)
    step = parts * seconds(train, 3, time.process_time)
    print(f"\n{stem}: criterion {1e3 * loss:.0f} ms, ResNet-18 step {1e3 * step:.0f} ms, {100 * loss / step:.1f}%")
    assert loss < (0.02 if stem.startswith("3x3") else 0.15) * step
