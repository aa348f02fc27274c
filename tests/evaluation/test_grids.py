"""Sums over grids against closed forms."""

import math

import numpy as np
import pytest

from mist_loss.evaluation import grids


def test_a_line_with_noise_is_a_normal_pair():
    centres = grids.normal_quantiles()
    mi = grids.function_mi(centres, 0.5, np.linspace(-8, 8, 4001))
    assert mi == pytest.approx(0.5 * math.log(5), abs=2e-3)


def test_a_grid_that_is_too_narrow_is_noticed():
    with pytest.raises(AssertionError, match="grid"):
        grids.function_mi(grids.normal_quantiles(), 0.5, np.linspace(-1, 1, 101))


def test_two_levels_follow_the_chance_of_an_orthant():
    both = 0.25 + math.asin(0.9) / (2 * math.pi)
    table = np.array([[both, 0.5 - both], [0.5 - both, both]])
    zero = np.zeros(1)
    assert grids.rounded_mi(0.9, zero, True) == pytest.approx(grids.table_mi(table), abs=1e-3)
    assert grids.rounded_mi(0.9, zero, False) > grids.rounded_mi(0.9, zero, True)


def test_fine_levels_share_what_the_numbers_share():
    assert grids.rounded_mi(0.8, np.linspace(-4, 4, 401), False) == pytest.approx(grids.gaussian(0.8), abs=2e-3)


def test_unit_length_in_two_dimensions_by_monte_carlo():
    """The angle between two wrapped normal vectors, in cells of a histogram against an even one."""
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 1_000_000, 2))
    y = 0.7 * x + math.sqrt(0.51) * noise
    turn = np.arctan2(y[:, 1], y[:, 0]) - np.arctan2(x[:, 1], x[:, 0])
    share = np.histogram(turn % (2 * math.pi), 100, (0, 2 * math.pi))[0] / 1_000_000
    assert grids.unit_mi(0.7, 2) == pytest.approx(math.log(100) - grids.entropy(share), abs=3e-3)
    assert grids.unit_mi(1e-9, 8) == pytest.approx(0, abs=1e-9)


def test_counts_of_two_rates():
    """Rates of 0 and plenty tell the sign of x."""
    mi = grids.poisson_mi(lambda x: np.where(x > 0, 100.0, 1e-6), 200)
    assert mi == pytest.approx(math.log(2), abs=1e-3)


def test_a_fine_ring_has_the_information_of_the_angle_along_it():
    """Close by, the circle is a line: of the angle, the part of the noise along it is seen."""
    s = 0.01
    assert grids.ring_mi(s) == pytest.approx(math.log(2 * math.pi / (s * math.sqrt(2 * math.pi * math.e))), abs=0.01)


def test_a_label_that_is_told_shares_its_entropy():
    assert grids.label_mi(np.eye(3)[[0, 1, 2, 2]]) == pytest.approx(1.5 * math.log(2))
    assert grids.label_mi(np.full((4, 3), 1 / 3)) == pytest.approx(0)
