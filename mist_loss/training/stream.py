"""The endless stream of training problems: a pure function of seed, step and process, so that a run can go on anywhere."""

import torch

from mist_loss.meta.families import Problem
from mist_loss.meta.mixtures import Mixture

SMALLEST, LARGEST = 8, 48  # sets of a group; a group shares one shape, so that nothing is padded
ROW_BUDGET = 8000  # rows of a group, between those bounds


def group(mixture: Mixture, seed: int, step: int, process: int, index: int, device: torch.device) -> Problem:
    """Draw one group of sets of equal shape.

    Args:
        mixture: the meta-distribution.
        seed: of the run, below 2^20.
        step: optimiser step, below 2^28.
        process: rank, below 2^10.
        index: group within the step, below 32.
        device: where to sample; the same numbers are drawn on the same kind of device.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, device_type="cuda"):
        torch.manual_seed((((seed << 28) + step << 10) + process << 5) + index)
        n, dx, dy = mixture.shape()
        sets = max(SMALLEST, min(LARGEST, ROW_BUDGET // n))
        return mixture.batch(sets, n, dx, dy, device, chunk=2 if sets <= 16 else 4)
