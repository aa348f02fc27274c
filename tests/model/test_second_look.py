"""The second look: where it moves a reading, what it leaves alone, and that it hides no gradients."""

import math

import pytest
import torch
from torch import nn

from mist_loss.model.balls import BALLS, MIDDLE
from mist_loss.model.intrinsic import INTRINSIC
from mist_loss.model.network import MIST, MISTConfig
from mist_loss.model.normal import NORMAL
from mist_loss.model.quantiles import KNOTS
from mist_loss.model.second_look import SecondLook


@pytest.fixture
def seen():
    torch.manual_seed(0)
    reading = torch.randn(5, KNOTS).cumsum(1).sort(dim=1).values
    summary = torch.randn(5, 20 + BALLS)
    return reading, summary, summary / 2, torch.randn(5, 8)


def last(look: SecondLook) -> nn.Linear:
    layer = look.layers[-1]
    assert isinstance(layer, nn.Linear)
    return layer


def test_it_moves_the_centre_towards_balls_and_scales_either_side(seen):
    look = SecondLook(20 + BALLS, 8, 16, normal=False, intrinsic=False)
    reading, summary, _, _ = seen
    centre, said = reading[:, KNOTS // 2], summary[:, 20 + MIDDLE]
    start = look(*seen)
    assert ((start - reading).abs() <= 0.05 * (said - centre).abs()[:, None] + 1e-6).all()
    with torch.no_grad():
        last(look).bias.copy_(torch.tensor([36.0, -0.4, 0.4]))
    changed = look(*seen)
    torch.testing.assert_close(changed[:, KNOTS // 2], said)
    below, above = (changed - said[:, None]) / (reading - centre[:, None]), KNOTS // 2
    torch.testing.assert_close(below[:, :above].log(), torch.full((5, above), -0.4), atol=1e-4, rtol=0)
    torch.testing.assert_close(below[:, above + 1 :].log(), torch.full((5, above), 0.4), atol=1e-4, rtol=0)
    assert (changed.diff(dim=1) >= 0).all()


@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_it_shares_what_it_says_between_the_reading_and_two_others(seen, chosen):
    look = SecondLook(20 + BALLS, 8, 16, normal=True, intrinsic=False)
    reading, summary, _, _ = seen
    said = torch.stack([reading[:, KNOTS // 2], summary[:, 20 + MIDDLE], summary[:, 20 - NORMAL]])
    begins = (look(*seen) - reading)[:, KNOTS // 2].abs()
    assert (begins <= 0.05 * (said[1:] - said[0]).abs().sum(0) + 1e-6).all()  # e^-3 beside 1 for each of the two
    with torch.no_grad():
        last(look).bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0]))
        torch.testing.assert_close(look(*seen)[:, KNOTS // 2], said.mean(0))
        last(look).bias[:2] = -36.0
        if chosen:
            last(look).bias[chosen - 1] = 36.0
    torch.testing.assert_close(look(*seen)[:, KNOTS // 2], said[chosen])


@pytest.mark.parametrize("normal", [False, True])
@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_balls_before_whitening_are_one_more_continued_to_none(seen, normal, chosen):
    """Two estimates, of balls of one row and of two, continued as far again; the others stay where they were."""
    look = SecondLook(20 + BALLS, 8, 16, normal, intrinsic=True)
    reading, summary, _, _ = seen
    end = summary.shape[1] - INTRINSIC
    middles = [reading[:, KNOTS // 2], summary[:, end - BALLS + MIDDLE], 2 * summary[:, end] - summary[:, end + 1]]
    if normal:
        middles.insert(2, summary[:, end - BALLS - NORMAL])
    with torch.no_grad():
        last(look).bias.zero_()
        torch.testing.assert_close(look(*seen)[:, KNOTS // 2], torch.stack(middles).mean(0))
        last(look).bias[:-2] = -36.0
        place = (chosen - 1) if chosen < 2 else len(middles) - 2
        if chosen:
            last(look).bias[place] = 36.0
    torch.testing.assert_close(look(*seen)[:, KNOTS // 2], middles[place + 1 if chosen else 0])


@pytest.mark.parametrize("intrinsic", [False, True])
@pytest.mark.parametrize("normal", [False, True])
def test_it_adds_no_gradients_of_what_it_looks_at(seen, normal, intrinsic):
    look = SecondLook(20 + BALLS, 8, 16, normal, intrinsic).eval()
    with torch.no_grad():
        last(look).weight.normal_(std=0.2)
        last(look).bias.fill_(3.0)
    reading, *rest = (part.requires_grad_() for part in seen)
    look(reading, *rest)[:, KNOTS // 2].sum().backward()
    assert reading.grad is not None
    expected = torch.zeros_like(reading)
    expected[:, KNOTS // 2] = 1
    torch.testing.assert_close(reading.grad, expected)
    assert all(part.grad is None for part in rest)


def test_a_reading_that_is_trained_knows_its_share(seen):
    look = SecondLook(20 + BALLS, 8, 16, normal=False, intrinsic=False)
    with torch.no_grad():
        last(look).bias.copy_(torch.tensor([math.log(3.0), 0.0, 0.0]))  # a quarter is the reading's
    reading, *rest = seen
    reading.requires_grad_()
    trained, quiet = look(reading, *rest), look.eval()(reading, *rest)
    assert torch.equal(trained, quiet)
    trained[:, KNOTS // 2].sum().backward()
    assert reading.grad is not None
    torch.testing.assert_close(reading.grad[:, KNOTS // 2], torch.full((5,), 0.25))


def test_a_network_without_balls_takes_none():
    torch.manual_seed(0)
    config = MISTConfig(width=16, set_width=8, row_pairs=2, pair_width=4, balls=False, intrinsic=False)
    assert MIST(config).second_look is None
    assert not any("second_look" in name for name in MIST(config).state_dict())
