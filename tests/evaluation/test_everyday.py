"""The everyday suite: its rows against what they claim."""

import numpy as np
import pytest
from scipy import stats

from mist_loss.evaluation import everyday, grids, tables
from mist_loss.evaluation.results import Result


def test_clayton_pairs_have_the_rank_correlation_of_their_copula():
    """Kendall's tau is theta / (theta + 2); little shared at small theta, and the truth by a histogram."""
    case = next(case for case in everyday.CASES if case.name == "extremes together")
    u, v = case.draw(np.random.default_rng(0), 1_000_000)
    assert stats.kendalltau(u[:20_000], v[:20_000]).statistic == pytest.approx(0.5, abs=0.01)
    assert grids.clayton_mi(1e-3) == pytest.approx(0, abs=1e-3)
    joint = np.histogram2d(u, v, 60, [[0, 1], [0, 1]])[0] / len(u)
    assert grids.table_mi(joint) == pytest.approx(case.mi(), abs=0.01)


@pytest.mark.parametrize(
    "name", ["odds of a label", "three regions", "numbers and bits", "length of five", "smaller and larger"]
)
def test_truths_by_the_cells_of_what_matters(name):
    case = next(case for case in everyday.CASES if case.name == name)
    x, y = (np.asarray(t, dtype=float).reshape(1_000_000, -1) for t in case.draw(np.random.default_rng(0), 1_000_000))
    parts = 1
    if name == "odds of a label":
        joint = np.histogram2d(x.sum(1), y[:, 0], [200, 2])[0]
    elif name == "three regions":
        cell = np.digitize(x, np.linspace(-3, 3, 60)) @ [61, 1]
        joint = np.histogram2d(cell, y.argmax(1), [np.arange(61 * 61 + 1), 3])[0]
    elif name == "length of five":
        joint = np.histogram2d(np.linalg.norm(x, axis=1), y[:, 0], 80)[0]
    elif name == "smaller and larger":
        joint, parts = np.histogram2d(x[:, 0], y[:, 0], 60, [[0, 1], [0, 1]])[0], 3
    else:
        known = np.digitize(x[:, 0], np.linspace(-3, 3, 60)) + 61 * x[:, 3]
        joint = np.histogram2d(known, np.digitize(y[:, 0], np.linspace(-5, 8, 60)), [np.arange(123), np.arange(62)])[0]
    assert parts * grids.table_mi(joint / len(x)) == pytest.approx(case.mi(), abs=0.02 * parts)


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
    assert parts * grids.table_mi(joint) == pytest.approx(case.mi(), abs=0.01 * parts)


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
