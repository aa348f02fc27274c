"""Mutual information as a loss."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mist_loss.collapse import way_out
from mist_loss.distributed import gather_rows, ranks
from mist_loss.estimate import LEVEL, PROJECTIONS, interval, predict, projection_note, rows_note
from mist_loss.model import quantiles
from mist_loss.model.frozen import freeze, thaw
from mist_loss.model.network import MIST
from mist_loss.model.projection import LearnedProjection
from mist_loss.model.tracing import constant_result, may_look
from mist_loss.parting import parting
from mist_loss.pulling import pulling
from mist_loss.validation import (
    MIN_ROWS,
    check_choice,
    check_count,
    check_flag,
    check_level,
    check_rows,
    check_weight,
    finite_sets,
    paired_sets,
    require_finite,
)

SIGNS = {"maximize": -1.0, "minimize": 1.0}
TINY = 1e-32  # counts as zero
PULL = 2.0  # how it was chosen: docs/objective.md
PUSH = 6.0  # how it was chosen: docs/objective.md


class Last(NamedTuple):
    """What a criterion saw in its last call, without a graph.

    value, low, high: point estimate and 90% interval in nats, as ``estimate_mi`` gives them (a low next to zero is
    zero), 0-d for one set, (b,) for a batch of sets; rows: n;
    dims: (dx, dy) of the input; in_range: whether rows and dims lie in the range the model was trained on (rows beyond
    its maximum do, since the model saturates there; dimensions that had to be projected do not).
    """

    value: Tensor
    low: Tensor
    high: Tensor
    rows: int
    dims: tuple[int, int]
    in_range: bool


class MISTCriterion(nn.Module):
    """The pretrained estimate of mutual information as a loss (arXiv 2511.18945).

    ``criterion(x, y)`` is a scalar in nats, to be minimised: -I(x; y), or +I(x; y) with objective="minimize"; the
    mean over the sets of a batch. Mutual information belongs to a set of rows, not to a row, so rows are not reduced.
    ``criterion.last`` holds the estimate, its interval and the size of the input of the last call.

    Frozen (the default), the weights are buffers, not parameters: no optimiser of a parent module finds them and
    ``requires_grad_`` does not reach them, while ``.to()``, ``state_dict``, ``deepcopy``, ``torch.save`` and
    ``torch.compile`` treat them as any other; the estimator stays in eval mode. The names in the state dict are
    the same either way. Casting a parent to half precision leaves the estimator in float32, which its algebra needs.

    NaN or infinite input is a ValueError on the CPU. On other devices, and in compiled code, looking would stall or
    break the graph: there the loss and its gradient become NaN.

    Codes may collapse: constant, duplicated or collinear features give finite values and gradients, and when maximising
    the gradient leads constant ones back to life, see ``mist_loss.collapse``. The number does not depend on the scale
    of the codes, so gradients grow as the codes shrink: clip them, or normalise the codes. In float16 those of codes
    below about 1e-5 overflow on their way out, which a ``GradScaler`` takes for what it is.

    Accumulating gradients over k small batches averages k estimates of few rows each; that is not the estimate of all
    their rows, which leans on the prior less. Prefer larger batches, ``QueuedCriterion``, or ``gather=True`` on several
    processes, and divide the loss by k where you do accumulate. In a ``DistributedDataParallel`` module a frozen
    criterion is 188 buffers (3.9 MB; an adapted one twice as much and its flows) that the first rank sends to all in
    every forward pass: keep the criterion outside of it, or give it ``broadcast_buffers=False``.

    Gradients of the estimate reach the input through correlations only and hold the canonical rotation constant, so
    they are not the exact derivative of the number: see ``mist_loss.model.network.steady``. Where a dependence is weak
    for the rows at hand the estimate is nearly flat. So when maximising, a pull of correlations is added:
    ``mist_loss.pulling``; when minimising, a push apart: ``mist_loss.parting``. Neither changes the number.

    Args:
        model: what ``MIST.from_pretrained`` takes (a bundled name, a file, a folder, OWNER/NAME@COMMIT), or a ``MIST``,
            of which the criterion takes a copy.
        objective: "maximize" or "minimize" the mutual information.
        quantile: None for the point estimate, or the level of the quantile to optimise instead: a low one when
            maximising, a high one when minimising, is the conservative choice.
        frozen: False trains the estimator too, whose number is then no measurement, see ``unfreeze``.
        projection: what to do with more dimensions than the model reads: "pca", "random", "sliced", a
            ``LearnedProjection``, or "none", an error; ``mist_loss.model.projection`` says what each keeps. Projecting
            can only lower mutual information, so a minimised criterion is blind to what is dropped.
        components: dimensions to keep of each side wider than that, for small batches; None keeps an eighth of the rows
            (at least 4) of sides wider than the model reads, and leaves narrower ones alone.
        gather: under ``torch.distributed``, read the rows of all processes as one set, see
            ``mist_loss.distributed``: an encoder in ``DistributedDataParallel`` gets the gradient of the whole batch.
            False, the default, reads the rows of this process. With projection="sliced" every process draws its own
            directions, so that the average over them is of more slices.
        pull: weight of the gradient that raises correlations, see ``mist_loss.pulling``; 0 leaves the gradient of the
            estimate alone. At the default it is twice the gradient of the true mutual information where a Gaussian
            dependence is weak. Codes wider than the model reads get none. Maximising only.
        push: weight of the gradient that parts what too few rows show, see ``mist_loss.parting``; 0 leaves the gradient
            of the estimate alone. Where little is shared it outweighs that gradient, some times at the default. Codes
            wider than the model reads get none. Minimising only.

    Raises:
        ValueError: an unknown model or option.
        FileNotFoundError: the weights are missing.
    """

    _noted: frozenset[str] = frozenset()  # what was warned of already

    def __init__(
        self,
        model: str | Path | MIST = "mist-base",
        objective: str = "maximize",
        quantile: float | None = None,
        frozen: bool = True,
        projection: str | LearnedProjection = "pca",
        components: int | None = None,
        gather: bool = False,
        pull: float = PULL,
        push: float = PUSH,
    ):
        super().__init__()
        self.objective = check_choice("objective", objective, SIGNS)
        self.quantile = quantile if quantile is None else check_level("quantile", quantile)
        if not isinstance(projection, LearnedProjection):
            check_choice("projection", projection, PROJECTIONS)
        self.projection = projection
        self.pull, self.push = check_weight("pull", pull), check_weight("push", push)
        self.gather, frozen = check_flag("gather", gather), check_flag("frozen", frozen)
        self.last: Last | None = None
        with torch.inference_mode(False):  # weights born in inference mode could never serve autograd
            self.model = copy.deepcopy(model) if isinstance(model, MIST) else MIST.from_pretrained(model)
            if self.model.vector_mean.dtype.itemsize < 4:
                self.model.float()  # its algebra needs it
        limit = self.model.config.dims[1]
        self.components = components if components is None else check_count("components", components, limit)
        if isinstance(projection, LearnedProjection):
            check_count("k of LearnedProjection", max(projection.dims), limit)
        if components is not None and (projection == "none" or isinstance(projection, LearnedProjection)):
            raise ValueError(f"components needs a projection that is fitted or drawn, got {projection!r}: leave it out")
        if frozen:
            self.freeze()
        else:
            self.unfreeze()

    @property
    def warm_rows(self) -> int:
        """Rows for which a ``QueuedCriterion`` waits, as few as the estimator knows.

        Of several processes that gather none waits: one with a smaller batch would leave the others waiting for it.
        """
        return 1 if self.gather and ranks() > 1 else self.model.config.rows[0]

    def freeze(self) -> "MISTCriterion":
        """Turn the weights into buffers, in eval mode; returns self."""
        self.frozen = True
        freeze(self.model)
        return self.train(self.training)

    def unfreeze(self) -> "MISTCriterion":
        """Turn the weights into trainable parameters whose mode follows the parent's; returns self.

        Of an adapted estimator only the readings of its modality are trained, see ``MIST``.

        Build the optimiser afterwards: the parameters are new. The loss tells the estimator what to say, not what is
        true: trained by it, on independent rows too, it claims more nats every step, or fewer when minimising. So keep
        its number from then on for a score, or train it by pairs of known mutual information (``mist-loss adapt``).
        """
        self.frozen = False
        thaw(self.model, [part for part in (self.model.coordinates, self.model.parent) if part is not None])
        self.model.requires_grad_(True)
        return self.train(self.training)

    def train(self, mode: bool = True) -> "MISTCriterion":
        """Set the mode; a frozen estimator stays in eval mode."""
        super().train(mode)
        self.model.train(mode and not self.frozen)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MISTCriterion":
        def at_least_single(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype.itemsize >= 4 else tensor.to(moved.device)

        return super()._apply(at_least_single, recurse)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss in nats.

        Args:
            x: (n, dx), or (b, n, dx) for b sets; any float dtype, at least 4 rows.
            y: (n, dy) or (b, n, dy): row i belongs to row i of x.

        Returns:
            0-d, in the precision of the estimator; gradients arrive in the dtypes of x and y.

        Raises:
            ValueError: input that cannot be used, see ``mist_loss.validation``.
        """
        x, y, single = paired_sets(x, y, min_rows=1 if self.gather else MIN_ROWS)
        if self.gather:  # the others have rows too
            x, y = gather_rows(x, y)
            check_rows(x.shape[1])
        dims = (x.shape[2], y.shape[2])
        poison = None
        if may_look(x):
            require_finite(x, y)
        else:
            poison = torch.where(finite_sets(x, y), 1.0, torch.nan)[:, None]
            x, y = (t.nan_to_num(0, 0, 0) for t in (x, y))  # factorisations raise on NaN
        # gradients grow as codes shrink, and those of yet smaller ones would overflow; zeros, as of binary codes, keep
        # theirs
        x, y = (torch.where((t != 0) & (t.abs() < TINY), 0.0, t) for t in (x, y))
        with torch.autocast(x.device.type, enabled=False):
            knots = self._predict(x, y)
            if poison is not None:
                knots = knots * poison
            self.last = self._describe(knots.detach(), x.shape[1], dims, single)
            nats = quantiles.mean(knots) if self.quantile is None else quantiles.quantile(knots, self.quantile)
            loss = SIGNS[self.objective] * nats.mean()
            read_whole = max(dims) <= self.model.config.dims[1]
            if self.objective == "maximize":
                loss = loss + way_out(x, y).to(loss.dtype)
                if self.pull and read_whole:
                    loss = loss + pulling(x, y, self.pull).to(loss.dtype)
            elif self.push and read_whole:
                loss = loss + parting(x, y, self.push).to(loss.dtype)
            return loss

    def _predict(self, x: Tensor, y: Tensor) -> Tensor:
        projection = self.projection
        if isinstance(projection, LearnedProjection):
            x, y = projection(x, y, adversary=self.objective == "minimize")
            projection = "none"
        read = self.components is None or projection == "none"
        if read and (note := projection_note(self.model, x, y, projection)):
            self._warn_once("projection", note)
        if note := rows_note(self.model, x.shape[1]):
            self._warn_once("rows", note)
        return predict(self.model, x, y, projection, self.components)

    @constant_result  # compiled code warns while it is traced
    def _warn_once(self, kind: str, note: str) -> None:
        if kind not in self._noted:
            self._noted = self._noted | {kind}
            warnings.warn(note, stacklevel=6)  # torch has two frames between forward and who calls

    def _describe(self, knots: Tensor, rows: int, dims: tuple[int, int], single: bool) -> Last:
        value, low, high = (t[0] if single else t for t in interval(knots, LEVEL))
        config = self.model.config
        in_range = rows >= config.rows[0] and all(config.dims[0] <= d <= config.dims[1] for d in dims)
        return Last(value, low, high, rows, dims, in_range)

    def refresh(self, x: Tensor, y: Tensor, seconds: float = 30.0, seed: int = 0) -> dict:
        """Fit flows to present codes, through which the estimator reads too from then on (needs the ``flows`` extra).

        To be called every few hundred steps, with the codes of several batches. The weights stay as they are.

        Args:
            x: (n, dx) codes, at least 100 rows and 50 for each direction; better some thousands. Detached here.
            y: (m, dy).
            seconds: about how long it may take.
            seed: of the flows.

        Returns:
            "x" and "y" to how well their flows fit, see ``mist_loss.flows.marginals.FlowReport``.

        Raises:
            ValueError: codes that no flow fits or that are projected; the estimator is then as it was.
            ModuleNotFoundError: the extra is not installed.
        """
        from mist_loss.flows.adapt import refresh

        if self.components is not None or isinstance(self.projection, LearnedProjection):
            raise ValueError(
                "expected a criterion that reads codes whole, got one that projects them: "
                "leave out components= and LearnedProjection"
            )
        return refresh(self.model, x, y, seconds, seed)

    def extra_repr(self) -> str:
        """Options, for printing."""
        names = ("objective", "quantile", "frozen", "projection", "components", "gather", "pull", "push")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names if name not in self._modules)
