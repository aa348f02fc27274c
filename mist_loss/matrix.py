"""Mutual information between single columns, pair by pair: ``mi_matrix``, and ``mist-loss estimate --matrix``."""

import csv
import io
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from mist_loss.estimate import Estimate, estimate_mi
from mist_loss.files import replacing, write_text
from mist_loss.model.network import MIST
from mist_loss.validation import as_floats

ROWS_AT_ONCE = 1 << 16  # of the sets between two reports of progress, and in the memory of a GPU


def mi_matrix(
    x: ArrayLike,
    y: ArrayLike | None = None,
    level: float = 0.9,
    model: str | Path | MIST = "mist-base",
    progress: Callable[[int, int], None] | None = None,
) -> Estimate:
    """Estimate I(x_i; y_j) for every column i of x and every column j of y.

    Args:
        x: (n, p) numbers, a row an observation.
        y: (n, q), or None for x itself: the matrix is then symmetric, and NaN on its diagonal, since a continuous
            variable shares infinitely many nats with itself.
        level: probability of the intervals, in (0, 1).
        model: as for ``estimate_mi``.
        progress: called with the pairs done and their number.

    Returns:
        Estimate(value, low, high) of (p, q) float32 each, in nats.

    Raises:
        ValueError: input that ``estimate_mi`` refuses.
    """
    first = _columns("x", x)
    second = first if y is None else _columns("y", y)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"expected as many rows in x as in y, got {first.shape[1]} and {second.shape[1]}: "
            "row i of x and row i of y must be one joint observation"
        )
    p, q = len(first), len(second)
    # whatever the default device and precision are: the columns lie on the CPU
    chosen = torch.ones(p, q, dtype=torch.bool, device="cpu")
    rows, cols = (chosen.triu(1) if y is None else chosen).nonzero().T
    count = max(1, ROWS_AT_ONCE // max(1, first.shape[1]))
    network = MIST.from_pretrained(model) if not isinstance(model, MIST) else model
    result = torch.full((3, p, q), torch.nan, dtype=torch.float32, device="cpu")
    if p and not len(rows):  # no pair, but bad input is bad input
        estimate_mi(first[0, :, None], first[0, :, None], level, network)
    for start in range(0, len(rows), count):
        i, j = rows[start : start + count], cols[start : start + count]
        with torch.no_grad():
            result[:, i, j] = torch.stack(estimate_mi(first[i, :, None], second[j, :, None], level, network)).float()
        if progress is not None:
            progress(min(start + count, len(rows)), len(rows))
    if y is None:
        result.diagonal(dim1=1, dim2=2).fill_(torch.nan)
        result[:, cols, rows] = result[:, rows, cols]
    return Estimate(*result)


def _columns(name: str, sample: ArrayLike) -> Tensor:
    """(d, n) float64, of a sample (n, d)."""
    array = as_floats(name, sample)
    if array.ndim != 2:
        raise ValueError(f"expected {name} of shape (n, d), got {array.shape}: a single feature is {name}[:, None]")
    refuse_missing(array, [f"{name}[:, {i}]" for i in range(array.shape[1])])
    return torch.from_numpy(array.T.copy())


def refuse_missing(array: np.ndarray, names: list[str]) -> None:
    """Refuse columns (n, d) of these names where a value is NaN or infinite.

    Raises:
        ValueError: one is.
    """
    bad = (~np.isfinite(array)).sum(0)
    if bad.any():
        worst = int(bad.argmax())
        raise ValueError(
            f"expected finite values, got {bad.sum()} NaN or infinite in {(bad > 0).sum()} of {len(bad)} columns, "
            f"most in {names[worst]} ({bad[worst]}): drop those rows, or leave out those columns"
        )


def to_csv(values: Tensor, rows: list[str], columns: list[str]) -> str:
    """A table with the names in its first column and line; NaN becomes an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["", *columns])
    for name, line in zip(rows, values.tolist(), strict=True):
        writer.writerow([name, *("" if cell != cell else f"{cell:.4f}" for cell in line)])
    return text.getvalue()


def require_matplotlib() -> None:
    """Say what a heat map lacks, before a long run.

    Raises:
        ModuleNotFoundError: matplotlib is missing, the extra ``tables``.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a heat map needs matplotlib: pip install 'mist-loss[tables]'") from error


def heat_map(values: Tensor, rows: list[str], columns: list[str], path: Path) -> None:
    """Draw the matrix, in nats, with the numbers in the cells where there is room for them.

    Raises:
        ModuleNotFoundError: matplotlib is missing, the extra ``tables``.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    width, height = (min(2.5 + 0.5 * len(names), 30) for names in (columns, rows))
    figure = Figure(figsize=(width + 1, height), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values.numpy(), vmin=0, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=90, parse_math=False)
    axes.set_yticks(range(len(rows)), rows, parse_math=False)
    if max(len(rows), len(columns)) <= 30:
        limit = 0.6 * np.nanmax(values.numpy(), initial=0)
        for (i, j), value in np.ndenumerate(values.numpy()):
            if value == value:
                shade = "black" if value > limit else "white"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=shade, fontsize=8)
    figure.colorbar(image, label="mutual information (nats)")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


def write(path: Path, values: Tensor, rows: list[str], columns: list[str]) -> Iterable[Path]:
    """Write the table to ``path``, then the heat map beside it, as .png; the two paths."""
    picture = path.with_suffix(".png")
    write_text(path, to_csv(values, rows, columns))
    heat_map(values, rows, columns, picture)
    return path, picture


def show_progress(done: int, total: int) -> None:
    """One line on a terminal's stderr, overwritten; silent elsewhere."""
    if sys.stderr.isatty():
        print(f"\r{done} of {total} pairs", end="\n" if done == total else "", file=sys.stderr, flush=True)
