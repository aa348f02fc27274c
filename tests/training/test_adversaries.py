"""Encoders that ascend the estimator: their fate is a function of the seed."""

import pytest
import torch

from mist_loss.model.network import MIST
from mist_loss.training.adversaries import POOLS, Adversaries
from mist_loss.training.pretrain import resist
from mist_loss.training.stream import ROW_BUDGET, SMALLEST

CPU = torch.device("cpu")


def test_the_encoders_of_a_step_depend_on_the_seed_alone():
    network = MIST().eval()
    steps = range(2 * POOLS)

    def visit(adversaries, steps):
        codes = None
        for step in steps:
            encoders, codes = adversaries.codes(step)
            resist(network, encoders, codes)
        return codes

    whole = visit(Adversaries(5, 0, CPU), steps)
    stopped = Adversaries(5, 0, CPU)
    visit(stopped, steps[:8])
    resumed = Adversaries(5, 0, CPU, visit=8)
    resumed.load({name: tensor.clone() for name, tensor in stopped.state().items()})
    torch.testing.assert_close(visit(resumed, steps[8:]).x, whole.x, atol=0, rtol=0)
    other = visit(Adversaries(5, 1, CPU), steps)
    assert other.x.shape == whole.x.shape  # processes share shapes, not encoders
    assert not torch.equal(other.x, whole.x)


def test_pools_restart_when_their_time_is_over():
    adversaries = Adversaries(0, 0, CPU)
    starts = {adversaries._started(0, step) for step in range(0, 6000, POOLS)}
    assert len(starts) > 2
    assert all(start % POOLS == 0 for start in starts)
    first = min(start for start in starts if start > 0)
    assert adversaries._started(0, first - 1) < first
    trial = adversaries.pools[0].trial
    adversaries.codes(first)
    assert adversaries.pools[0].trial != trial


def test_a_visit_has_half_the_sets_of_a_group():
    for seed in range(8):
        for encoders in Adversaries(seed, 0, CPU).pools:
            sets = len(encoders.sign)
            assert sets == max(SMALLEST // 2, min(16, ROW_BUDGET // 2 // encoders.trial.rows))


def test_encoders_of_another_version_are_refused_by_name():
    adversaries = Adversaries(5, 0, CPU)
    state = adversaries.state()
    name = next(iter(state))
    del state[name]
    with pytest.raises(ValueError, match=f"other encoders, without {name}"):
        adversaries.load(state)
