"""Feature selection: scikit-learn's own checks, and features whose information is known.

Bounds on estimates are the largest errors over 20 other seeds, in comments (earlier weights), and some
room for others.
"""

import numpy as np
import pytest
import torch

selection = pytest.importorskip("mist_loss.selection", exc_type=ImportError)

from scipy import sparse  # noqa: E402
from sklearn.feature_selection import SelectFromModel, SelectKBest  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402


@parametrize_with_checks([selection.MISTEstimator()])
def test_what_scikit_learn_expects_of_an_estimator(estimator, check):
    check(estimator)


@pytest.fixture
def rows():
    """600 rows: feature 1 and, more weakly, feature 3 of five say something about the target."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 5))
    return X, X[:, 1] + 0.5 * X[:, 3] + 0.5 * rng.normal(size=600)


def test_select_k_best(rows):
    X, y = rows
    scores = selection.mutual_info(X, y)
    assert scores.shape == (5,)
    # correlations 1, 0.5 over sqrt(1.5), squared: 2/3 and 1/6; errors up to 0.08
    assert scores[[1, 3]] == pytest.approx([-0.5 * np.log(1 / 3), -0.5 * np.log(5 / 6)], abs=0.1)
    assert scores[[0, 2, 4]].max() < 0.04  # up to 0.016
    selector = make_pipeline(StandardScaler(), SelectKBest(selection.mutual_info, k=2)).fit(X, y)
    assert selector[-1].get_support(indices=True).tolist() == [1, 3]
    selector = SelectFromModel(selection.MISTEstimator(), threshold=0.3).fit(X, y)
    assert selector.get_support(indices=True).tolist() == [1]


def test_labels_of_any_type(rows):
    X, y = rows
    numbers = np.digitize(y, [-0.5, 0.5])
    words = np.array(["low", "middle", "high"])[numbers]
    expected = selection.mutual_info(X, numbers)
    np.testing.assert_allclose(selection.mutual_info(X, words), expected, atol=1e-5)
    assert expected.argmax() == 1
    ordered = selection.mutual_info(X, numbers, discrete_target=False)
    assert not np.allclose(ordered, expected, atol=1e-6)


def test_constants(rows):
    X, y = rows
    X[:, 2] = 7
    assert selection.mutual_info(X, y)[2] == 0
    with pytest.raises(ValueError, match="expected a target that varies"):
        selection.mutual_info(X, np.repeat("all", len(X)))


def test_a_label_behind_a_known_gap():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 800)
    X = np.column_stack([rng.normal(size=800), rng.normal(size=800) + 8 * y])
    noise, certain = selection.mutual_info(X, y)
    assert noise < 0.04  # up to 0.012
    assert np.log(2) - 0.2 < certain < np.log(2) + 0.001  # 0.03 to 0.16 below; no label says more than its entropy


def test_the_joint_estimate(rows):
    X, y = rows
    estimator = selection.MISTEstimator(level=0.9).fit(X, y)
    truth = -0.5 * np.log(1 - 1.25 / 1.5)
    assert estimator.mutual_information_ == pytest.approx(truth, abs=0.15)  # -0.06 to 0.11
    low, high = estimator.interval_
    assert low < estimator.mutual_information_ < high
    assert estimator.score(X, y) == pytest.approx(estimator.mutual_information_)
    assert estimator.score(X, y[::-1]) < 0.05  # up to 0.017


def test_numbers_that_are_objects_are_numbers(rows):
    X, y = rows
    np.testing.assert_array_equal(selection.mutual_info(X, y.astype(object)), selection.mutual_info(X, y))
    labels = (y > 0).astype(int)
    np.testing.assert_array_equal(
        selection.encode_target(labels.astype(object), None), selection.encode_target(labels, None)
    )


@pytest.mark.parametrize(
    ("y", "message"),
    [(np.arange(600).astype("datetime64[D]"), "give times as numbers"), (np.ma.masked_array(np.ones(600)), "a mask")],
)
def test_targets_that_are_no_numbers_are_refused(rows, y, message):
    with pytest.raises(ValueError, match=message):
        selection.mutual_info(rows[0], y)


@pytest.mark.parametrize("missing", [None, np.nan, "NA"])
def test_labels_that_are_missing_are_no_class(rows, missing):
    X, _ = rows
    y = np.array(["a", "b", "c"], dtype=object)[np.arange(len(X)) % 3]
    y[:5] = pytest.importorskip("pandas").NA if missing == "NA" else missing
    for read in (selection.mutual_info, selection.MISTEstimator().fit):
        with pytest.raises(ValueError, match="5 missing: drop those rows"):
            read(X, y)


def test_masks_times_sparse_targets_and_odd_options_are_refused(rows):
    X, y = rows
    masked: np.ma.MaskedArray = np.ma.masked_array(X, mask=X > 1)
    for read in (selection.mutual_info, selection.MISTEstimator().fit):
        with pytest.raises(ValueError, match="X without a mask"):
            read(masked, y)
        with pytest.raises(ValueError, match="expected X of numbers"):
            read(np.arange(len(X)).astype("datetime64[D]")[:, None], y)
        with pytest.raises(ValueError, match="toarray"):
            read(X, sparse.csr_matrix(np.arange(2 * len(X)).reshape(-1, 2)))
        with pytest.raises(ValueError, match="one type"):
            read(X, np.array([1, "a"] * (len(X) // 2), dtype=object))
    with pytest.raises(ValueError, match="discrete_target"):
        selection.mutual_info(X, y, discrete_target="no")


def test_whole_numbers_that_hardly_repeat_are_numbers(rows):
    X, y = rows
    years = np.round(1000 * y)
    with pytest.warns(UserWarning, match="discrete_target"):
        found = selection.mutual_info(X, years)
    np.testing.assert_array_equal(found, selection.mutual_info(X, years, discrete_target=False))


def test_labels_that_are_objects(rows):
    X, _ = rows
    names = np.where(X[:, 0] > 0, "a", "b")
    np.testing.assert_array_equal(selection.mutual_info(X, names.astype(object)), selection.mutual_info(X, names))
    several = np.random.default_rng(0).integers(3, size=(60, 3))
    assert selection.encode_target(several, None).shape == (60, 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_of_any_kind_are_read(rows, dtype):
    X, y = rows
    X, y = torch.as_tensor(X).to(dtype).requires_grad_(), torch.as_tensor(y).to(dtype)
    plain = selection.mutual_info(X.detach().double().numpy(), y.double().numpy())
    np.testing.assert_allclose(selection.mutual_info(X, y), plain)
    assert selection.MISTEstimator().fit(X, y).mutual_information_ > 0


def test_more_labels_than_are_read():
    y = np.random.default_rng(0).integers(100, size=1000)
    with pytest.warns(UserWarning, match="100 different whole numbers in 1000 rows of the target are taken"):
        assert selection.encode_target(y, None).shape == (1000, 1)
    with pytest.warns(UserWarning, match="the target has 100 labels, of which 64 directions are read"):
        assert selection.encode_target(y.astype(str), None).shape == (1000, 100)
