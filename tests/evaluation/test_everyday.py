"""The everyday suite: its sums over grids against closed forms, and its rows against what they claim."""

import math

import numpy as np
import pytest
from scipy import stats

from mist_loss.evaluation import everyday, tables
from mist_loss.evaluation.results import Result


def test_a_line_with_noise_is_a_normal_pair():
    centres = everyday._normal_quantiles()
    mi = everyday.function_mi(centres, 0.5, np.linspace(-8, 8, 4001))
    assert mi == pytest.approx(0.5 * math.log(5), abs=2e-3)


def test_a_grid_that_is_too_narrow_is_noticed():
    with pytest.raises(AssertionError, match="grid"):
        everyday.function_mi(everyday._normal_quantiles(), 0.5, np.linspace(-1, 1, 101))


def test_two_levels_follow_the_chance_of_an_orthant():
    both = 0.25 + math.asin(0.9) / (2 * math.pi)
    table = np.array([[both, 0.5 - both], [0.5 - both, both]])
    zero = np.zeros(1)
    assert everyday.rounded_mi(0.9, zero, True) == pytest.approx(everyday.table_mi(table), abs=1e-3)
    assert everyday.rounded_mi(0.9, zero, False) > everyday.rounded_mi(0.9, zero, True)


def test_fine_levels_share_what_the_numbers_share():
    assert everyday.rounded_mi(0.8, np.linspace(-4, 4, 401), False) == pytest.approx(everyday.gaussian(0.8), abs=2e-3)


def test_unit_length_in_two_dimensions_by_monte_carlo():
    """The angle between two wrapped normal vectors, in cells of a histogram against an even one."""
    rng = np.random.default_rng(0)
    x, y = everyday._pair(rng, 1_000_000, 0.7, 2)
    turn = np.arctan2(y[:, 1], y[:, 0]) - np.arctan2(x[:, 1], x[:, 0])
    share = np.histogram(turn % (2 * math.pi), 100, (0, 2 * math.pi))[0] / 1_000_000
    assert everyday.unit_mi(0.7, 2) == pytest.approx(math.log(100) - everyday.entropy(share), abs=3e-3)
    assert everyday.unit_mi(1e-9, 8) == pytest.approx(0, abs=1e-9)


def test_counts_of_two_rates():
    """Rates of 0 and plenty tell the sign of x."""
    mi = everyday.poisson_mi(lambda x: np.where(x > 0, 100.0, 1e-6), 200)
    assert mi == pytest.approx(math.log(2), abs=1e-3)


def test_a_fine_ring_has_the_information_of_the_angle_along_it():
    """Close by, the circle is a line: of the angle, the part of the noise along it is seen."""
    s = 0.01
    assert everyday.ring_mi(s) == pytest.approx(math.log(2 * math.pi / (s * math.sqrt(2 * math.pi * math.e))), abs=0.01)


def test_a_label_that_is_told_shares_its_entropy():
    assert everyday.label_mi(np.eye(3)[[0, 1, 2, 2]]) == pytest.approx(1.5 * math.log(2))
    assert everyday.label_mi(np.full((4, 3), 1 / 3)) == pytest.approx(0)


def test_clayton_pairs_have_the_rank_correlation_of_their_copula():
    """Kendall's tau is theta / (theta + 2); little shared at small theta, and the truth by a histogram."""
    case = next(case for case in everyday.CASES if case.name == "extremes together")
    u, v = case.draw(np.random.default_rng(0), 1_000_000)
    assert stats.kendalltau(u[:20_000], v[:20_000]).statistic == pytest.approx(0.5, abs=0.01)
    assert everyday.clayton_mi(1e-3) == pytest.approx(0, abs=1e-3)
    joint = np.histogram2d(u, v, 60, [[0, 1], [0, 1]])[0] / len(u)
    assert everyday.table_mi(joint) == pytest.approx(case.mi(), abs=0.01)


@pytest.mark.parametrize("name", ["odds of a label", "three regions", "numbers and bits"])
def test_truths_by_the_cells_of_what_matters(name):
    case = next(case for case in everyday.CASES if case.name == name)
    x, y = (np.asarray(t, dtype=float).reshape(1_000_000, -1) for t in case.draw(np.random.default_rng(0), 1_000_000))
    if name == "odds of a label":
        joint = np.histogram2d(x.sum(1), y[:, 0], [200, 2])[0]
    elif name == "three regions":
        cell = np.digitize(x, np.linspace(-3, 3, 60)) @ [61, 1]
        joint = np.histogram2d(cell, y.argmax(1), [np.arange(61 * 61 + 1), 3])[0]
    else:
        known = np.digitize(x[:, 0], np.linspace(-3, 3, 60)) + 61 * x[:, 3]
        joint = np.histogram2d(known, np.digitize(y[:, 0], np.linspace(-5, 8, 60)), [np.arange(123), np.arange(62)])[0]
    assert everyday.table_mi(joint / len(x)) == pytest.approx(case.mi(), abs=0.02)


def test_items_are_repeatable_and_each_of_its_place():
    places = [0, 17, everyday.size() - 1]
    both = everyday.everyday(3, places)
    for place, item in zip(places, both, strict=True):
        (alone,) = everyday.everyday(3, [place])
        np.testing.assert_array_equal(alone.x, item.x)
        assert alone.mi == item.mi
        assert alone.x.dtype == alone.y.dtype == np.float32
    assert [item.rows for item in both] == [100, 2000, 2000]
    assert not np.array_equal(everyday.everyday(4, [0])[0].x, both[0].x)
    assert [item.held_out for item in both] == [False, False, True]


def test_every_case_draws_and_knows_its_truth():
    names = [case.name for case in everyday.CASES]
    assert len(set(names)) == len(names)
    block = len(everyday.ROWS) * everyday.REPEATS
    items = everyday.everyday(0, range(0, everyday.size(), block))
    assert [item.name for item in items] == names
    for item in items:
        assert item.x.ndim == item.y.ndim == 2
        assert len(item.x) == len(item.y) == 100
        assert np.isfinite(item.x).all()
        assert np.isfinite(item.y).all()
        assert (item.mi == 0) == ("independent" in item.name)


@pytest.mark.parametrize(
    "name", ["sixteen bits, flipped", "rounded", "five ratings", "uncommon classes", "parity", "codes of classes"]
)
def test_truths_of_small_alphabets_by_counting(name):
    """One pair of columns, or the whole sides, of many rows in a table."""
    case = next(case for case in everyday.CASES if case.name == name)
    x, y = (np.asarray(t, dtype=float).reshape(100_000, -1) for t in case.draw(np.random.default_rng(0), 100_000))
    parts = 1
    if name.startswith("sixteen"):
        x, y, parts = x[:, :1], y[:, :1], 16
    if name == "parity":
        x, y = np.sign(x), np.sign(y)
    codes = [np.unique(t, axis=0, return_inverse=True)[1].ravel() for t in (x, y)]
    joint = np.zeros([code.max() + 1 for code in codes])
    np.add.at(joint, tuple(codes), 1 / 100_000)
    assert parts * everyday.table_mi(joint) == pytest.approx(case.mi(), abs=0.01 * parts)


def test_table_names_each_case_once_with_its_mean():
    def result(name: str, value: float, rows: int, mi: float, held_out: bool = False) -> Result:
        return Result("everyday", name, held_out, rows, 1, 1, mi, "one", value, mi - 1, mi + 1, 0.5, 1.0, "", "")

    text = tables.by_case(
        [
            result("a", 1.0, 100, 2.0),
            result("a", 2.0, 100, 2.0),
            result("a", 2.0, 500, 2.0),
            result("b", 5, 100, 4, True),
        ]
    )
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in text.splitlines()]
    assert lines[0] == ["case", "truth", "one, n = 100", "one, n = 500", "coverage of 90%, one"]
    assert ["a", "2", "1.5", "2", "100.0%"] in lines
    assert ["b", "4", "5", "", "100.0%"] in lines
    assert ["MAE, held out", "", "1", "", "100.0%"] in lines
    assert ["MAE, others", "", "0.5", "0", "100.0%"] in lines
