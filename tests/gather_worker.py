"""One process of ``test_robustness.test_two_ranks``: python gather_worker.py FOLDER, with RANK and WORLD_SIZE set."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mist_loss import MIST, MISTCriterion, QueuedCriterion
from mist_loss.model.network import MISTConfig


def small_model() -> MIST:
    torch.manual_seed(0)
    return MIST(MISTConfig(rows=(10, 512), dims=(1, 8), width=32, set_width=16, row_pairs=4, pair_width=8)).eval()


def encoder() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(5, 3)


def rows() -> Tensor:
    return torch.randn(64, 5, generator=torch.Generator().manual_seed(2))


class Inside(nn.Module):
    """A frozen criterion inside the wrapped module, which then broadcasts its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.criterion = encoder(), MISTCriterion(small_model())

    def forward(self, x: Tensor) -> Tensor:
        return self.criterion(self.encoder(x), x)


def main(folder: Path) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world)
    x = rows().chunk(world)[rank]
    result: dict[Any, Any] = {}
    for gather in (True, False):
        network = nn.parallel.DistributedDataParallel(encoder())
        criterion = MISTCriterion(small_model(), gather=gather)
        loss = criterion(network(x), x)
        loss.backward()
        assert criterion.last is not None
        result[gather] = (loss.detach(), network.module.weight.grad, criterion.last.rows)
    gathered = MISTCriterion(small_model(), gather=True)
    few = gathered(x[:2, :1], x[:2])  # enough rows together
    assert few.isfinite()
    assert gathered.last is not None
    result["few"] = gathered.last.rows
    for key, own in (("error", x[: len(x) - rank]), ("dtype", x.double() if rank else x), ("too few", x[:1])):
        try:
            gathered(own, own)
            result[key] = ""
        except ValueError as error:
            result[key] = str(error)
    queue = QueuedCriterion(gathered, 64, 3, 3)
    wide = x[:, :3].double()
    lengths = []  # the broken rows are too much for the queue, not for the step
    for step in range(3):
        broken = torch.full_like(wide, 1e200) if step == 1 and rank == 0 else wide
        queue(wide + torch.arange(3), broken)
        lengths.append(queue.filled)
    result["queue"] = lengths
    for broadcast in (True, False):
        inside = nn.parallel.DistributedDataParallel(Inside(), broadcast_buffers=broadcast)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            inside(x)
            times.append(time.perf_counter() - start)
        result["seconds", broadcast] = sorted(times)[2]
    torch.save(result, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
