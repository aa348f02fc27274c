"""Encoders that ascend the estimator while it is trained, with the true mutual information of their codes.

Used as a loss, a fixed estimator is optimised, and what it gets wrong is what the encoder finds. So a share of the
training sets comes from encoders in the middle of such an ascent (or descent) on the estimator as it stands: linear
maps of Gaussian or Student-t views, whose mutual information has a closed form at every step, half of those that ascend
followed by trainable invertible layers, which can change the estimate but not the mutual information.
"""

import math
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mist_loss.meta.families import Problem, canonical_normal, student_mi, student_scale
from mist_loss.training.stream import SHARED, draw_seed, seeded

POOLS = 6  # visited in turn, one a step
INDEX = 31  # of the draws within a step; groups of the stream have smaller ones
HIDDEN = 16  # of a coupling layer


class Trial(NamedTuple):
    """What the encoders of one pool share: rows, dimensions of codes and views, Adam's step size, visits they live."""

    rows: int
    dx: int
    dy: int
    views: int
    lr: float
    life: int


def _log_uniform(low: float, high: float) -> float:
    return math.exp(math.log(low) + float(torch.rand(())) * math.log(high / low))


def draw_trial() -> Trial:
    """Draw 32 to 1,024 rows, and codes of 2 to 32 dimensions but no more than a third of the rows."""
    rows = round(_log_uniform(32, 1024))
    widest = min(32, rows // 3)
    dx = round(_log_uniform(2, widest))
    dy = dx if torch.rand(()) < 0.75 else round(_log_uniform(2, widest))
    views = round(max(dx, dy) * _log_uniform(1, 3))
    return Trial(rows, dx, dy, views, _log_uniform(3e-3, 3e-2), round(_log_uniform(40, 400)))


class Coupling(nn.Module):
    """Two trainable affine coupling layers for each of b encoders, the identity where ``bent`` (b,) is 0."""

    bent: Tensor

    def __init__(self, bent: Tensor, d: int):
        super().__init__()
        b, k = len(bent), d // 2
        self.register_buffer("bent", bent)
        self.inner, self.outer = nn.ParameterList(), nn.ParameterList()
        for known, changed in ((k, d - k), (d - k, k)):
            self.inner.append(torch.randn(b, known, HIDDEN, device=bent.device) / math.sqrt(known))
            self.outer.append(0.1 * torch.randn(b, HIDDEN, 2 * changed, device=bent.device))

    def forward(self, z: Tensor) -> Tensor:
        """Scale and shift each half by a function of the other: (b, n, d) -> (b, n, d)."""
        first, second = z[..., : z.shape[2] // 2], z[..., z.shape[2] // 2 :]
        for inner, outer in zip(self.inner, self.outer, strict=True):
            log_scale, shift = (self.bent[:, None, None] * (torch.tanh(first @ inner) @ outer)).chunk(2, dim=-1)
            first, second = second * torch.exp(torch.tanh(log_scale)) + shift, first
        return torch.cat([first, second], dim=-1)


class Pool(nn.Module):
    """b encoders of one trial, each with its own latents and direction: up three times out of four, else down.

    Args:
        trial: what they share.
        b: how many.
        device: where.
    """

    def __init__(self, trial: Trial, b: int, device: torch.device):
        super().__init__()
        self.trial = trial
        top = 0.3 + 0.69 * torch.rand(b, 1, device=device)
        decay = torch.exp(-torch.arange(trial.views, device=device) * torch.rand(b, 1, device=device) ** 2)
        self.rho = top * decay  # canonical correlations of the views
        heavy = torch.rand(b, device=device) < 0.25
        self.dof = torch.where(heavy, 1 + 9 * torch.rand(b, device=device), math.inf)
        self.sign = torch.where(torch.rand(b, device=device) < 0.75, 1.0, -1.0)
        # only upwards: a bend that hides dependence teaches nothing but doubt about all that looks independent
        bent = ((torch.rand(b, device=device) < 0.5) & (self.sign > 0)).float()
        scale = 1 / math.sqrt(trial.views)
        self.to_x = nn.Parameter(torch.randn(b, trial.dx, trial.views, device=device) * scale)
        self.to_y = nn.Parameter(torch.randn(b, trial.dy, trial.views, device=device) * scale)
        self.bend_x, self.bend_y = Coupling(bent, trial.dx), Coupling(bent, trial.dy)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=trial.lr, maximize=True)

    def mutual_information(self) -> Tensor:
        """(b,) nats of the codes: that of jointly Gaussian (or Student-t) linear codes; the bends leave it alone."""
        a, c, rho = self.to_x.detach().double(), self.to_y.detach().double(), self.rho.double()
        xx, yy, xy = a @ a.mT, c @ c.mT, (a * rho[:, None]) @ c.mT
        explained = torch.linalg.solve(yy, xy.mT)  # (b, dy, dx)
        gaussian = 0.5 * (torch.logdet(xx) - torch.logdet(xx - xy @ explained))
        heavy = self.dof.isfinite()
        tail = student_mi(torch.where(heavy, self.dof, 1.0), self.trial.dx, self.trial.dy)
        return (gaussian + torch.where(heavy, tail, 0.0)).float()

    def draw(self) -> Problem:
        """Codes of fresh views, attached to the encoders' graph, with their mutual information."""
        n, d = self.trial.rows, self.trial.views
        first, second, _ = canonical_normal(self.rho, n, d, d)
        heavy = self.dof.isfinite()
        scale = torch.where(heavy[:, None, None], student_scale(torch.where(heavy, self.dof, 1.0), n), 1.0)
        x, y = (
            bend(scale * (views @ (weight / weight.norm(dim=2, keepdim=True)).mT))  # bends want unit variance
            for views, weight, bend in ((first, self.to_x, self.bend_x), (second, self.to_y, self.bend_y))
        )
        return Problem(x, y, self.mutual_information())

    def step(self, codes: tuple[Tensor, Tensor], gradients: tuple[Tensor, Tensor]) -> None:
        """One step of Adam, given the gradient of the estimates, summed over the sets, with respect to the codes."""
        self.optimizer.zero_grad()
        torch.autograd.backward(codes, [self.sign[:, None, None] * g for g in gradients])
        self.optimizer.step()


class Adversaries:
    """The pools of one process. All processes have the same trials, each its own encoders.

    Args:
        seed: of the run.
        rank: of the process.
        device: where.
        step: at which the run starts or goes on; ``load`` then restores the encoders.
    """

    def __init__(self, seed: int, rank: int, device: torch.device, step: int = 0):
        self.seed, self.rank, self.device = seed, rank, device
        self.pools = [self._pool(i, self._started(i, step)) for i in range(POOLS)]

    def problem(self, step: int) -> tuple[Pool, Problem]:
        """The pool of this step, restarted if its time is over, and codes of fresh views with their graph."""
        i = step % POOLS
        start = self._started(i, step)
        if start == step:
            self.pools[i] = self._pool(i, start)
        with self._seeded(step, self.rank):
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
        """Restore what ``state`` gave at the step this object was made for."""
        for i, pool in enumerate(self.pools):
            for name, parameter in pool.named_parameters():
                parameter.data.copy_(tensors[f"{i}.{name}"])
                if f"{i}.{name}.step" in tensors:
                    pool.optimizer.state[parameter] = {
                        key: tensors[f"{i}.{name}.{key}"].to("cpu" if key == "step" else self.device)
                        for key in ("step", "exp_avg", "exp_avg_sq")
                    }

    def _seeded(self, step: int, process: int) -> AbstractContextManager[None]:
        return seeded(draw_seed(self.seed, step, process, INDEX), self.device)

    def _trial(self, start: int) -> Trial:
        with self._seeded(start, SHARED):
            return draw_trial()

    def _pool(self, i: int, start: int) -> Pool:
        trial = self._trial(start)
        with self._seeded(start, self.rank):
            return Pool(trial, max(8, min(32, 8000 // trial.rows)), self.device)

    def _started(self, i: int, step: int) -> int:
        """The step at which the pool i that is in use at ``step`` began: a pure function, replayed from the start."""
        start = i
        # the first lives are cut short, so that the pools do not all restart together
        life = max(1, self._trial(start).life * (i + 1) // POOLS)
        while start + life * POOLS <= step:
            start += life * POOLS
            life = self._trial(start).life
        return start
