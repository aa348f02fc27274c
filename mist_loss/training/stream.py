"""The stream of training problems: a pure function of seed, step and process, so that a run can go on anywhere."""

import hashlib

import torch

from mist_loss.meta.families import Problem
from mist_loss.meta.mixtures import Mixture
from mist_loss.seeding import seeded

SMALLEST, LARGEST = 8, 96  # sets of a group; a group shares one shape, so that nothing is padded
STEPS, GROUPS = 2**20, 2**5  # of a run and of a step: so many seeds there are
VERSION = 12  # of what a seed draws: one more where families or adversaries change; no run goes on across it
SHARED = 2**7 - 1  # in place of a rank, for what all processes draw alike
ROW_BUDGET = 8000  # rows of a group, between those bounds


def draw_seed(seed: int, step: int, process: int, index: int) -> int:
    """A 32-bit seed, all that torch's CPU generator uses; within a run no two draws share one.

    Args:
        seed: of the run; runs start at unrelated places.
        step: optimiser step, below STEPS.
        process: rank, below 2^7 - 1; the last stands for what all processes share.
        index: group within the step, below GROUPS.
    """
    start = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "big")
    return (start + (step << 12) + (process << 5) + index) % 2**32


def group(mixture: Mixture, seed: int, step: int, process: int, index: int, device: torch.device) -> Problem:
    """Draw one group of sets of equal shape; the caller's random numbers are left alone.

    All processes draw the same shape, so that none waits for another, and each its own problems.

    Args:
        mixture: the meta-distribution.
        seed: of the run.
        step: optimiser step.
        process: rank.
        index: group within the step.
        device: where to sample; the same numbers are drawn on the same kind of device.
    """
    with seeded(draw_seed(seed, step, SHARED, index), device):
        n, dx, dy = mixture.shape()
    with seeded(draw_seed(seed, step, process, index), device):
        sets = max(SMALLEST, min(LARGEST, ROW_BUDGET // n))
        return mixture.batch(sets, n, dx, dy, device, chunk=2 if sets <= 16 else 4)
