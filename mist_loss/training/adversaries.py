"""Encoders that ascend the estimator while it is trained, and what is known of their codes.

Used as a loss, a fixed estimator is optimised, and what it gets wrong is what the encoder finds. So a share of the
training sets comes from encoders in the middle of such an ascent (or descent) on the estimator as it stands: a third of
the pools are networks, half are linear, one has free rows, see ``mist_loss.training.pools``.
"""

import math
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from mist_loss.seeding import seeded
from mist_loss.training.pools import Codes, FlexiblePool, LinearPool, Pool, SamplePool, Trial
from mist_loss.training.stream import ROW_BUDGET, SHARED, SMALLEST, draw_seed

VISITS = 4  # a step of the training
# a visit has half as many sets as a group and counts half, so that a run meets more trials
WEIGHT = 0.5
FEWEST, MOST, ROWS = (round(WEIGHT * size) for size in (SMALLEST, 32, ROW_BUDGET))
# visited in turn
KINDS = (LinearPool, FlexiblePool, SamplePool, LinearPool, FlexiblePool, LinearPool)
POOLS = len(KINDS)
INDEX = 31  # of the draws within a visit, numbered as steps are; groups of the stream have smaller ones


def _log_uniform(low: float, high: float) -> float:
    return math.exp(math.log(low) + float(torch.rand(())) * math.log(high / low))


def draw_trial() -> Trial:
    """Draw 32 to 1,024 rows, and codes of 2 to 40 dimensions, at most a third of the rows; half of x on a log scale."""
    rows = round(_log_uniform(32, 1024))
    widest = min(40, rows // 3)
    dx = round(_log_uniform(2, widest)) if torch.rand(()) < 0.5 else int(torch.randint(2, widest + 1, ()))
    dy = dx if torch.rand(()) < 0.75 else round(_log_uniform(2, widest))
    views = round(max(dx, dy) * _log_uniform(1, 3))
    lr, life = _log_uniform(3e-3, 3e-2), round(_log_uniform(30, 250))
    return Trial(rows, dx, dy, views, lr, life, guided=bool(torch.rand(()) < 0.5))


class Adversaries:
    """The pools of one process. All processes have the same trials, each its own encoders.

    Args:
        seed: of the run.
        rank: of the process.
        device: where.
        visit: at which the run starts or goes on; ``load`` then restores the encoders.
    """

    def __init__(self, seed: int, rank: int, device: torch.device, visit: int = 0):
        self.seed, self.rank, self.device = seed, rank, device
        self.pools = [self._pool(i, self._started(i, visit)) for i in range(POOLS)]

    def codes(self, visit: int) -> tuple[Pool, Codes]:
        """The pool of this visit, restarted if its time is over, and codes of fresh views with their graph."""
        i = visit % POOLS
        start = self._started(i, visit)
        if start == visit:
            self.pools[i] = self._pool(i, start)
        with self._seeded(visit, self.rank):
            return self.pools[i], self.pools[i].draw()

    def state(self) -> dict[str, Tensor]:
        """Parameters of the encoders and their moments, by name."""
        tensors = {}
        for i, pool in enumerate(self.pools):
            for name, parameter in pool.named_parameters():
                tensors[f"{i}.{name}"] = parameter.detach()
                moments = pool.optimizer.state.get(parameter, {})
                tensors |= {f"{i}.{name}.{key}": moments[key] for key in ("step", "exp_avg", "exp_avg_sq") if moments}
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what ``state`` gave at the visit this object was made for.

        Raises:
            ValueError: the state has other encoders, as one of another version.
        """
        expected = {f"{i}.{name}" for i, pool in enumerate(self.pools) for name, _ in pool.named_parameters()}
        if missing := expected - set(tensors):
            raise ValueError(f"the checkpoint has other encoders, without {min(missing)}: go on with its version")
        for i, pool in enumerate(self.pools):
            for name, parameter in pool.named_parameters():
                parameter.data.copy_(tensors[f"{i}.{name}"])
                if f"{i}.{name}.step" in tensors:
                    pool.optimizer.state[parameter] = {
                        key: tensors[f"{i}.{name}.{key}"].to("cpu" if key == "step" else self.device)
                        for key in ("step", "exp_avg", "exp_avg_sq")
                    }

    def _seeded(self, visit: int, process: int) -> AbstractContextManager[None]:
        return seeded(draw_seed(self.seed, visit, process, INDEX), self.device)

    def _trial(self, start: int) -> Trial:
        with self._seeded(start, SHARED):
            return draw_trial()

    def _pool(self, i: int, start: int) -> Pool:
        trial = self._trial(start)
        with self._seeded(start, self.rank):
            kind = KINDS[i]
            return kind(trial, max(FEWEST, min(MOST, ROWS // trial.rows)), self.device)

    def _started(self, i: int, visit: int) -> int:
        """The visit at which the pool i that is in use at ``visit`` began: a pure function, replayed from the start."""
        start = i
        # the first lives are cut short, so that the pools do not all restart together
        life = max(1, self._trial(start).life * (i + 1) // POOLS)
        while start + life * POOLS <= visit:
            start += life * POOLS
            life = self._trial(start).life
        return start
