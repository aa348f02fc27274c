"""Feature selection with scikit-learn: ``mutual_info`` for SelectKBest, ``MISTEstimator``. Extra ``selection``."""

import warnings
from numbers import Real
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from mist_loss import labels
from mist_loss.estimate import estimate_mi
from mist_loss.matrix import ROWS_AT_ONCE
from mist_loss.model.network import MIST
from mist_loss.validation import MIN_ROWS, as_floats, refuse_masked

try:
    from sklearn.base import BaseEstimator
    from sklearn.preprocessing import OneHotEncoder
    from sklearn.utils import Tags
    from sklearn.utils.multiclass import type_of_target
    from sklearn.utils.validation import check_X_y, validate_data
except ImportError as error:
    hint = f"feature selection needs scikit-learn 1.6 or newer ({error}): pip install 'mist-loss[selection]'"
    raise ModuleNotFoundError(hint) from error


MOST_LABELS = 64  # indicators that mist-base reads


def mutual_info(
    X: ArrayLike, y: ArrayLike, discrete_target: bool | None = None, model: str | Path | MIST = "mist-base"
) -> np.ndarray:
    """Score every feature by what it alone says about the target: ``SelectKBest(mutual_info, k=10)``.

    In the place of scikit-learn's ``mutual_info_classif`` and ``mutual_info_regression``; bind options with
    ``functools.partial``.

    Args:
        X: (n, d) numbers, a row an observation.
        y: (n,) or (n, q) target: numbers, or labels of any type.
        discrete_target: whether y holds labels. None takes strings, booleans, and up to MOST_LABELS whole numbers that
            come four times on average for labels; counts need False.
        model: as for ``estimate_mi``.

    Returns:
        (d,) I(x_j; y) in nats, not negative.

    Raises:
        ValueError: input that scikit-learn or ``estimate_mi`` refuses; a target that is the same in every row, or
            missing in some.
        TypeError: a sparse X, which scikit-learn refuses.
    """
    X, y = map(_plain, (X, y))
    _check_kinds(X, y)
    features, target = check_X_y(X, y, multi_output=True, ensure_min_samples=MIN_ROWS)
    return _by_feature(as_floats("X", features), encode_target(np.asarray(target), discrete_target), model)


def _plain(side: ArrayLike | Tensor) -> ArrayLike:
    """A tensor as an array, whatever its precision and device."""
    if not isinstance(side, Tensor):
        return side
    side = side.detach().cpu()
    return (side.double() if side.is_floating_point() else side).numpy()


def _check_kinds(X: ArrayLike, y: ArrayLike) -> None:
    """Refuse what scikit-learn lets through: masks, sparse targets, labels that are missing.

    Raises:
        ValueError: one is there.
    """
    for name, side in (("X", X), ("y", y)):
        if isinstance(side, np.ma.MaskedArray):
            refuse_masked(name, side)
    if hasattr(y, "toarray"):
        raise ValueError("expected y as a dense array, got a sparse one: give y.toarray()")
    cells = np.asarray(y)
    if cells.dtype.kind == "O" and cells.ndim and (missing := sum(map(_is_missing, cells.flat))):
        raise ValueError(f"expected a label in every row of y, got {missing} missing: drop those rows of X and y")


def _is_missing(cell: object) -> bool:
    # pandas' NA is no truth value when compared with itself
    return cell is None or type(cell).__name__ in ("NAType", "NaTType") or bool(cell != cell)


def encode_target(y: np.ndarray, discrete: bool | None) -> np.ndarray:
    """A target (n,) or (n, q) as numbers (n, k): itself, or an indicator for each label; see ``mutual_info``.

    Of two labels one indicator says all. Of more, leaving one out would make the estimate depend on which.
    """
    if discrete is not None and not isinstance(discrete, bool | np.bool_):
        raise ValueError(f"expected discrete_target to be True, False or None, got {discrete!r}")
    table = y[:, None] if y.ndim == 1 else y
    if (table == table[:1]).all():
        raise ValueError(
            f"expected a target that varies, got {table[0].tolist()} in every row: it shares no information"
        )
    if table.dtype.kind in "mM":
        raise ValueError(f"expected a target of numbers or labels, got {table.dtype}: give times as numbers")
    if table.dtype.kind == "O" and all(isinstance(cell, Real) and not isinstance(cell, bool) for cell in table.flat):
        table = table.astype(np.float64)  # numbers that only look like labels, as pandas reads some columns
    if discrete is None:
        discrete = table.dtype.kind not in "iuf" or not type_of_target(table).startswith("continuous")
        values = max(len(np.unique(column)) for column in table.T) if table.dtype.kind in "iuf" else 0
        if discrete and values > 2 and (values * labels.REPEATS > len(table) or values > MOST_LABELS):
            discrete = False  # a year or a price
            warnings.warn(
                f"the {values} different whole numbers in {len(table)} rows of the target are taken for numbers: "
                "say discrete_target=True if they are labels, or False",
                stacklevel=3,
            )
    if not discrete:
        return table.astype(np.float64)
    try:
        indicators = OneHotEncoder(sparse_output=False, drop="if_binary").fit_transform(table)
    except TypeError as error:
        raise ValueError(f"expected labels of one type, got several ({error}): use y.astype(str)") from error
    if indicators.shape[1] > MOST_LABELS:
        warnings.warn(
            f"the target has {indicators.shape[1]} labels, of which {MOST_LABELS} directions are read: most of the "
            "nats are lost, and the order of features may be wrong; join rare labels, or use mutual_info_classif",
            stacklevel=3,
        )
    return indicators


def _by_feature(X: np.ndarray, target: np.ndarray, model: str | Path | MIST) -> np.ndarray:
    """I(x_j; target) in nats of every column j, in batches."""
    count = max(1, ROWS_AT_ONCE // len(X))
    scores = []
    for start in range(0, X.shape[1], count):
        sets = np.ascontiguousarray(X[:, start : start + count].T, dtype=np.float64)[:, :, None]
        repeated = np.broadcast_to(target.astype(np.float64), (len(sets), *target.shape))
        scores.append(estimate_mi(sets, repeated, model=model).value.numpy())
    return np.concatenate(scores)


class MISTEstimator(BaseEstimator):
    """The mutual information of features and a target, as an estimator of scikit-learn.

    ``fit`` estimates on the given rows; nothing else is learned. With ``SelectFromModel(MISTEstimator())`` it selects
    features by their own information.

    Args:
        level: probability of the interval, in (0, 1).
        discrete_target: as for ``mutual_info``.
        model: as for ``estimate_mi``.

    Attributes:
        mutual_information_: I(X; y) in nats, of all features together.
        interval_: (low, high), its interval.
        feature_importances_: (d,) I(x_j; y) in nats of every feature alone. They do not add up: features may say the
            same twice, or say something only together.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.
    """

    def __init__(
        self, level: float = 0.9, discrete_target: bool | None = None, model: str | Path | MIST = "mist-base"
    ) -> None:
        self.level = level
        self.discrete_target = discrete_target
        self.model = model

    def fit(self, X: ArrayLike, y: ArrayLike) -> "MISTEstimator":
        """Estimate from paired rows X (n, d) and y (n,) or (n, q).

        Raises:
            ValueError: input that scikit-learn or ``estimate_mi`` refuses.
        """
        features, target = self._validated(X, y, reset=True)
        estimate = estimate_mi(features, target, self.level, self.model)
        self.mutual_information_ = estimate.value.item()
        self.interval_ = (estimate.low.item(), estimate.high.item())
        self.feature_importances_ = _by_feature(features, target, self.model)
        return self

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """I(X; y) in nats of the given rows, whatever was fitted.

        Raises:
            ValueError: input that scikit-learn or ``estimate_mi`` refuses.
        """
        features, target = self._validated(X, y, reset=False)
        return estimate_mi(features, target, self.level, self.model).value.item()

    def _validated(self, X: ArrayLike, y: ArrayLike, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        X, y = map(_plain, (X, y))
        _check_kinds(X, y)
        features, target = validate_data(self, X, y, multi_output=True, ensure_min_samples=MIN_ROWS, reset=reset)
        return as_floats("X", features), encode_target(target, self.discrete_target)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        return tags
