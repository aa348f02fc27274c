"""Losses of two codes that claim to follow their mutual information: this package's criterion, and the usual others.

Each comes from the library that maintains it. VICReg, distance correlation and HSIC give no number in nats.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mist_loss.criterion import PULL, PUSH, MISTCriterion
from mist_loss.model import weights

TEMPERATURE = 0.2
CLUB_STEPS, CLUB_LR, CLUB_HIDDEN = 5, 5e-3, 64


class Reading(NamedTuple):
    """The number a loss gives for what two codes share, with its interval: nats, NaN for what it does not give."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan


# codes (n, d1), (n, d2) -> the loss to be minimised, 0-d, and its reading
Contender = Callable[[Tensor, Tensor], tuple[Tensor, Reading]]


class Named(NamedTuple):
    """A loss by name: hash of its weights if it comes with any, directions it is for, and how to make a fresh one."""

    name: str
    weights: str
    directions: tuple[str, ...]
    make: Callable[[int, str], Contender]  # (dimensions of a code, "maximize" or "minimize")


_VARIANT = re.compile(r"(?P<source>.+)@(?:q(?P<level>0?\.\d+)|pull(?P<pull>\d*\.?\d+)|push(?P<push>\d*\.?\d+))")


def named(name: str) -> Named:
    """The loss of a name.

    Args:
        name: a key of ``OTHERS``, or what ``MISTCriterion`` takes for a model: shipped weights or a .safetensors file.
            ``NAME@q0.1`` optimises the 0.1 quantile when maximising and the 0.9 quantile when minimising;
            ``NAME@pull0`` and ``NAME@push0`` are the criterion with another ``pull`` or ``push``.

    Raises:
        ValueError: no such loss, or an option that the criterion refuses.
        FileNotFoundError: the weights are missing.
    """
    if name in OTHERS:
        direction, make = OTHERS[name]
        return Named(name, "", (direction,), lambda dims, _: make(dims))
    match = _VARIANT.fullmatch(name)
    source, chosen = (match.group("source"), match.groupdict()) if match else (name, {})
    if source not in weights.REGISTRY and not source.endswith(".safetensors"):
        known = ", ".join([*weights.REGISTRY, *OTHERS])
        raise ValueError(f"expected losses among {known}, or .safetensors files, got {name!r}")
    file = weights.find(source)
    options = {key: float(value) for key, value in chosen.items() if key != "source" and value is not None}
    mist(file, "maximize", **options)  # what it refuses is said before anything else is trained
    return Named(
        name, weights.sha256(file), ("maximize", "minimize"), lambda _, direction: mist(file, direction, **options)
    )


def mist(model: Path, direction: str, level: float | None = None, pull: float = PULL, push: float = PUSH) -> Contender:
    """``MISTCriterion`` as it is, on the conservative quantile of that level, or with another pull or push."""
    quantile = 1 - level if level is not None and direction == "minimize" else level
    criterion = MISTCriterion(model, objective=direction, quantile=quantile, pull=pull, push=push)

    def contender(z1: Tensor, z2: Tensor) -> tuple[Tensor, Reading]:
        loss = criterion(z1, z2)
        assert criterion.last is not None
        return loss, Reading(*(float(t) for t in criterion.last[:3]))

    return contender


def infonce(dims: int) -> Contender:
    """InfoNCE (van den Oord et al. 2018, arXiv 1807.03748) of cosine similarities; at most log n nats.

    SupCon with one positive each is InfoNCE; that library's own NTXentLoss takes memory cubic in the batch.
    """
    losses = _library("pytorch_metric_learning.losses")
    loss_of = losses.SelfSupervisedLoss(losses.SupConLoss(temperature=TEMPERATURE), symmetric=False)

    def contender(z1: Tensor, z2: Tensor) -> tuple[Tensor, Reading]:
        loss = loss_of(z1, z2)
        return loss, Reading(math.log(len(z1)) - float(loss.detach()))

    return contender


def vicreg(dims: int) -> Contender:
    """VICReg (Bardes et al. 2022, arXiv 2105.04906) with its published weights."""
    loss_of = _library("lightly.loss.vicreg_loss").VICRegLoss()
    return lambda z1, z2: (loss_of(z1, z2), Reading())


def club(dims: int) -> Contender:
    """CLUB (Cheng et al. 2020, arXiv 2006.12013), whose conditional density takes a few steps on every batch first."""
    estimator = _library("torch_mist.estimators").club(x_dim=dims, y_dim=dims, hidden_dims=[CLUB_HIDDEN])
    optimizer = torch.optim.Adam(estimator.parameters(), lr=CLUB_LR)

    def contender(z1: Tensor, z2: Tensor) -> tuple[Tensor, Reading]:
        for _ in range(CLUB_STEPS):
            # another half each time: the library caches by value, and the same rows would bring back an old result
            half = torch.randperm(len(z1))[: len(z1) // 2]
            optimizer.zero_grad()
            estimator(z1.detach()[half], z2.detach()[half]).backward()
            torch.nn.utils.clip_grad_norm_(estimator.parameters(), 1.0)  # heavy tails would ruin the density
            optimizer.step()
        bound = estimator.mutual_information(z1, z2)
        return bound, Reading(float(bound.detach()))

    return contender


def distance_correlation(dims: int) -> Contender:
    """Squared distance correlation (Szekely et al. 2007)."""
    dcor = _library("dcor")
    return lambda z1, z2: (_centred_cosine(dcor, *(torch.cdist(z, z) for z in (z1, z2))), Reading())


def hsic(dims: int) -> Contender:
    """HSIC (Gretton et al. 2005), Gaussian kernels at the median distance, divided by the norms of the kernels.

    Distance covariance is HSIC with another kernel (Sejdinovic et al. 2013, arXiv 1207.6076), so one library has both.
    """
    dcor = _library("dcor")

    def kernel(z: Tensor) -> Tensor:
        squares = torch.cdist(z, z).square()
        return torch.exp(-squares / squares.detach().median().clamp_min(1e-12))

    return lambda z1, z2: (_centred_cosine(dcor, kernel(z1), kernel(z2)), Reading())


def _centred_cosine(dcor: Any, first: Tensor, second: Tensor) -> Tensor:
    """Cosine of two doubly centred matrices (n, n)."""
    a, b = dcor.double_centered(first), dcor.double_centered(second)
    norms = dcor.mean_product(a, a) * dcor.mean_product(b, b)
    return dcor.mean_product(a, b) / norms.clamp_min(1e-24).sqrt()


def _library(module: str) -> Any:
    threads = torch.get_num_threads()
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ModuleNotFoundError(f'a comparison needs {module} ({error}): pip install "mist-loss[recipes]"') from error
    finally:
        torch.set_num_threads(threads)  # importing dcor changes it, for torch as well


# name -> (direction, dimensions of a code -> a fresh one)


OTHERS: dict[str, tuple[str, Callable[[int], Contender]]] = {
    "infonce": ("maximize", infonce),
    "vicreg": ("maximize", vicreg),
    "club": ("minimize", club),
    "hsic": ("minimize", hsic),
    "dcor": ("minimize", distance_correlation),
}
