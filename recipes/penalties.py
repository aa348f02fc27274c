"""Penalties on what two codes share, each from the library that keeps it, behind one interface.

| name | what is minimised | library |
| --- | --- | --- |
| ``none`` | nothing | |
| ``mist`` | the mutual information, as a pretrained network reads it | this package |
| ``mist-label`` | the same of each code and the other's label | this package |
| ``club`` | an upper bound with a fitted conditional density (Cheng et al. 2020, arXiv 2006.12013) | torch_mist |
| ``mine`` | the Donsker-Varadhan bound of a fitted critic (Belghazi et al. 2018, arXiv 1801.04062) | torch_mist |
| ``hsic`` | HSIC with Gaussian kernels, normalised (Gretton et al. 2005) | dcor |
| ``adversary`` | how well classifiers read the other's label (Ganin et al. 2016, arXiv 1505.07818) | |

The adversary and ``mist-label`` are shown the very labels that a probe will ask for; the others see the codes alone.
"""

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mist_loss import MISTCriterion
from mist_loss.evaluation.contenders import hsic

INNER_STEPS, INNER_LR, HIDDEN = 5, 2e-3, 64  # of CLUB, MINE and the adversary, at each step of the encoder
READ = 32  # labels as one-hot rows: eight rows a dimension in a batch of 256


class Penalty(nn.Module):
    """``penalty(x, y, x_label, y_label)``, 0-d, to be minimised; ``learn`` first, where something is fitted.

    x: (n, dx); y: (n, dy); the labels (n,) are of what each of them should keep.
    """

    def learn(self, x: Tensor, y: Tensor, x_label: Tensor, y_label: Tensor) -> None:
        """Fit what is inside to this batch."""

    def forward(self, x: Tensor, y: Tensor, x_label: Tensor, y_label: Tensor) -> Tensor:
        """Nothing."""
        return x.new_zeros(())


class Mist(Penalty):
    """The pretrained estimate of I(x; y), in nats. Nothing is fitted."""

    def __init__(self) -> None:
        super().__init__()
        self.criterion = MISTCriterion(objective="minimize")

    def forward(self, x: Tensor, y: Tensor, x_label: Tensor, y_label: Tensor) -> Tensor:
        """I(x; y)."""
        return self.criterion(x, y)


class MistLabel(Mist):
    """I(x; what y should keep) + I(y; what x should keep) in nats, the labels as one-hot rows.

    A batch has too few rows of each of more than READ labels: the code that should keep them stands for these.
    """

    def __init__(self, x_labels: int, y_labels: int) -> None:
        super().__init__()
        self.x_labels, self.y_labels = x_labels, y_labels

    def forward(self, x: Tensor, y: Tensor, x_label: Tensor, y_label: Tensor) -> Tensor:
        """The sum of both."""
        codes = _stack(x, y)
        labels = _stack(_rows(y_label, self.y_labels, y), _rows(x_label, self.x_labels, x))
        return 2 * self.criterion(codes, labels)  # the criterion takes the mean over sets


def _rows(label: Tensor, labels: int, code: Tensor) -> Tensor:
    """Labels (n,) as one-hot rows, or the code (n, d) that should keep them where there are too many."""
    return F.one_hot(label, labels).to(code) if labels <= READ else code


def _stack(first: Tensor, second: Tensor) -> Tensor:
    """Two samples as a batch of sets, the narrower one with zeros beside it, which are constant and share nothing."""
    d = max(first.shape[1], second.shape[1])
    return torch.stack([F.pad(t, (0, d - t.shape[1])) for t in (first, second)])


class Fitted(Penalty):
    """A penalty with networks of its own, which take INNER_STEPS steps of Adam before each step of the encoder."""

    optimizer: torch.optim.Optimizer

    def fit_loss(self, x: Tensor, y: Tensor, x_label: Tensor, y_label: Tensor) -> Tensor:
        """What the networks minimise."""
        raise NotImplementedError

    def learn(self, x: Tensor, y: Tensor, x_label: Tensor, y_label: Tensor) -> None:
        """Fit the networks to this batch; afterwards they are constants."""
        self.requires_grad_(True)
        for _ in range(INNER_STEPS):
            self.optimizer.zero_grad()
            self.fit_loss(x.detach(), y.detach(), x_label, y_label).backward()
            self.optimizer.step()
        self.requires_grad_(False)


class Estimated(Fitted):
    """An estimator of torch_mist.

    The library's CLUB wants as many dimensions on both sides: the smaller one, on which the density is conditioned,
    is filled up with zeros.
    """

    def __init__(self, name: str, dx: int, dy: int) -> None:
        super().__init__()
        self.swap, dx, dy = dx > dy, max(dx, dy), max(dx, dy)
        more = {"neg_samples": 8} if name == "mine" else {}
        library = _library("torch_mist.estimators", "torch-mist, which needs Python 3.10 or 3.11")
        self.estimator = getattr(library, name)(x_dim=dx, y_dim=dy, hidden_dims=[HIDDEN], **more)
        self.optimizer = torch.optim.Adam(self.estimator.parameters(), lr=INNER_LR)

    def fit_loss(self, x: Tensor, y: Tensor, x_label: Tensor, y_label: Tensor) -> Tensor:
        """That of the estimator."""
        self._forget()
        return self.estimator.loss(*self._sides(x, y))

    def forward(self, x: Tensor, y: Tensor, x_label: Tensor, y_label: Tensor) -> Tensor:
        """The estimate of I(x; y)."""
        self._forget()
        return self.estimator.mutual_information(*self._sides(x, y))

    def get_extra_state(self) -> Tensor:
        """MINE's moving average, which the library leaves out of its state; NaN where there is none."""
        average = getattr(getattr(self.estimator, "_train_baseline", None), "ema", None)
        return torch.tensor(torch.nan) if average is None else average

    def set_extra_state(self, state: Tensor) -> None:
        """Restore it."""
        if not state.isnan():
            self.estimator._train_baseline.ema = state.to(next(self.estimator.parameters()))

    def _sides(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        small, large = (y, x) if self.swap else (x, y)
        return F.pad(small, (0, large.shape[1] - small.shape[1])), large

    def _forget(self) -> None:
        """torch_mist returns what it computed for a batch when the next one is equal, though its weights moved."""
        for module in self.estimator.modules():
            getattr(module, "__cache", {}).clear()


class HSIC(Penalty):
    """The cosine of two doubly centred Gaussian kernels, their bandwidths the median distances."""

    def __init__(self, dx: int) -> None:
        super().__init__()
        self.measure = hsic(dx)

    def forward(self, x: Tensor, y: Tensor, x_label: Tensor, y_label: Tensor) -> Tensor:
        """Normalised HSIC, 0 to 1."""
        return self.measure(x, y)[0]


class Adversary(Fitted):
    """Two classifiers that read each code for the other's label; the encoder is led to where they fail."""

    def __init__(self, dx: int, dy: int, x_labels: int, y_labels: int) -> None:
        super().__init__()
        self.from_x, self.from_y = (
            nn.Sequential(nn.Linear(d, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, k))
            for d, k in ((dx, y_labels), (dy, x_labels))
        )
        self.optimizer = torch.optim.Adam(self.parameters(), lr=INNER_LR)

    def fit_loss(self, x: Tensor, y: Tensor, x_label: Tensor, y_label: Tensor) -> Tensor:
        """The sum of both cross entropies."""
        return F.cross_entropy(self.from_x(x), y_label) + F.cross_entropy(self.from_y(y), x_label)

    def forward(self, x: Tensor, y: Tensor, x_label: Tensor, y_label: Tensor) -> Tensor:
        """Minus that: the gradient reversal of Ganin et al. for classifiers that have had their steps."""
        return -self.fit_loss(x, y, x_label, y_label)


def _library(module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ModuleNotFoundError(f'this penalty needs {what} ({error}): pip install "mist-loss[recipes]"') from error


PENALTIES = ("none", "mist", "mist-label", "club", "mine", "hsic", "adversary")
TRIED = {  # weights to choose from, see --tune
    "mist": (0.1, 0.2, 0.3, 1.0),
    "mist-label": (0.03, 0.1, 0.2, 0.3, 1.0),
    "club": (0.3, 1.0, 2.0, 3.0),
    "mine": (0.3, 1.0, 2.0, 3.0),
    "hsic": (3.0, 5.0, 10.0, 30.0),
    "adversary": (0.1, 0.3, 1.0, 3.0),
}


def build_penalty(name: str, dx: int, dy: int, x_labels: int, y_labels: int) -> Penalty:
    """The penalty of that name on codes of dx and dy dimensions, whose factors have x_labels and y_labels values."""
    if name == "none":
        return Penalty()
    if name == "mist":
        return Mist()
    if name == "mist-label":
        return MistLabel(x_labels, y_labels)
    if name == "hsic":
        return HSIC(dx)
    if name == "adversary":
        return Adversary(dx, dy, x_labels, y_labels)
    return Estimated(name, dx, dy)
