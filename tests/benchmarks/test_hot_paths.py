"""Ratios between the paths that every user takes.

``pytest -m slow tests/benchmarks --benchmark-json=times.json`` writes them, with the times behind them.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch

from mist_loss import MIST, MISTCriterion
from mist_loss.matrix import mi_matrix
from mist_loss.meta.mixtures import MIXTURES
from mist_loss.training.losses import relative_loss
from mist_loss.training.stream import group

# processor time: other work on the machine counts less
pytestmark = [pytest.mark.slow, pytest.mark.benchmark(timer=time.process_time)]


@pytest.fixture(scope="module")
def model() -> MIST:
    return MIST.from_pretrained("mist-base")


def of_children() -> float:
    """Processor time of the processes that were started and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def fresh_python(code: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, "-c", code], check=True)


def estimate(model: MIST, sets: int, rows: int, dims: int) -> Callable[[], object]:
    x, y = torch.randn(sets, rows, dims), torch.randn(sets, rows, dims)
    return torch.inference_mode()(lambda: model(x, y))


@pytest.mark.benchmark(timer=of_children)
def test_importing_costs_little_more_than_torch(ratio):
    assert ratio(fresh_python("import mist_loss"), fresh_python("import torch"), rounds=5) < 1.2


def test_a_loss_and_its_gradient(ratio):
    criterion = MISTCriterion()
    x, y = torch.randn(512, 16, requires_grad=True), torch.randn(512, 16)
    assert ratio(lambda: criterion(x, y).backward(), torch.no_grad()(lambda: criterion(x, y))) < 6


def test_a_matrix_is_cheaper_than_its_pairs_one_by_one(ratio, model):
    rows = torch.randn(200, 12).numpy()
    assert ratio(lambda: mi_matrix(rows, model=model), lambda: mi_matrix(rows[:, :2], model=model), 3) < 0.7 * 66


def test_a_batch_is_cheaper_than_its_sets_one_by_one(ratio, model):
    assert ratio(estimate(model, 64, 500, 16), estimate(model, 1, 500, 16)) < 0.8 * 64


def test_cost_is_linear_in_the_rows(ratio, model):
    assert ratio(estimate(model, 1, 64_000, 8), estimate(model, 1, 16_000, 8)) < 8


def test_sampling_takes_less_than_half_as_long_as_learning_from_it(ratio):
    def sample() -> list:
        return [group(MIXTURES["broad"], 0, step, 0, 0, torch.device("cpu")) for step in range(16)]

    def learn() -> None:
        for x, y, mi in problems:
            relative_loss(network(x, y), mi).mean().backward()

    network, problems = MIST(), sample()
    assert ratio(sample, learn, rounds=3) < 0.5


@pytest.mark.parametrize("stem", ["3x3, stride 1", "7x7, stride 2, pooling"])
def test_criterion_beside_a_resnet_step(ratio, stem):
    """256 codes of 64 dimensions beside an eighth of a step of ResNet-18 on 256 x 3 x 32 x 32, linear in the images.

    The first stem is the usual one for images of this size (He et al. 2016, section 4.2), the second that of ImageNet,
    which leaves 8 x 8 pixels to the network and 1/15 of the work.
    """
    torchvision = pytest.importorskip("torchvision")
    network = torchvision.models.resnet18(num_classes=64)
    if stem.startswith("3x3"):
        network.conv1, network.maxpool = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.Identity()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    images = torch.randn(32, 3, 32, 32)

    def train() -> None:
        optimizer.zero_grad()
        network(images).square().mean().backward()
        optimizer.step()

    criterion = MISTCriterion()
    x, y = torch.randn(256, 64, requires_grad=True), torch.randn(256, 64, requires_grad=True)
    share = ratio(lambda: criterion(x, y).backward(), train, rounds=5) / 8
    assert share < (0.02 if stem.startswith("3x3") else 0.15)
