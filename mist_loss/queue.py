"""Rows of past steps beside those of the present one, for batches too small to estimate from."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mist_loss.distributed import everywhere
from mist_loss.model.tracing import may_look
from mist_loss.validation import check_count, finite_sets, paired_sets, require_finite


class QueuedCriterion(nn.Module):
    """A criterion that also reads the last ``size`` rows it was given.

    In training, ``QueuedCriterion(criterion, 1024, 32, 32)(x, y)`` calls ``criterion`` with the rows of this step
    in front of those of earlier steps, in the wider of both precisions and at least float32, then keeps the new
    ones in place of the oldest; in eval mode the queue is neither read nor written. Past rows carry no gradient (as
    the dictionary of MoCo, He et al. 2020, arXiv 1911.05722): of the gradient of the whole set, the n rows of this
    step receive their n / (n + size). Adam and its kin do not mind; with plain SGD multiply the learning rate.

    Past rows come from past weights: the estimate is of a mixture of encoders, and trails the present one by
    size / n steps. Keep that small against the time in which the codes move.

    The rows and their number so far are persistent buffers in single precision or better, saved and restored with the
    state dict. A batch with a NaN or an infinity, or a number that the queue's precision does not hold, is not kept;
    with a criterion that gathers, by no process. Every process has its own queue: a ``DistributedDataParallel`` around
    it needs ``broadcast_buffers=False``, or that of the first rank replaces the others.

    Args:
        criterion: of two samples (n, d), such as ``MISTCriterion``; compile it or the encoder, not the queue, whose
            length changes until it is full.
        size: rows to keep; at least 1.
        dx: dimensions of x.
        dy: dimensions of y.

    Raises:
        ValueError: a size or a dimension below 1, or no criterion.
    """

    x: Tensor
    y: Tensor
    written: Tensor

    def __init__(self, criterion: nn.Module, size: int, dx: int, dy: int):
        super().__init__()
        for name, value in (("size", size), ("dx", dx), ("dy", dy)):
            check_count(name, value)
        if not callable(criterion):
            raise ValueError(f"expected a criterion to call, such as MISTCriterion(), got {criterion!r}")
        self.criterion, self.size = criterion, size
        with torch.inference_mode(False):  # buffers that were made in it could not be written to outside it
            self.register_buffer("x", torch.zeros(size, dx))
            self.register_buffer("y", torch.zeros(size, dy))
            self.register_buffer("written", torch.zeros((), dtype=torch.long))
        self._full = False  # once it is, nobody waits for the device to count
        self.register_load_state_dict_post_hook(_recount)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QueuedCriterion":
        kept = self.x, self.y
        super()._apply(fn, recurse)  # half of the precision would lose rows of a wider step
        moved = self.x, self.y
        self.x, self.y = (b if b.dtype.itemsize >= 4 else a.to(b.device) for a, b in zip(kept, moved, strict=True))
        return self

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Loss of these rows and the kept ones.

        Args:
            x: (n, dx).
            y: (n, dy).

        Returns:
            What the criterion returns; a zero without influence while these rows and the kept ones are fewer than its
            ``warm_rows``, if it says so, and the queue is not full.

        Raises:
            ValueError: sets of other dimensions, or what the criterion refuses; the queue is then as before.
        """
        for name, sample, kept in (("x", x, self.x), ("y", y, self.y)):
            if not isinstance(sample, Tensor) or sample.ndim != 2 or sample.shape[1] != kept.shape[1]:
                shape = tuple(sample.shape) if isinstance(sample, Tensor) else type(sample).__name__
                raise ValueError(
                    f"expected {name} of shape (n, {kept.shape[1]}), got {shape}: "
                    "a queue holds rows of one set, with the dimensions given to its constructor"
                )
            if sample.device != kept.device:
                raise ValueError(
                    f"expected {name} on the device of the queue, {kept.device}, got {sample.device}: "
                    "move one with .to()"
                )
        x, y = (t[0] for t in paired_sets(x, y, min_rows=1)[:2])
        if not self.training:
            return self.criterion(x, y)
        past = self.filled
        least = getattr(self.criterion, "warm_rows", 1)
        if len(x) + past < min(least, len(x) + self.size):
            self._keep(x.detach(), y.detach())  # first: other processes may wait there
            if may_look(x):
                require_finite(x, y)
            return x[:0].sum() + y[:0].sum()
        # of two precisions the wider: a narrow one may not hold the rows of the other
        loss = self.criterion(torch.cat([x, self.x[:past]]), torch.cat([y, self.y[:past]]))
        self._keep(x.detach(), y.detach())
        return loss

    @property
    def filled(self) -> int:
        """Rows kept at present."""
        rows = self.size if self._full else min(int(self.written), self.size)
        self._full = rows == self.size
        return rows

    @torch.no_grad()
    def _keep(self, x: Tensor, y: Tensor) -> None:
        x, y = x.to(self.x), y.to(self.y)
        finite = finite_sets(x[None], y[None])[0]  # as kept: narrower numbers may not hold them
        if self._gathers():  # queues of different lengths could not be gathered any more
            finite = everywhere(finite)
        n, kept = len(x), min(len(x), self.size)  # of a batch longer than the queue the last rows
        slots = (self.written + torch.arange(n - kept, n, device=x.device)) % self.size
        for queue, rows in ((self.x, x), (self.y, y)):
            queue[slots] = torch.where(finite, rows[n - kept :], queue[slots])
        self.written += n * finite

    def _gathers(self) -> bool:
        parts = self.criterion.modules() if isinstance(self.criterion, nn.Module) else ()
        return any(getattr(part, "gather", False) is True for part in parts)

    def reset(self) -> None:
        """Forget all rows: after the encoder has jumped, for example."""
        self.written.zero_()
        self._full = False

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"size={self.size}, dx={self.x.shape[1]}, dy={self.y.shape[1]}"


def _recount(queue: nn.Module, incompatible_keys: Any) -> None:
    assert isinstance(queue, QueuedCriterion)
    queue._full = False
