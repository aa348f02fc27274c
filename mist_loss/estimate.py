"""Mutual information as a number with an interval: ``estimate_mi``."""

import functools
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mist_loss import labels
from mist_loss.model import quantiles, weights
from mist_loss.model.network import MIST
from mist_loss.model.projection import METHODS, directions, project
from mist_loss.model.tracing import may_look
from mist_loss.validation import as_tensor, check_choice, check_level, paired_sets, require_finite

PROJECTIONS = (*METHODS, "none")
LEVEL = 0.9  # of an interval, unless another is asked for
RESOLUTION = 0.005  # nats; ends in between would call independent sets dependent more often than the level says
ROWS_AT_ONCE = 1 << 13  # of sets read together: more no longer fit a processor's cache, and take a third longer


class Estimate(NamedTuple):
    """Mutual information in nats with a central interval: 0-d tensors for one set, (b,) for a batch of sets."""

    value: Tensor
    low: Tensor
    high: Tensor


def estimate_mi(
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    level: float = LEVEL,
    model: str | Path | MIST = "mist-base",
    projection: str = "pca",
) -> Estimate:
    """Estimate I(x; y) from paired rows, in one pass of the pretrained model (arXiv 2511.18945).

    Deterministic, unless projection="sliced". The result carries gradients when x or y does (those of
    ``mist_loss.model.network.steady``). The model keeps its precision under autocast. Nothing exceeds what a label
    can share, and the table of two labels is counted in place of estimated unless gradients are asked for, see
    ``mist_loss.labels``.

    Args:
        x: (n, dx), or (b, n, dx) for b sets; NumPy or tensor, any float dtype, any device; at least 4 rows.
        y: (n, dy) or (b, n, dy): row i belongs to row i of x.
        level: probability of the interval, in (0, 1).
        model: what ``MIST.from_pretrained`` takes (a bundled name, a file, a folder, OWNER/NAME@COMMIT), or a ``MIST``
            on the device of the inputs; gradients reach weights of it that require them.
        projection: what to do with more dimensions than the model reads: "pca" (the sample's own directions, or those
            of the modality that the model was adapted to), "random", "sliced" or "none", an error; see
            ``mist_loss.model.projection``. Projecting can only lower mutual information.

    Returns:
        Estimate(value, low, high) in nats: the mean of the predictive distribution, and its quantiles (1 - level)/2 and
        (1 + level)/2, reaching to the mean where the level is low; a low below RESOLUTION is zero. Of labels what
        counting says, see above.

    Raises:
        ValueError: input that cannot be used, see ``mist_loss.validation``; an unknown model or option.
        FileNotFoundError: the weights are missing.
    """
    level = check_level("level", level)
    check_choice("projection", projection, PROJECTIONS)
    x, y, single = paired_sets(as_tensor(x), as_tensor(y))
    require_finite(x, y)
    network = _resolve(model, x.device)
    for note in (projection_note(network, x, y, projection), rows_note(network, x.shape[1])):
        if note:
            warnings.warn(note, stacklevel=2)
    differentiable = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    with torch.set_grad_enabled(differentiable), torch.autocast(x.device.type, enabled=False):
        found = torch.stack(interval(predict(network, x, y, projection), level))
        most, counted = (t.to(found) for t in labels.known(x.detach(), y.detach(), level))
        found = torch.minimum(found, most)
        if not differentiable:  # a table is the better estimate, but has no gradient
            found = torch.where(counted.isnan(), found, torch.minimum(counted, most))
        result = Estimate(*found)
    return Estimate(*(t[0] for t in result)) if single else result


def predict(network: MIST, x: Tensor, y: Tensor, projection: str, components: int | None = None) -> Tensor:
    """Predictive distributions (b, KNOTS) for checked sets (b, n, d), projected where too wide for the network.

    Of several slices the mean of their quantiles. Where projection is "pca", sets of the modality that a network was
    adapted to are read in the principal directions of that, other sets in their own. components: dimensions to keep of
    sides wider than that, instead of the number that fits the rows.

    Raises:
        ValueError: the network is on another device.
    """
    if network.vector_mean.device != x.device:
        raise ValueError(
            f"expected the estimator and its input on one device, got {network.vector_mean.device} and {x.device}: "
            f"move the estimator with .to({str(x.device)!r})"
        )
    alive = ~(_constant(x) | _constant(y))  # nothing is shared with a constant
    modality = network.coordinates if projection == "pca" and components is None else None
    if modality is None or not modality.narrows(x, y):
        return _predict(network, x, y, projection, components) * alive[:, None]
    narrow = modality.narrowed(x, y)
    alike = modality.alike(*modality(*narrow))
    if may_look(x) and alike.all():
        return _predict(network, *narrow, projection) * alive[:, None]
    knots = _predict(network, x, y, projection)
    if not may_look(x) or alike.any():
        knots = torch.where(alike[:, None], _predict(network, *narrow, projection), knots)
    return knots * alive[:, None]


def _predict(network: MIST, x: Tensor, y: Tensor, projection: str, components: int | None = None) -> Tensor:
    limit, b = network.config.dims[1], len(x)
    k, most = components or directions(x.shape[1], limit), components or limit
    if network.parent is not None and max(x.shape[2], y.shape[2]) > most:
        network = network.parent  # projected rows, of unit variance, would look like the modality, and are not of it
    x, y = (project(t, k, projection) if t.shape[2] > most else t for t in (x, y))
    sets = max(len(x), len(y))
    x, y = (t.repeat_interleave(sets // len(t), 0) for t in (x, y))
    at_once = max(1, ROWS_AT_ONCE // x.shape[1]) if may_look(x) else sets
    knots = torch.cat([network(*part) for part in zip(x.split(at_once), y.split(at_once), strict=True)])
    return knots.unflatten(0, (b, -1)).mean(1)


def _constant(side: Tensor) -> Tensor:
    """(b,) whether all rows of (b, n, d) are the same."""
    return (side == side[:, :1]).flatten(1).all(1)


def projection_note(network: MIST, x: Tensor, y: Tensor, projection: str) -> str | None:
    """What ``predict`` does about too many dimensions, for a warning; None if nothing.

    Raises:
        ValueError: there are too many, and projection is "none".
    """
    limit = network.config.dims[1]
    wide = [f"{name} has {t.shape[2]}" for name, t in (("x", x), ("y", y)) if t.shape[2] > limit]
    if not wide:
        return None
    fact = f"{' and '.join(wide)} dimensions, the model reads at most {limit}"
    if projection == "none":
        raise ValueError(f"{fact}: choose another projection than 'none', or reduce the features first")
    return (
        f"{fact}: projected on {directions(x.shape[1], limit)} (projection={projection!r}). The result is the mutual "
        "information of what the projection keeps, which is at most that of the input"
    )


def rows_note(network: MIST, n: int) -> str | None:
    """What to know of so few rows, for a warning; None if the estimator knows as many."""
    least = network.config.rows[0]
    if n >= least:
        return None
    return (
        f"{n} rows, the model knows {least} and more: independent sides of so few are often read as dependent, "
        "by nats. Give more rows, in training those of past steps with a QueuedCriterion"
    )


def interval(knots: Tensor, level: float) -> Estimate:
    """Point estimate and central interval, none of them negative, of predictive distributions (b, KNOTS): (b,) each.

    An interval that begins below RESOLUTION begins at zero: the model does not tell so little from nothing. It reaches
    to the point estimate, a mean, where the central quantiles of a low level do not.
    """
    value = quantiles.mean(knots).clamp_min(0)
    low, high = (quantiles.quantile(knots, tail) for tail in ((1 - level) / 2, (1 + level) / 2))
    low = torch.where(low < RESOLUTION, torch.zeros_like(low), low)
    return Estimate(value, torch.minimum(low, value), torch.maximum(high, value))


def _resolve(model: str | Path | MIST, device: torch.device) -> MIST:
    if isinstance(model, MIST):
        if model.vector_mean.dtype.itemsize < 4:
            raise ValueError(f"expected a MIST in float32 or float64, got {model.vector_mean.dtype}: call .float()")
        return model
    return _registered(str(model), device) if str(model) in weights.REGISTRY else _load(model, device)


def _load(model: str | Path, device: torch.device) -> MIST:
    with torch.inference_mode(False):  # weights born in inference mode could never serve autograd
        return MIST.from_pretrained(model).to(device).requires_grad_(False)


@functools.lru_cache(maxsize=8)
def _registered(name: str, device: torch.device) -> MIST:
    """One copy a device, so that no call moves the weights of another. Files by path may change, and are read anew."""
    return _load(name, device)
