import os

import pytest
import torch

from mist_loss.model.network import MIST, MISTConfig

# one thread, also of the processes that tests start: tensors are small, and threads would wait on each other, above all
# beside other work, such as another worker of pytest-xdist
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def model() -> MIST:
    """A small estimator with random weights: for mechanics, not for truth."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = MISTConfig(rows=(10, 512), dims=(1, 8), width=32, set_width=16, row_pairs=4, pair_width=8)
        return MIST(config).eval()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # before every test: importing dcor, for one, changes it
