"""The rows of all processes as one set: what a criterion of the whole batch needs under data parallelism."""

import torch
import torch.distributed as dist
from torch import Tensor

from mist_loss.model.tracing import may_look


def gather_rows(*samples: Tensor) -> tuple[Tensor, ...]:
    """Rows of every process, in the order of the ranks; as they are where there is one process.

    A loss of the result is the same number on every rank, so each differentiates it with respect to its own rows alone
    and nothing is sent on the way back. The gradient of these rows is multiplied by the number of processes, since
    ``DistributedDataParallel`` averages over them: the encoder gets the gradient of the whole batch.

    Args:
        samples: (b, n, d) each, with the same shape and dtype on every rank.

    Returns:
        (b, ranks * n, d) each.

    Raises:
        ValueError: another shape or precision on another rank. Looked at on the CPU only: elsewhere it would wait for
            the device.
    """
    if ranks() == 1:
        return samples
    if may_look(samples[0]):
        _require_alike(samples)
    return tuple(_gather(sample) for sample in samples)


def everywhere(flag: Tensor) -> Tensor:
    """Whether a flag, 0-d, is true on every process."""
    if ranks() == 1:
        return flag
    least = flag.to(torch.int32)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return least.bool()


def ranks() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _gather(sample: Tensor) -> Tensor:
    parts = [torch.empty_like(sample, memory_format=torch.contiguous_format) for _ in range(ranks())]
    dist.all_gather(parts, sample.detach().contiguous())
    parts[dist.get_rank()] = sample.detach() + ranks() * (sample - sample.detach())  # its value, scaled gradients
    return torch.cat(parts, dim=1)


def _require_alike(samples: tuple[Tensor, ...]) -> None:
    own = torch.tensor([(*sample.shape, 8 * sample.dtype.itemsize) for sample in samples])
    shapes = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(shapes, own)
    if any(not torch.equal(shape, own) for shape in shapes):
        raise ValueError(
            "expected the same shapes and bits of a number on every process, got "
            f"{[shape.tolist() for shape in shapes]}: give each as many rows (drop_last=True in the loader) of one "
            "dtype, or use gather=False"
        )
