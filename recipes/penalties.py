"""Penalties on what two codes share, each from the library that keeps it, behind one interface.

| name | what is minimised | library |
| --- | --- | --- |
| ``none`` | nothing | |
| ``mist`` | the mutual information, as a pretrained network reads it | this package |
| ``mist-sketch`` | the same of random sketches of the codes, see `MistSketch` | this package |
| ``club`` | an upper bound with a fitted conditional density (Cheng et al. 2020, arXiv 2006.12013) | torch_mist |
| ``mine`` | the Donsker-Varadhan bound of a fitted critic (Belghazi et al. 2018, arXiv 1801.04062) | torch_mist |
| ``hsic`` | HSIC with Gaussian kernels, normalised (Gretton et al. 2005) | dcor |
| ``adversary`` | how well classifiers read the other's label (Ganin et al. 2016, arXiv 1505.07818) | |

The adversary is shown the very labels that a probe will ask for; the others see the two codes alone.
"""

import importlib
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mist_loss import MISTCriterion

INNER_STEPS, INNER_LR, HIDDEN = 5, 2e-3, 64  # of CLUB and MINE, at each step of the encoder
SKETCHES, WAVES = 4, 4


class Penalty(nn.Module):
    """``penalty(x, y, x_label, y_label)``, 0-d, to be minimised; ``learn`` first, where something is fitted.

    x: (n, dx); y: (n, dy); the labels (n,) are of what each of them should keep.
    """

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Fit what is inside to detached codes."""

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


class MistSketch(Mist):
    """The mean estimate over random sketches of both codes, drawn anew at each step, in nats.

    A sketch is a few cosines of random directions and phases (Rahimi & Recht 2007). It shares no more than the codes
    do, and codes of which no sketch shares anything are independent: sliced mutual information (Goldfeld & Greenewald
    2021, arXiv 2110.05279) with waves for slices. Gradients of the criterion pass through correlations, and what an
    encoder hides from those of the codes shows in those of some waves.
    """

    def __init__(self, discrete: bool) -> None:
        super().__init__()
        self.discrete = discrete  # every function of a one-hot y is a linear one

    def forward(self, x: Tensor, y: Tensor, x_label: Tensor, y_label: Tensor) -> Tensor:
        """The mean of I(sketch(x); sketch(y))."""
        return self.criterion(sketches(x), y.expand(SKETCHES, -1, -1) if self.discrete else sketches(y))


def sketches(z: Tensor) -> Tensor:
    """Waves (SKETCHES, n, WAVES) over a code (n, d) of unit variance."""
    directions = torch.randn(SKETCHES, z.shape[1], WAVES, device=z.device, dtype=z.dtype) / z.shape[1] ** 0.5
    return torch.cos(z @ directions + 2 * math.pi * torch.rand(SKETCHES, 1, WAVES, device=z.device, dtype=z.dtype))


class Fitted(Penalty):
    """An estimator of torch_mist, fitted for a few steps before each step of the encoder.

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

    def learn(self, x: Tensor, y: Tensor) -> None:
        """INNER_STEPS steps of Adam on this batch."""
        self.estimator.requires_grad_(True)
        for _ in range(INNER_STEPS):
            self._forget()
            self.optimizer.zero_grad()
            self.estimator.loss(*self._sides(x.detach(), y.detach())).backward()
            self.optimizer.step()
        self.estimator.requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor, x_label: Tensor, y_label: Tensor) -> Tensor:
        """The estimate of I(x; y)."""
        self._forget()
        return self.estimator.mutual_information(*self._sides(x, y))

    def _sides(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        small, large = (y, x) if self.swap else (x, y)
        return F.pad(small, (0, large.shape[1] - small.shape[1])), large

    def _forget(self) -> None:
        """torch_mist returns what it computed for a batch when the next one is equal, though its weights moved."""
        for module in self.estimator.modules():
            getattr(module, "__cache", {}).clear()


class HSIC(Penalty):
    """The cosine of two doubly centred Gaussian kernels, their bandwidths the median distances."""

    def __init__(self) -> None:
        super().__init__()
        self.library = _library("dcor", "dcor")

    def forward(self, x: Tensor, y: Tensor, x_label: Tensor, y_label: Tensor) -> Tensor:
        """Normalised HSIC, 0 to 1."""
        first, second = (self.library.double_centered(_kernel(z)) for z in (x, y))
        return F.cosine_similarity(first.flatten(), second.flatten(), dim=0)


class Adversary(Penalty):
    """Two classifiers that read each code for the other's label; the encoder's gradient is that of their failure."""

    def __init__(self, dx: int, dy: int, x_labels: int, y_labels: int) -> None:
        super().__init__()
        self.from_x: nn.Module
        self.from_y: nn.Module
        self.from_x, self.from_y = (
            nn.Sequential(nn.Linear(d, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, k))
            for d, k in ((dx, y_labels), (dy, x_labels))
        )

    def forward(self, x: Tensor, y: Tensor, x_label: Tensor, y_label: Tensor) -> Tensor:
        """The sum of both cross entropies: minimised by the classifiers, maximised by what made x and y."""
        # 2 z.detach() - z is z, with its gradient reversed
        x, y = (2 * z.detach() - z for z in (x, y))
        return F.cross_entropy(self.from_x(x), y_label) + F.cross_entropy(self.from_y(y), x_label)


def _kernel(z: Tensor) -> Tensor:
    squares = (z[:, None] - z).square().sum(-1)
    return torch.exp(-squares / squares.detach().median().clamp_min(1e-12))


def _library(module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ModuleNotFoundError(f'this penalty needs {what} ({error}): pip install "mist-loss[recipes]"') from error


PENALTIES = ("none", "mist", "mist-sketch", "club", "mine", "hsic", "adversary")


def build_penalty(name: str, dx: int, dy: int, x_labels: int, y_labels: int, discrete: bool = False) -> Penalty:
    """The penalty of that name on codes of dx and dy dimensions, whose factors have x_labels and y_labels values.

    With `discrete` y is a one-hot label, of which every function is a linear one.
    """
    if name == "none":
        return Penalty()
    if name == "mist":
        return Mist()
    if name == "mist-sketch":
        return MistSketch(discrete)
    if name == "hsic":
        return HSIC()
    if name == "adversary":
        return Adversary(dx, dy, x_labels, y_labels)
    return Fitted(name, dx, dy)
