"""``mist-loss bench``: estimates on test corpora with known MI, as a table and a CSV of every item."""

from __future__ import annotations

import argparse
import csv
import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mist_loss.evaluation import corpora, metrics
from mist_loss.evaluation.corpora import Item
from mist_loss.validation import MIN_ROWS

LEVEL = 0.9
DEFAULT_ROWS = (500, 1000)


class Interval(Protocol):
    """What an estimator returns, as `mist_loss.estimate.Estimate` does: 0-d tensors, in nats."""

    @property
    def value(self) -> Tensor:
        """The point estimate."""

    @property
    def low(self) -> Tensor:
        """Lower end of the interval."""

    @property
    def high(self) -> Tensor:
        """Upper end of the interval."""


Estimator = Callable[[Tensor, Tensor], Interval]


class Result(NamedTuple):
    """One estimate beside the truth; a row of the CSV. MI in nats."""

    corpus: str
    name: str
    held_out: bool
    rows: int
    dim_x: int
    dim_y: int
    mi: float
    value: float
    low: float
    high: float


class Columns(NamedTuple):
    """The numbers of several results as arrays (k,)."""

    rows: np.ndarray
    mi: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def evaluate(corpus: str, items: Iterable[Item], estimator: Estimator) -> list[Result]:
    """Estimates for every item of a corpus, one forward pass each, without gradients.

    Args:
        corpus: its name in the results.
        items: samples with known MI.
        estimator: x (n dx), y (n dy) -> value, low and high, in nats.
    """
    results = []
    with torch.no_grad():
        for item in items:
            estimate = estimator(torch.from_numpy(item.x), torch.from_numpy(item.y))
            value, low, high = (float(number) for number in (estimate.value, estimate.low, estimate.high))
            results.append(Result(corpus, item.name, item.held_out, item.rows, *item.dims, item.mi, value, low, high))
    return results


def paper_table(results: Sequence[Result], model: str) -> str:
    """Markdown: MSE and coverage by bucket of rows for each group of the grid, predict-the-mean beside it."""
    lines = [
        ["group", "estimator", *(f"MSE, {name} rows" for name in metrics.BUCKETS)]
        + [f"coverage of {LEVEL:.0%}, {name}" for name in metrics.BUCKETS]
    ]
    for group in _unique(result.corpus for result in results):
        part = _columns([result for result in results if result.corpus == group])
        errors = metrics.by_bucket(metrics.mse, part.rows, part.value, part.mi)
        covered = metrics.by_bucket(metrics.coverage, part.rows, part.low, part.high, part.mi)
        constant = metrics.by_bucket(metrics.mse, part.rows, metrics.predict_the_mean(part.mi), part.mi)
        lines.append([group, model, *map(_number, errors.values()), *map(_share, covered.values())])
        lines.append([group, "predict the mean", *map(_number, constant.values()), *("" for _ in covered)])
    return _markdown(lines)


def bmi_table(results: Sequence[Result], model: str) -> str:
    """Markdown: MAE and coverage at each row count over BMI's tasks: all, held-out families, the others."""
    subsets = {
        "all tasks": list(results),
        "without held-out families": [result for result in results if not result.held_out],
        "held-out families": [result for result in results if result.held_out],
    }
    counts = _unique(result.rows for result in results)
    lines = [
        ["tasks", "number", "estimator", *(f"MAE, n = {rows}" for rows in counts)]
        + [f"coverage of {LEVEL:.0%}, n = {rows}" for rows in counts]
    ]
    for subset, chosen in subsets.items():
        if not chosen:
            continue
        parts = [_columns([result for result in chosen if result.rows == rows]) for rows in counts]
        errors = [_number(metrics.mae(part.value, part.mi)) for part in parts]
        covered = [_share(metrics.coverage(part.low, part.high, part.mi)) for part in parts]
        number = str(len({result.name for result in chosen}))
        lines.append([subset, number, model, *errors, *covered])
    return _markdown(lines)


def bench(
    suite: str, estimator: Estimator, model: str, seed: int, rows: Sequence[int], output: Path
) -> tuple[str, list[Result]]:
    """Runs an estimator on a suite and writes ``{suite}.csv`` and ``{suite}.md``.

    Corpora are cached in ``output/corpora`` and read from there the next time.

    Args:
        suite: ``paper`` or ``bmi``.
        estimator: x (n dx), y (n dy) -> value, low and high, in nats.
        model: its name in the table.
        seed: of the corpora.
        rows: row counts of the ``bmi`` suite; the paper's grid has its own.
        output: folder of the results.

    Returns:
        the Markdown table and every result.

    Raises:
        ModuleNotFoundError: if a corpus must be built and BMI is missing.
    """
    folder = output / "corpora"
    loaded = _paper_corpora(seed, folder) if suite == "paper" else _bmi_corpora(rows, seed, folder)
    results: list[Result] = []
    for corpus, items in loaded.items():
        results += evaluate(corpus, _progress(items, f"estimating {corpus}"), estimator)
    text = paper_table(results, model) if suite == "paper" else bmi_table(results, model)
    output.mkdir(parents=True, exist_ok=True)
    write_csv(output / f"{suite}.csv", results)
    _replace(output / f"{suite}.md", text)
    return text, results


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """One line for each result, with a header."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(Result._fields)
    writer.writerows(results)
    _replace(path, table.getvalue())


def _replace(path: Path, text: str) -> None:
    """Writes a file whole: under a temporary name, then renamed."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``mist-loss bench``."""
    parser.add_argument(
        "--suite",
        choices=("paper", "bmi"),
        default="paper",
        help="paper: the test grid of the MIST paper; bmi: the forty tasks of BMI (default: %(default)s)",
    )
    parser.add_argument(
        "--model",
        default="mist-base",
        help="name of shipped weights or a .safetensors file (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the test samples (default: %(default)s)")
    parser.add_argument(
        "--rows",
        type=_row_counts,
        metavar="N,N,...",
        help=f"row counts of the bmi suite (default: {','.join(map(str, DEFAULT_ROWS))})",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("bench"),
        metavar="DIR",
        help="folder for the table, the CSV and the cached samples (default: %(default)s)",
    )


def main(args: argparse.Namespace) -> int:
    """Runs ``mist-loss bench`` and prints its table; returns the exit status.

    Raises:
        ValueError: if row counts are given for the paper's grid, or the model is not known.
        FileNotFoundError: if the model's file is missing.
        ModuleNotFoundError: if a corpus must be built and BMI is missing.
    """
    if args.suite == "paper" and args.rows is not None:
        raise ValueError("--rows belongs to --suite bmi: the paper's grid has its own row counts")
    rows = args.rows or DEFAULT_ROWS
    table, _ = bench(args.suite, _pretrained(args.model), args.model, args.seed, rows, args.output)
    print(table)
    return 0


def _pretrained(name: str) -> Estimator:
    from mist_loss.estimate import estimate_mi
    from mist_loss.model.network import MIST

    model = MIST.from_pretrained(name)
    return lambda x, y: estimate_mi(x, y, level=LEVEL, model=model)


def _paper_corpora(seed: int, folder: Path) -> dict[str, list[Item]]:
    def load(group: str) -> list[Item]:
        return corpora.cached(
            folder / f"paper-{group}-seed{seed}.npz",
            {"corpus": f"paper-{group}", "seed": seed},
            lambda: _progress(corpora.paper_grid(group, seed), f"building {group}", corpora.grid_size(group)),
        )

    return {group: load(group) for group in corpora.PAPER_GRID}


def _bmi_corpora(rows: Sequence[int], seed: int, folder: Path) -> dict[str, list[Item]]:
    def load(n: int) -> list[Item]:
        return corpora.cached(
            folder / f"bmi40-rows{n}-seed{seed}.npz",
            {"corpus": "bmi40", "rows": n, "seed": seed},
            lambda: corpora.bmi40(n, seed),
        )

    return {f"bmi40-rows{n}": load(n) for n in rows}


def _progress(items: Iterable[Any], description: str, total: int | None = None) -> Iterable[Any]:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ModuleNotFoundError('a progress bar needs tqdm: pip install "mist-loss[bmi]"') from error
    return tqdm(items, desc=description, total=total, dynamic_ncols=True)


def _row_counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < MIN_ROWS:
        raise argparse.ArgumentTypeError(f"expected row counts of {MIN_ROWS} or more, such as 500,1000, got {text!r}")
    return counts


def _columns(results: Sequence[Result]) -> Columns:
    table = [(result.rows, result.mi, result.value, result.low, result.high) for result in results]
    return Columns(*np.array(table, dtype=np.float64).T)


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = lines
    return "".join("| " + " | ".join(line) + " |\n" for line in [head, ["---"] * len(head), *body])


def _number(value: float) -> str:
    return f"{value:.3g}"


def _share(value: float) -> str:
    return f"{value:.0%}"
