"""What happens to the truth while an objective is optimised: ``mist-loss bench --suite objective``.

Encoders are trained on the problems of `mist_loss.evaluation.scenarios`, whose mutual information is known at every
step, by each loss of `mist_loss.evaluation.contenders`, from the same start, on the same batches, with the same
optimiser. An estimator that can be exploited shows as a gap between its number and the truth.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mist_loss.evaluation import lines, scenarios
from mist_loss.evaluation.contenders import Contender, Named
from mist_loss.evaluation.scenarios import Samples, Scenario
from mist_loss.files import write_text
from mist_loss.seeding import seeded

LR = 1e-2
CHECKPOINTS = 20  # beside the start
BATCHES = 4  # fresh ones read at a checkpoint: a single batch of few rows says little about the estimator
GRADIENTS = 16  # further ones, at the checkpoints below only: while there is something left to climb
GRADIENT_CHECKPOINTS = (0, 1, 2, 4)
REPAIRINGS = 8
QUICK_STEPS = 150


class Row(NamedTuple):
    """A checkpoint: a line of the CSV. Mutual information in nats, NaN for what there is none of.

    kind, direction, rows, dims, best: of the `Scenario`. loss: its name. problem: digest of the scenario. weights: of
    the sha256 of the criterion's weights, empty for other losses. estimate, low, high: means over fresh batches.
    covered: share of these whose interval meets [truth_low, truth_high]. repaired: mean estimate for the same codes
    paired at random (free samples only). cosine, batch_cosine: see ``gradient_cosines``, at the first checkpoints.
    seconds: of processor time for a step of training, since the last checkpoint.
    """

    scenario: str
    kind: str
    direction: str
    rows: int
    dims: int
    best: float
    loss: str
    problem: str
    weights: str
    seed: int
    steps: int
    step: int
    estimate: float
    low: float
    high: float
    truth_low: float
    truth_high: float
    covered: float
    repaired: float
    seconds: float
    cosine: float = math.nan
    batch_cosine: float = math.nan

    @property
    def key(self) -> Key:
        """What the checkpoints of one training have in common."""
        return Key(self.problem, self.loss, self.weights, self.seed, self.steps)

    @property
    def gap(self) -> float:
        """How far the estimate lies above (positive) or below what the truth can be."""
        return max(self.estimate - self.truth_high, 0.0) + min(self.estimate - self.truth_low, 0.0)


class Key(NamedTuple):
    """What the checkpoints of one training have in common, see ``Row``."""

    problem: str
    loss: str
    weights: str
    seed: int
    steps: int


def optimise(scenario: Scenario, contender: Contender, key: Key) -> Iterator[Row]:
    """Train fresh encoders and measure them on the way.

    Adam with a cosine decay to 0, a fresh batch a step. Encoders and batches depend on scenario and seed alone.

    Args:
        scenario: the problem.
        contender: the loss.
        key: seed, steps of the optimiser, and what else the rows shall say of the training.

    Yields:
        a row measured before every step that is a checkpoint, and one after the last step.
    """
    seed, steps = key.seed, key.steps
    with seeded(_draw(seed, 0, BATCHES + GRADIENTS + 1)):
        first, second = scenario.encoders()
    of_scenario = {name: getattr(scenario, name) for name in ("kind", "direction", "rows", "dims", "best")}
    parameters = [*first.parameters(), *second.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    marks = [round(i * steps / CHECKPOINTS) for i in range(CHECKPOINTS + 1)]
    gradient_marks = [marks[i] for i in GRADIENT_CHECKPOINTS]
    elapsed, taken = 0.0, 0
    for step in range(steps + 1):
        if step in marks:
            numbers = measure(scenario, first, second, contender, seed, step)
            if step in gradient_marks:
                numbers |= gradient_cosines(scenario, first, second, contender, seed, step)
            seconds = elapsed / taken if taken else math.nan
            yield Row(scenario.name, **of_scenario, **key._asdict(), step=step, **numbers, seconds=seconds)
            elapsed, taken = 0.0, 0
        if step == steps:
            return
        x, y = _batch(scenario, seed, step, 0)
        start = time.process_time()
        optimizer.zero_grad()
        loss, _ = contender(first(x), second(y))
        loss.backward()
        optimizer.step()
        schedule.step()
        elapsed, taken = elapsed + time.process_time() - start, taken + 1


def measure(
    scenario: Scenario, first: nn.Module, second: nn.Module, contender: Contender, seed: int, step: int
) -> dict[str, Any]:
    """The contender's reading of fresh batches beside the truth, without changing the encoders.

    Returns:
        columns of a ``Row``; no cosines.
    """
    low, high = (float(t.detach()) for t in scenario.truth(first, second))
    readings = []
    for k in range(1, BATCHES + 1):
        x, y = _batch(scenario, seed, step, k)
        readings.append(contender(first(x), second(y))[1])
    value = np.array(readings)
    inside = (value[:, 1] <= high) & (low <= value[:, 2])
    covered = float(inside.mean()) if np.isfinite([*value[:, 1], low]).all() else math.nan
    repaired = _repaired(first, second, contender, seed) if isinstance(scenario, Samples) else math.nan
    reading = dict(zip(("estimate", "low", "high"), value.mean(0).tolist(), strict=True))
    return reading | {"truth_low": low, "truth_high": high, "covered": covered, "repaired": repaired}


def gradient_cosines(
    scenario: Scenario, first: nn.Module, second: nn.Module, contender: Contender, seed: int, step: int
) -> dict[str, Any]:
    """Cosines with the gradient of the true mutual information, over all weights of the encoders.

    With few rows most of a batch's gradient is sampling noise, whatever the estimator. So there are two: that of the
    expected gradient, whose squared norm is estimated by the products of different batches, which have no noise in
    common, and the mean over single batches, which is what a step follows.

    Returns:
        ``cosine`` and ``batch_cosine`` of a ``Row``; empty where the truth has no formula, NaN where noise hides all.
    """
    parameters = [*first.parameters(), *second.parameters()]
    truth = scenario.truth(first, second).low
    if not truth.requires_grad:
        return {}
    exact = _flat(torch.autograd.grad(truth, parameters))
    gradients = []
    for k in range(BATCHES + 1, BATCHES + GRADIENTS + 1):
        x, y = _batch(scenario, seed, step, k)
        gradients.append(_flat(torch.autograd.grad(contender(first(x), second(y))[0], parameters)))
    products = torch.stack(gradients) @ torch.stack(gradients).T
    along = torch.stack(gradients) @ exact / exact.norm()
    if scenario.direction == "maximize":
        along = -along
    squared_norm = (products.sum() - products.trace()) / (GRADIENTS * (GRADIENTS - 1))
    expected = along.mean() / squared_norm.sqrt()  # NaN for a negative one
    single = (along / products.diagonal().sqrt()).mean()
    # a quotient of two noisy numbers may leave the range
    return {"cosine": float(expected.clamp(-1.0, 1.0)), "batch_cosine": float(single)}


def run(seed: int, contenders: Sequence[Named], file: Path, quick: bool = False) -> list[Row]:
    """Train what the file lacks, each scenario with every loss for its direction; a finished training is kept at once.

    Args:
        seed: of encoders and batches.
        contenders: each a name once.
        file: CSV of every checkpoint, of this and other runs; results of a loss with other weights are dropped.
        quick: three scenarios of a few steps.

    Returns:
        the checkpoints asked for, training by training, by scenario.

    Raises:
        ValueError: the file is not one of results.
        ModuleNotFoundError: a library of a loss is missing.
    """
    suite = scenarios.QUICK if quick else scenarios.FULL
    trainings = [(s, loss) for s in suite for loss in contenders if s.direction in loss.directions]
    hashes = {loss.name: loss.weights[:12] for loss in contenders}
    stored = [row for row in lines.read(file, Row) if hashes.get(row.loss, row.weights) == row.weights]
    file.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with _one_thread():
        for scenario, loss in _progress(trainings):
            key = Key(_digest(scenario), loss.name, hashes[loss.name], seed, QUICK_STEPS if quick else scenario.steps)
            done = [row for row in stored if row.key == key]
            if not done:
                done = train(scenario, loss, key)
                stored += done
                write_text(file, lines.to_text([Row._fields, *stored]))
            rows += done
    return rows


def train(scenario: Scenario, loss: Named, key: Key) -> list[Row]:
    """All checkpoints of one training."""
    with seeded(key.seed):  # a loss may have weights of its own, and draw
        return list(optimise(scenario, loss.make(scenario.dims, scenario.direction), key))


def trainings_of(rows: Sequence[Row]) -> list[list[Row]]:
    """The checkpoints of each training, by step."""
    keys = dict.fromkeys(row.key for row in rows)
    return [sorted((row for row in rows if row.key == key), key=lambda row: row.step) for key in keys]


def _draw(seed: int, step: int, batch: int) -> int:
    return (seed * 1_000_003 + step * (BATCHES + GRADIENTS + 2) + batch) % 2**63


def _batch(scenario: Scenario, seed: int, step: int, batch: int) -> tuple[Tensor, Tensor]:
    with seeded(_draw(seed, step, batch)):
        return scenario.views(scenario.rows)


def _flat(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients])


@torch.no_grad()
def _repaired(first: nn.Module, second: nn.Module, contender: Contender, seed: int) -> float:
    z1, z2 = (sample(torch.empty(0)) for sample in (first, second))
    with seeded(seed):
        return sum(contender(z1, z2[torch.randperm(len(z2))])[1].value for _ in range(REPAIRINGS)) / REPAIRINGS


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small matrices gain nothing from threads, and times compare better without."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _progress(trainings: Sequence[tuple[Scenario, Named]]) -> Iterator[tuple[Scenario, Named]]:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ModuleNotFoundError('a progress bar needs tqdm: pip install "mist-loss[bmi]"') from error
    with tqdm(trainings, dynamic_ncols=True) as bar:
        for scenario, loss in bar:
            bar.set_description(f"{scenario.name}: {loss.name}")
            yield scenario, loss


def _digest(scenario: Scenario) -> str:
    return hashlib.sha256(repr(scenario).encode()).hexdigest()[:12]
