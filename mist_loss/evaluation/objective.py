"""What happens to the truth while an objective is optimised: ``mist-loss bench --suite objective``.

Encoders are trained on the problems of `mist_loss.evaluation.scenarios`, whose mutual information is known at every
step, by each loss of `mist_loss.evaluation.contenders`, from the same start, on the same batches, with the same
optimiser. An estimator that can be exploited shows as a gap between its number and the truth.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from mist_loss.evaluation import scenarios
from mist_loss.evaluation.contenders import CONTENDERS, Contender
from mist_loss.evaluation.results import replace
from mist_loss.evaluation.scenarios import Samples, Scenario, seeded
from mist_loss.model import weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LR = 1e-2
CHECKPOINTS = 20  # beside the start
BATCHES = 4  # fresh ones read at a checkpoint: a single batch of few rows says little about the estimator
GRADIENTS = 16  # further ones, at the checkpoints below only: while there is something left to climb
GRADIENT_CHECKPOINTS = (0, 1, 2, 4)
REPAIRINGS = 8
WARM_UP = 0.1  # share of the steps whose gap is no fault
QUICK_STEPS = 150


class Row(NamedTuple):
    """A checkpoint: a line of the CSV. Mutual information in nats, NaN for what there is none of.

    problem: digest of the scenario. weights: digest of the criterion's weights, empty for other losses. estimate, low,
    high: means over fresh batches. covered: share of these whose interval meets [truth_low, truth_high]. repaired: mean
    estimate for the same codes paired at random (free samples only). cosine, batch_cosine: see ``gradient_cosines``, at
    the first checkpoints. seconds: of processor time for a step of training, since the last checkpoint.
    """

    scenario: str
    direction: str
    rows: int
    dims: int
    best: float
    objective: str
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
        return Key(self.problem, self.objective, self.weights, self.seed, self.steps)

    @property
    def gap(self) -> float:
        """How far the estimate lies above (positive) or below what the truth can be."""
        return max(self.estimate - self.truth_high, 0.0) + min(self.estimate - self.truth_low, 0.0)


class Key(NamedTuple):
    """What the checkpoints of one training have in common, see ``Row``."""

    problem: str
    objective: str
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
    of_scenario = {name: getattr(scenario, name) for name in ("direction", "rows", "dims", "best")}
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
    return {"cosine": float(expected.clamp(max=1.0)), "batch_cosine": float(single)}


def run(seed: int, output: Path, model: str = "mist-base", quick: bool = False) -> str:
    """Run the suite and write ``objective.csv``, ``objective.md`` and ``objective.png``; finished trainings are kept.

    Args:
        seed: of encoders and batches.
        output: folder of the results.
        model: name of shipped weights or a .safetensors file.
        quick: three scenarios of a few steps.

    Returns:
        Markdown.

    Raises:
        ValueError: the model is not known, or a file in the way is not one of results.
        FileNotFoundError: the model's file is missing.
        ModuleNotFoundError: a library of a contender is missing.
    """
    digest = weights.sha256(weights.find(model))[:12]
    output.mkdir(parents=True, exist_ok=True)
    suite = scenarios.QUICK if quick else scenarios.FULL
    trainings = [(s, name, QUICK_STEPS if quick else s.steps) for s in suite for name in CONTENDERS[s.direction]]
    stored = _read(output / "objective.csv")
    rows: list[Row] = []
    with _one_thread():
        for scenario, name, steps in _progress(trainings):
            key = Key(_digest(scenario), name, digest if name == "mist" else "", seed, steps)
            done = [row for row in stored if row.key == key]
            if not done:
                done = train(scenario, model, key)
                stored += done
                replace(output / "objective.csv", _text(stored).encode())
            rows += done
    text = report(rows)
    replace(output / "objective.md", text.encode())
    _save(draw(rows), output / "objective.png")
    return text


def train(scenario: Scenario, model: str, key: Key) -> list[Row]:
    """All checkpoints of one training, by the contender that key names."""
    with seeded(key.seed):  # contenders may have weights of their own, and draw
        make = CONTENDERS[scenario.direction][key.objective]
        return list(optimise(scenario, make(scenario.dims, scenario.direction, model), key))


def report(rows: Sequence[Row]) -> str:
    """A table of trainings and one of their means, as Markdown."""
    return f"## Objectives\n\n{summary(rows)}\n## Over the scenarios\n\n{overall(rows)}"


def summary(rows: Sequence[Row]) -> str:
    """A line for each training. The truth is a range where it is only bounded; gaps are estimate minus truth."""
    head = ["scenario", "rows x dims", "steps", "objective", "truth at the start", "at the end", "best", "of the best"]
    head += [
        "estimate",
        "gap",
        "gap in %",
        "worst gap on the way",
        "interval contains it",
        "gradient cosine",
        "re-paired",
    ]
    lines = [[*head, "of one batch", "re-paired", "time of a step / fastest"]]
    trainings = list(_trainings(rows))
    for own in trainings:
        first, last = own[0], own[-1]
        fastest = min(_seconds(other) for other in trainings if other[0].problem == first.problem)
        lines.append(
            [
                *(first.scenario, f"{first.rows} x {first.dims}", str(first.steps), first.objective),
                *(_truth(first), _truth(last), _number(last.best), _percent(_reached(own))),
                *(_number(last.estimate), _number(last.gap, "+"), _percent(abs(last.gap) / last.truth_high)),
                *(_number(_worst(own), "+"), _percent(_mean(own, "covered")), _number(_mean(own, "cosine"))),
                *(_number(_mean(own, "batch_cosine")), _number(last.repaired), f"{_seconds(own) / fastest:.1f}"),
            ]
        )
    return _markdown(lines)


def overall(rows: Sequence[Row]) -> str:
    """A line for each objective and direction, over the scenarios with a truth."""
    head = ["direction", "objective", "trainings", "of the best, mean", "of the best, least", "truth left, largest"]
    lines = [[*head, "gap at the end, largest", "interval contains the truth, mean", "gradient cosine, mean"]]
    trainings = [own for own in _trainings(rows) if math.isfinite(own[-1].truth_high)]
    for direction, objective in dict.fromkeys((own[0].direction, own[0].objective) for own in trainings):
        part = [own for own in trainings if (own[0].direction, own[0].objective) == (direction, objective)]
        reached = [_reached(own) for own in part]
        left = max(own[-1].truth_high for own in part) if direction == "minimize" else math.nan
        gaps = [abs(own[-1].gap) for own in part]
        lines.append(
            [
                *(direction, objective, str(len(part)), _percent(_nanmean(reached)), _percent(min(reached))),
                *(_number(left), _number(max(gaps)), _percent(_nanmean([_mean(own, "covered") for own in part]))),
                _number(_nanmean([_mean(own, "cosine") for own in part])),
            ]
        )
    return _markdown(lines)


def draw(rows: Sequence[Row]) -> Figure:
    """Truth (solid) and estimate (dashed, with its interval) of every training, a panel for each scenario."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ModuleNotFoundError(f"figures need matplotlib ({error}): pip install matplotlib") from error
    trainings = list(_trainings(rows))
    problems = list(dict.fromkeys(own[0].problem for own in trainings))
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(own[0].objective for own in trainings))}
    width = min(4, len(problems))
    height = math.ceil(len(problems) / width)
    figure = Figure(figsize=(2.7 * width, 2.2 * height + 0.4), layout="constrained")
    panels = figure.subplots(height, width, squeeze=False).ravel()
    for axes, problem in zip(panels, problems, strict=False):
        for own in trainings:
            if own[0].problem == problem:
                _curve(axes, own, colours[own[0].objective])
    for axes in panels[len(problems) :]:
        axes.remove()
    figure.supxlabel("step", fontsize="small")
    figure.supylabel("nats: truth solid, estimate dashed, best dotted", fontsize="small")
    handles = [panels[0].plot([], [], color=colour, label=name)[0] for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize="small")
    return figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the suite."""
    parser.add_argument("--seed", type=int, default=0, help="seed of encoders and batches (default: %(default)s)")
    parser.add_argument(
        "--model", default="mist-base", help="name of shipped weights or a .safetensors file (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("bench"), metavar="DIR", help="folder of the results (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help=f"three scenarios of {QUICK_STEPS} steps")


def main(args: argparse.Namespace) -> int:
    """Run the suite and print its tables; returns the exit status."""
    print(run(args.seed, args.output, args.model, args.quick))
    return 0


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


def _progress(trainings: Sequence[tuple[Scenario, str, int]]) -> Iterator[tuple[Scenario, str, int]]:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ModuleNotFoundError(f"a progress bar needs tqdm ({error}): pip install tqdm") from error
    with tqdm(trainings, dynamic_ncols=True) as bar:
        for scenario, name, steps in bar:
            bar.set_description(f"{scenario.name}: {name}")
            yield scenario, name, steps


def _digest(scenario: Scenario) -> str:
    return hashlib.sha256(repr(scenario).encode()).hexdigest()[:12]


def _read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        head, *lines = list(csv.reader(file)) or [[]]
    if tuple(head) != Row._fields:
        raise ValueError(f"expected the columns {','.join(Row._fields)} in {path}, got {','.join(head)}: move it away")
    kinds = get_type_hints(Row).values()
    return [Row(*(kind(cell) for kind, cell in zip(kinds, line, strict=True))) for line in lines]


def _text(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([Row._fields, *rows])
    return text.getvalue()


def _trainings(rows: Sequence[Row]) -> Iterator[list[Row]]:
    for key in dict.fromkeys(row.key for row in rows):
        yield sorted((row for row in rows if row.key == key), key=lambda row: row.step)


def _reached(own: Sequence[Row]) -> float:
    """Share of the best that is certainly reached at the end of an ascent."""
    return own[-1].truth_low / own[-1].best if own[-1].direction == "maximize" else math.nan


def _worst(own: Sequence[Row]) -> float:
    return max((row.gap for row in own if row.step >= WARM_UP * row.steps), key=abs)


def _seconds(own: Sequence[Row]) -> float:
    return float(np.nanmedian([row.seconds for row in own]))


def _mean(own: Sequence[Row], column: str) -> float:
    return _nanmean([getattr(row, column) for row in own])


def _nanmean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _truth(row: Row) -> str:
    if row.truth_low == row.truth_high or math.isnan(row.truth_low):
        return _number(row.truth_high)
    return f"{_number(row.truth_low)} to {_number(row.truth_high)}"


def _curve(axes: Any, own: Sequence[Row], colour: str) -> None:
    step = [row.step for row in own]
    axes.plot(step, [row.truth_low for row in own], color=colour, linewidth=1.2)
    axes.plot(step, [row.estimate for row in own], color=colour, linewidth=1, linestyle="--")
    axes.fill_between(step, [r.low for r in own], [r.high for r in own], color=colour, alpha=0.2, linewidth=0)
    axes.axhline(own[0].best, color="0.4", linewidth=0.8, linestyle=":")
    axes.set_title(own[0].scenario, fontsize="small")
    axes.tick_params(labelsize="x-small")


def _save(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=90, metadata={"Software": None})
    replace(path, content.getvalue())


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = lines
    return "".join("| " + " | ".join(line) + " |\n" for line in [head, ["---"] * len(head), *body])


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}" if math.isfinite(value) else ""


def _percent(value: float) -> str:
    return f"{value:.0%}" if math.isfinite(value) else ""
