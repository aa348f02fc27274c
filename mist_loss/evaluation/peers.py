"""Other estimators of mutual information, through the libraries that keep them, behind one interface.

| name | method | library |
| --- | --- | --- |
| ``ksg`` | Kraskov, Stögbauer & Grassberger (cond-mat/0305641) | BMI |
| ``ksg-bootstrap`` | the same with a 90% interval over half samples | BMI |
| ``cca`` | canonical correlations of a Gaussian | BMI, on scikit-learn |
| ``mine`` | Donsker-Varadhan with a moving average (1801.04062) | torch_mist |
| ``infonce`` | contrast within a batch (1807.03748) | torch_mist |
| ``nwj`` | the bound of Nguyen, Wainwright & Jordan (0809.0853) | torch_mist |
| ``smile`` | Donsker-Varadhan with clipped ratios (1910.06222) | torch_mist |
| ``latentmi`` | KSG on learned codes (2409.02732) | latentmi |

Every peer gets the whole columns of x and y, standardised, without constant ones. It seeds its own randomness and
leaves the caller's alone. Making a peer imports its library (``pip install "mist-loss[peers]"``, on Python 3.10 or
3.11); importing this module does not.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mist_loss.estimate import LEVEL
from mist_loss.seeding import seeded
from mist_loss.validation import paired_sets, require_finite

SEED = 0

# Kraskov et al. advise 2 to 4 neighbours; BMI's own choice, the mean over 5 and 10, is further off on Gaussians.
KSG_NEIGHBOURS = 3
KSG_JITTER = 1e-8  # breaks ties, as Kraskov et al. advise; the data has unit variance
SUBSAMPLES = 50

# The critic is torch_mist's own default. The rest was chosen on Gaussians in 5 dimensions at n = 1000.
HIDDEN = (128,)
LEARNING_RATE = 2e-3
MAX_STEPS = 2000
CHECK_EVERY = 50
PATIENCE = 200  # steps without a better held-out value
HELD_OUT = 1 / 3
EVALUATION_BATCH = 512  # bounds the memory that InfoNCE's table of pairs takes

# latentmi's own settings, 300 epochs at a rate of 1e-4, gave 0.55 nats on that Gaussian; these give 0.53 in a tenth of
# the time.
LATENT_RATE = 1e-3
LATENT_BATCH = 128
LATENT_ROWS_SEEN = 10_000
LATENT_EPOCHS = (3, 60)


class PeerEstimate(NamedTuple):
    """Mutual information in nats, 0-d tensors; low and high are NaN where the method has no interval.

    ``reason`` says why the value is NaN, or why an interval is that the method otherwise has.
    """

    value: Tensor
    low: Tensor
    high: Tensor
    reason: str = ""


Peer = Callable[[Tensor, Tensor], PeerEstimate]
_Method = Callable[[np.ndarray, np.ndarray], PeerEstimate]


class _Negatives(NamedTuple):
    """Rows a training step reads, and how many of the others are each one's negatives (0: all of them)."""

    batch: int
    negatives: int


# InfoNCE compares a row with its whole batch: with fewer negatives torch_mist's version is no bound any more. With all,
# its value cannot exceed the logarithm of the held-out rows compared at once (at most EVALUATION_BATCH).
_NEURAL = {
    "mine": _Negatives(256, 8),
    "infonce": _Negatives(128, 0),
    "nwj": _Negatives(256, 8),
    "smile": _Negatives(256, 8),
}


def ksg() -> Peer:
    """BMI's KSG estimator: Euclidean norm within a side, maximum over the sides.

    Its bias grows with the dimension: it was 0.3 nats too low on the Gaussian of the tests (5 dimensions, n = 1000).

    Raises:
        ModuleNotFoundError: if BMI is missing.
    """
    estimate = _ksg(_import("bmi.estimators"))
    return _peer(lambda x, y: _estimate(estimate(_jittered(x), _jittered(y))))


def ksg_bootstrap() -> Peer:
    """`ksg` with a 90% interval for its sampling error; the bias of KSG is not part of it.

    Resampling with replacement repeats rows, whose distance of zero breaks nearest-neighbour estimates (Holmes &
    Nemenman, arXiv 1903.09280). So rows are drawn without: m of n, m = n/2, `SUBSAMPLES` times. The deviations of
    these estimates from their mean, times sqrt(m / (n - m)), stand for those of the whole sample (Politis & Romano
    1994; the factor for drawing from n rows as in the delete-d jackknife, Shao & Wu 1989). The interval is the value
    plus their percentiles, cut at zero; it is NaN where a half has too few rows for `KSG_NEIGHBOURS`.

    Raises:
        ModuleNotFoundError: if BMI is missing.
    """
    estimate = _ksg(_import("bmi.estimators"))

    def method(x: np.ndarray, y: np.ndarray) -> PeerEstimate:
        x, y = _jittered(x), _jittered(y)
        rows, half = len(x), len(x) // 2
        value = estimate(x, y)
        if half <= KSG_NEIGHBOURS:
            reason = f"no interval: half of {rows} rows is too few for {KSG_NEIGHBOURS} neighbours"
            return _estimate(value, reason=reason)
        rng = np.random.default_rng(SEED)
        subsets = (rng.choice(rows, half, replace=False) for _ in range(SUBSAMPLES))
        estimates = np.array([estimate(x[subset], y[subset]) for subset in subsets])
        deviations = (estimates - estimates.mean()) * math.sqrt(half / (rows - half))
        low, high = value + np.quantile(deviations, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return _estimate(value, low, high)

    return _peer(method)


def cca() -> Peer:
    """BMI's CCA estimator: the mutual information of a Gaussian with the sample's canonical correlations.

    NaN for n <= dx + dy, where a sample canonical correlation is 1 whatever the data.

    Raises:
        ModuleNotFoundError: if BMI is missing.
    """
    library = _import("bmi.estimators")

    def method(x: np.ndarray, y: np.ndarray) -> PeerEstimate:
        rows, dims = len(x), x.shape[1] + y.shape[1]
        if rows <= dims:
            return _estimate(math.nan, reason=f"undefined: {rows} rows for {dims} dimensions make a correlation of 1")
        return _estimate(library.CCAMutualInformationEstimator().estimate(x, y))

    return _peer(method)


def neural(name: str) -> Peer:
    """A variational estimator of torch_mist: critic, objective and estimate are the library's, the loop is ours.

    torch_mist's own loop keeps weights in one fixed temporary file, which two runs on a machine take from each other.
    Adam trains the critic on two thirds of the rows, until the estimate on the other third has not risen for `PATIENCE`
    steps. The value is the best of those held-out estimates, as in BMI, which favours the peer a little.

    Args:
        name: ``mine``, ``infonce``, ``nwj`` or ``smile``.

    Raises:
        ModuleNotFoundError: if torch_mist is missing.
    """
    build = getattr(_import("torch_mist.estimators"), name)
    batch, negatives = _NEURAL[name]

    def method(x: np.ndarray, y: np.ndarray) -> PeerEstimate:
        estimator = build(
            x_dim=x.shape[1], y_dim=y.shape[1], hidden_dims=list(HIDDEN), critic_type="joint", neg_samples=negatives
        )
        return _estimate(_fit(estimator, torch.from_numpy(x).float(), torch.from_numpy(y).float(), batch))

    return _peer(method)


def latentmi() -> Peer:
    """latentmi: codes of 8 dimensions learned on half of the rows, KSG between those of the other half.

    Epochs are as many as show the network `LATENT_ROWS_SEEN` rows. NaN for fewer than 7 rows, of which a half is too
    few for the 3 neighbours that the library counts.

    Raises:
        ModuleNotFoundError: if latentmi is missing.
    """
    library = _import("latentmi.lmi")

    def method(x: np.ndarray, y: np.ndarray) -> PeerEstimate:
        rows, train = len(x), len(x) // 2
        if rows - train <= 3:
            return _estimate(math.nan, reason=f"undefined: half of {rows} rows is too few for 3 neighbours")
        epochs = round(np.clip(LATENT_ROWS_SEEN / train, *LATENT_EPOCHS))
        pointwise, _, _ = library.estimate(x, y, batch_size=LATENT_BATCH, lr=LATENT_RATE, epochs=epochs, device="cpu")
        bits = np.nanmean(pointwise)  # the rows of the training half are NaN
        return _estimate(bits * math.log(2))

    return _peer(method)


PEERS: dict[str, Callable[[], Peer]] = {
    "ksg": ksg,
    "ksg-bootstrap": ksg_bootstrap,
    "cca": cca,
    "mine": lambda: neural("mine"),
    "infonce": lambda: neural("infonce"),
    "nwj": lambda: neural("nwj"),
    "smile": lambda: neural("smile"),
    "latentmi": latentmi,
}


def _peer(method: _Method) -> Peer:
    def estimate(x: Tensor, y: Tensor) -> PeerEstimate:
        x, y, single = paired_sets(x, y)
        if not single:
            raise ValueError(
                f"expected one set (n, d), got a batch of shape {tuple(x.shape)}: pass its sets one by one"
            )
        require_finite(x, y)
        x_columns, y_columns = _columns(x[0]), _columns(y[0])
        if not x_columns.size or not y_columns.size:
            return _estimate(0.0)  # nothing is shared with a constant
        with _alone():
            return method(x_columns, y_columns)

    return estimate


def _columns(side: Tensor) -> np.ndarray:
    """Columns (n, d) with mean 0 and variance 1, without those that are constant."""
    columns = side.detach().cpu().double().numpy()
    columns = columns[:, np.ptp(columns, axis=0) > 0]
    return (columns - columns.mean(0)) / columns.std(0)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Seeds, gradients and silence for a library, which finds none of the caller's and leaves none of its own."""
    state = np.random.get_state()  # noqa: NPY002 - latentmi draws from it
    with (
        seeded(SEED),
        torch.inference_mode(False),
        torch.enable_grad(),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        np.random.seed(SEED)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002


def _estimate(value: float, low: float = math.nan, high: float = math.nan, reason: str = "") -> PeerEstimate:
    """Negative numbers, which no mutual information is, become 0, as in ``estimate_mi``."""
    if not math.isfinite(value):
        reason, value = reason or f"the library returned {value}", math.nan
    numbers = [torch.tensor(float(number)).clamp_min(0) for number in (value, low, high)]
    return PeerEstimate(numbers[0], numbers[1], numbers[2], reason)


def _ksg(library: ModuleType) -> Callable[[np.ndarray, np.ndarray], float]:
    # Larger chunks than BMI's 10 rows change nothing but the time.
    return lambda x, y: library.KSGEnsembleFirstEstimator(neighborhoods=[KSG_NEIGHBOURS], chunk_size=100).estimate(x, y)


def _jittered(side: np.ndarray) -> np.ndarray:
    return side + KSG_JITTER * np.random.default_rng(SEED).standard_normal(side.shape)


def _fit(estimator: Any, x: Tensor, y: Tensor, batch: int) -> float:
    """The highest estimate on held-out rows while the critic learns from the others."""
    order = torch.randperm(len(x))
    held_out, train = order.tensor_split([max(2, round(len(x) * HELD_OUT))])
    optimizer = torch.optim.Adam(estimator.parameters(), lr=LEARNING_RATE)
    best, best_step = -math.inf, 0
    for step in range(MAX_STEPS + 1):
        if step % CHECK_EVERY == 0:
            value = _held_out_value(estimator, x[held_out], y[held_out])
            if value > best:
                best, best_step = value, step
            elif step - best_step >= PATIENCE:
                break
        rows = train[torch.randperm(len(train))[:batch]]
        _forget(estimator)
        loss = estimator.loss(x[rows], y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return best


@torch.no_grad()
def _held_out_value(estimator: Any, x: Tensor, y: Tensor) -> float:
    estimator.eval()
    values = []
    pieces = math.ceil(len(x) / EVALUATION_BATCH)
    for x_piece, y_piece in zip(x.tensor_split(pieces), y.tensor_split(pieces), strict=True):
        _forget(estimator)
        values.append(float(estimator.mutual_information(x_piece, y_piece)))
    estimator.train()
    return float(np.mean(values))


def _forget(estimator: Any) -> None:
    """torch_mist returns what it computed for the last batch when the next one is equal, though the weights moved."""
    getattr(estimator, "__cache", {}).clear()


def _import(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ModuleNotFoundError(
            f"this peer needs {module}, which cannot be imported ({error}): "
            'pip install "mist-loss[peers]", on Python 3.10 or 3.11'
        ) from error
