import pytest
import torch

from mist_loss.model.network import MIST, MISTConfig


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
