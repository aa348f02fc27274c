"""Invertible flows between the rows of one side and standard normal rows, by normflows.

A flow is fitted to x alone or to y alone, so it knows nothing of what they share: mapping problems of known mutual
information through it gives rows that look like the data and share as many nats as before.

Rows are standardised and rotated to their principal directions; on top lies a neural spline flow (Durkan et al. 2019,
arXiv 1906.04032): rational-quadratic coupling layers, or one spline where there is one dimension.
"""

import math
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mist_loss.flows.continuity import require_continuous, require_no_labels
from mist_loss.flows.layers import coupling_layers
from mist_loss.flows.two_sample import two_sample_auc
from mist_loss.seeding import seeded
from mist_loss.validation import as_tensor

ROWS_PER_DIMENSION = 50  # of a flow; with fewer the default width is smaller
WIDEST = 64
HELD_OUT = 0.2  # share of the rows
FEWEST = 100  # rows
WORST_AUC = 0.85
WORST_GAIN = -0.05  # nats a dimension below a Gaussian
ROUND_TRIP = 1e-4
_RANK = 1e-6  # standard deviations below this share of the largest are rounding, not variance


class FlowReport(NamedTuple):
    """How well a flow fits.

    rows, dims: of the data; width: dimensions of the flow; explained: share of the variance they hold;
    log_likelihood, gaussian: nats a row, held-out, of the flow and of a Gaussian, in whitened coordinates;
    auc, auc_gaussian: of a classifier between held-out rows and rows of the flow, or of a Gaussian (0.5: alike);
    round_trip: largest error of data -> normal -> data, in standard deviations; epochs: trained; seconds: spent.
    """

    rows: int
    dims: int
    width: int
    explained: float
    log_likelihood: float
    gaussian: float
    auc: float
    auc_gaussian: float
    round_trip: float
    epochs: int
    seconds: float


class PoorFit(ValueError):
    """The flow does not fit the data; ``report`` says how far off it is."""

    def __init__(self, message: str, report: FlowReport):
        super().__init__(message)
        self.report = report


class Marginal(nn.Module):
    """An invertible map between rows that look like the data and standard normal rows (..., width).

    Where the flow is as wide as the data has directions of variance, ``generate`` gives rows (..., dims) in the
    coordinates of the data; where it is narrower, rows (..., width) in principal coordinates, those of ``project``.

    Args:
        dims: of the data.
        width: of the flow.
        exact: whether the principal directions lose nothing.
        layers: coupling layers.
        hidden: width of their networks.
        bins: of a spline.
    """

    center: Tensor
    spread: Tensor
    directions: Tensor
    scale: Tensor

    def __init__(self, dims: int, width: int, exact: bool, layers: int, hidden: int, bins: int):
        super().__init__()
        self.settings = {
            "dims": dims,
            "width": width,
            "exact": exact,
            "layers": layers,
            "hidden": hidden,
            "bins": bins,
        }
        self.exact = exact
        self.register_buffer("center", torch.zeros(dims, dtype=torch.float64))
        self.register_buffer("spread", torch.ones(dims, dtype=torch.float64))
        self.register_buffer("directions", torch.zeros(dims, width, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(width, dtype=torch.float64))
        self.layers = nn.ModuleList(coupling_layers(width, layers, hidden, bins)).float()  # whatever the default

    @property
    def width(self) -> int:
        """Dimensions of the flow."""
        return len(self.scale)

    @property
    def dims(self) -> int:
        """Dimensions of what ``generate`` gives."""
        return len(self.center) if self.exact else self.width

    @property
    def single(self) -> bool:
        """Whether single precision tells the rows that ``generate`` gives apart: not far from zero, nor very small."""
        if not self.exact:
            return True
        near = bool((self.center.abs() < 1e4 * self.spread).all())
        return near and bool(((self.spread > 1e-30) & (self.spread < 1e30)).all())

    def project(self, x: Tensor | np.ndarray) -> Tensor:
        """The coordinates that the flow's rows are in: x itself (n, dims), or its principal coordinates (n, width)."""
        x = as_tensor(x)
        return x if self.exact else (((x.double() - self.center) / self.spread) @ self.directions).to(x.dtype)

    def whiten(self, x: Tensor) -> Tensor:
        """(n, dims) -> (n, width), principal coordinates of unit variance."""
        return ((x.to(self.center.dtype) - self.center) / self.spread) @ self.directions / self.scale

    def flow(self, white: Tensor) -> tuple[Tensor, Tensor]:
        """Whitened rows (n, width) -> normal rows (n, width) and the log-determinant (n,), in the precision of white.

        normflows' own sum over layers is in single precision whatever the layers are in.
        """
        log_det = white.new_zeros(len(white))
        for layer in self.layers:
            white, log = layer.inverse(white)  # type: ignore[operator]
            log_det = log_det + log
        return white, log_det

    def log_likelihood(self, white: Tensor) -> Tensor:
        """(n, width) -> (n,) nats, the log-density of whitened rows."""
        normal, log_det = self.flow(white)
        return _normal_log_density(normal) + log_det

    def generate(self, normal: Tensor) -> Tensor:
        """Standard normal rows (..., width) -> rows that look like the data (..., d), d as in ``dims``, float64."""
        white = normal.to(self.center.dtype).reshape(-1, self.width)
        for layer in reversed(self.layers):
            white, _ = layer(white)
        principal = white * self.scale
        rows = (principal @ self.directions.T) * self.spread + self.center if self.exact else principal
        return rows.reshape(*normal.shape[:-1], rows.shape[-1])


def _normal_log_density(rows: Tensor) -> Tensor:
    return -0.5 * (rows.square().sum(1) + rows.shape[1] * math.log(2 * math.pi))


@torch.inference_mode(False)
def fit_marginal(
    x: Tensor,
    width: int | None = None,
    name: str = "x",
    layers: int = 5,
    hidden: int = 64,
    bins: int = 8,
    lr: float = 3e-3,
    epochs: int = 120,
    patience: int = 12,
    seconds: float = math.inf,
    strict: bool = True,
    seed: int = 0,
) -> tuple[Marginal, FlowReport]:
    """Fit a flow to the rows of one side, by maximum likelihood, until held-out rows gain no more.

    Training is in single precision; the flow that is returned is in double precision, without gradients.

    Args:
        x: (n, d) finite rows, at least 100.
        width: principal directions to keep; default: all up to 64, but no more than one for every 50 rows.
        name: of the side, for messages.
        layers: coupling layers.
        hidden: width of their networks.
        bins: of a spline; a flow of one dimension has four times as many.
        lr: step size of Adam, halved where held-out rows stop gaining.
        epochs: at most.
        patience: epochs without gain after which the fit ends.
        seconds: after which the fit ends.
        strict: refuse a flow that does not fit.
        seed: of everything random.

    Raises:
        ValueError: too few rows, a width that is too large, nothing that varies, or values that are not continuous.
        PoorFit: the flow does not fit (a classifier tells its rows from held-out ones with an AUC above 0.85, it is
            worse than a Gaussian, or it cannot be inverted), and strict.
        ModuleNotFoundError: the ``flows`` extra is not installed.
    """
    began = time.monotonic()
    x = x.detach().clone() if x.is_inference() else x.detach()
    if x.ndim != 2 or len(x) < FEWEST:
        raise ValueError(
            f"expected {name} of shape (n, d) with at least {FEWEST} rows for a flow, got {tuple(x.shape)}"
        )
    if not torch.isfinite(x).all():
        raise ValueError(f"expected finite values in {name}, got NaN or infinity: drop those rows")
    with seeded(seed, x.device), torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        order = torch.randperm(len(x)).to(x.device)
        held_out = max(FEWEST // 4, int(HELD_OUT * len(x)))
        test, train = x.double()[order[:held_out]], x.double()[order[held_out:]]
        marginal, explained = _principal(train, _allowed(x, width, name), width, name, (layers, hidden, bins))
        if marginal.exact:
            require_no_labels(x, name)
        require_continuous(marginal.whiten(x), name)
        white, unseen = marginal.whiten(train).float(), marginal.whiten(test).float()
        trained = _train(marginal, white, unseen, lr, epochs, patience, began + seconds)
        marginal.double().requires_grad_(False).eval()
        with torch.no_grad():
            sample, unseen = torch.randn(held_out, marginal.width, dtype=torch.float64).to(x.device), unseen.double()
            rows = marginal.generate(sample)
            fake = marginal.whiten(rows) if marginal.exact else rows / marginal.scale
            report = FlowReport(
                rows=len(x),
                dims=x.shape[1],
                width=marginal.width,
                explained=explained,
                log_likelihood=marginal.log_likelihood(unseen).mean().item(),
                gaussian=_normal_log_density(unseen).mean().item(),
                auc=two_sample_auc(unseen, fake, seed),
                auc_gaussian=two_sample_auc(unseen, sample, seed),
                round_trip=_round_trip(marginal, unseen),
                epochs=trained,
                seconds=round(time.monotonic() - began, 1),
            )
    if strict:
        require_fit(report, name)
    return marginal, report


def require_fit(report: FlowReport, name: str) -> None:
    """Refuse a flow that does not fit, with advice.

    Raises:
        PoorFit: it does not.
    """
    gain = report.log_likelihood - report.gaussian
    if report.auc > WORST_AUC:
        fault = f"a classifier tells its rows from held-out ones with an AUC of {report.auc:.2f}"
    elif not gain > WORST_GAIN * report.width:
        fault = f"held-out rows are {-gain:.2f} nats less likely than under a Gaussian"
    elif not report.round_trip < ROUND_TRIP:
        fault = f"it cannot be inverted: a round trip errs by {report.round_trip:.1e} standard deviations"
    else:
        return
    raise PoorFit(
        f"the flow does not fit {name} ({report.rows} rows, {report.width} of {report.dims} dimensions): {fault}. Pass "
        "more rows, or fewer dimensions (width=); look for duplicated rows, discrete features and outliers",
        report,
    )


def _allowed(x: Tensor, width: int | None, name: str) -> int:
    n, d = x.shape
    if width is None:
        return max(1, min(d, WIDEST, n // ROWS_PER_DIMENSION))
    if not 1 <= width <= min(d, WIDEST):
        raise ValueError(f"expected width in 1 to {min(d, WIDEST)} for {name} with {d} dimensions, got {width}")
    return width


def _principal(
    train: Tensor, allowed: int, width: int | None, name: str, sizes: tuple[int, int, int]
) -> tuple[Marginal, float]:
    """A flow that is still a Gaussian, on the principal directions of the standardised rows; explained variance."""
    center, spread = train.mean(0), train.std(0)
    # what is left of a constant is rounding
    spread = torch.where(spread > 1e-12 * train.abs().amax(0), spread, 1.0)
    _, singular, directions = torch.linalg.svd((train - center) / spread, full_matrices=False)
    scale = singular / math.sqrt(len(train))
    rank = int((scale > _RANK * scale.max()).sum()) if scale.max() > 1e-9 else 0
    if rank == 0:
        raise ValueError(
            f"expected rows that differ in {name}, got the same row over and over: there is nothing to fit"
        )
    if width is not None and width > rank:
        raise ValueError(f"expected width up to {rank}, the directions in which {name} varies, got {width}")
    kept = min(allowed, rank)
    layers, hidden, bins = sizes
    exact = kept == rank and train.shape[1] <= WIDEST  # no estimator reads wider rows
    marginal = Marginal(train.shape[1], kept, exact, layers, hidden, bins).to(train.device)
    marginal.center.copy_(center)
    marginal.spread.copy_(spread)
    marginal.directions.copy_(directions[:kept].T)
    marginal.scale.copy_(scale[:kept])
    return marginal, float(singular[:kept].square().sum() / singular.square().sum())


def _train(
    marginal: Marginal, white: Tensor, unseen: Tensor, lr: float, epochs: int, patience: int, deadline: float
) -> int:
    """Maximise the likelihood of whitened rows (n, width); keeps the best state on unseen rows, the first included."""
    layers = marginal.layers
    batch = min(512, max(32, len(white) // 8))
    optimizer = torch.optim.AdamW(layers.parameters(), lr=lr, weight_decay=1e-4)

    def held_out() -> float:
        with torch.no_grad():
            return -marginal.log_likelihood(unseen).mean().item()

    def remember() -> dict[str, Tensor]:
        return {key: value.clone() for key, value in layers.state_dict().items()}

    def halve() -> None:
        layers.load_state_dict(best_state)
        for group in optimizer.param_groups:
            group["lr"] /= 2
        optimizer.state.clear()

    best, best_state, best_epoch = held_out(), remember(), 0
    epoch = 0
    for epoch in range(1, epochs + 1):
        for index in torch.randperm(len(white)).to(white.device).split(batch):
            if len(index) < batch // 2:
                continue
            loss = -marginal.log_likelihood(white[index]).mean()
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(layers.parameters(), 5.0)
            if loss.isfinite() and norm.isfinite():
                optimizer.step()
            if time.monotonic() > deadline:
                break
        now = held_out()
        if math.isfinite(now) and now < best - 1e-3:
            best, best_state, best_epoch = now, remember(), epoch
        elif not math.isfinite(now) or (epoch - best_epoch) % max(1, patience // 2) == 0:
            halve()
        if epoch - best_epoch >= patience or time.monotonic() > deadline:
            break
    layers.load_state_dict(best_state)
    return epoch


def _round_trip(marginal: Marginal, white: Tensor) -> float:
    """Largest error, in standard deviations; not finite where the flow cannot be inverted."""
    try:
        normal, _ = marginal.flow(white)
        back = normal
        for layer in reversed(marginal.layers):
            back, _ = layer(back)
    except AssertionError:  # normflows asserts that it can take a root
        return math.inf
    return (back - white).abs().max().item()
