"""Estimators by name: weights of this package, their mean over resamples, and the peers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mist_loss.estimate import LEVEL, interval, predict
from mist_loss.model import weights
from mist_loss.model.network import MIST

_RESAMPLED = re.compile(r"(?P<name>.+)@(?P<resamples>[1-9]\d*)")


class Interval(Protocol):
    """What an estimator returns: 0-d tensors, in nats; ``low`` and ``high`` are NaN for a method without interval."""

    @property
    def value(self) -> Tensor:
        """The point estimate."""

    @property
    def low(self) -> Tensor:
        """Lower end of the interval."""

    @property
    def high(self) -> Tensor:
        """Upper end of the interval."""


class Predictive(NamedTuple):
    """An interval with the whole predictive distribution: its ``knots`` (KNOTS,), see `mist_loss.model.quantiles`."""

    value: Tensor
    low: Tensor
    high: Tensor
    knots: Tensor


Estimator = Callable[[Tensor, Tensor], Interval]


class Named(NamedTuple):
    """An estimator, (x (n dx), y (n dy)) -> Interval, its name, and the sha256 of its weights if it has any."""

    name: str
    weights: str
    estimate: Estimator


def named(name: str) -> Named:
    """The estimator of a name.

    Args:
        name: of shipped weights, a .safetensors file, or a key of ``mist_loss.evaluation.peers.PEERS``.
            ``NAME@50`` averages the predictive distributions of 50 bootstrap resamples of the rows, as the MIST
            paper's code does (arXiv 2511.18945); for weights only.

    Raises:
        ValueError: no such estimator, or resamples of a peer.
        FileNotFoundError: the weights are missing.
        ModuleNotFoundError: the peer's library is missing.
    """
    match = _RESAMPLED.fullmatch(name)
    source, resamples = (match["name"], int(match["resamples"])) if match else (name, 0)
    if source in weights.REGISTRY or source.endswith(".safetensors"):
        file = weights.find(source)
        model = MIST.from_pretrained(file)
        return Named(name, weights.sha256(file), bootstrapped(model, resamples) if resamples else single(model))
    from mist_loss.evaluation.peers import PEERS

    if source not in PEERS:
        known = ", ".join([*weights.REGISTRY, *PEERS])
        raise ValueError(f"expected estimators among {known}, or .safetensors files, got {source!r}")
    if resamples:
        raise ValueError(f"expected weights before @{resamples}, got {source!r}: peers have no mean over resamples")
    return Named(name, "", PEERS[source]())


def single(model: MIST) -> Estimator:
    """One pass over all rows; not capped at the entropy of a label, as ``estimate_mi`` is."""

    @torch.no_grad()
    def estimate(x: Tensor, y: Tensor) -> Predictive:
        return _predictive(predict(model, x[None], y[None], "pca")[0])

    return estimate


def bootstrapped(model: MIST, resamples: int) -> Estimator:
    """The mean quantile function over resamples of the rows, with replacement, always the same ones for n rows."""

    @torch.no_grad()
    def estimate(x: Tensor, y: Tensor) -> Predictive:
        n = len(x)
        rows = torch.randint(n, (resamples, n), generator=torch.Generator().manual_seed(n))
        return _predictive(predict(model, x[rows], y[rows], "pca").mean(0))

    return estimate


def _predictive(knots: Tensor) -> Predictive:
    value, low, high = interval(knots[None], LEVEL)
    return Predictive(value[0], low[0], high[0], knots)
