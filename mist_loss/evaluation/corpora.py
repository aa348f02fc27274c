"""Fixed test corpora with known MI: the grid of the MIST paper and BMI's forty tasks.

Samples come from BMI's own samplers (see `mist_loss.meta.bmi`), so a corpus shares no code with what trains
the estimator. Building one needs ``pip install "mist-loss[bmi]"``; a cached one is read without it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from mist_loss.meta import bmi
from mist_loss.meta.mixtures import PAPER_IMD, PAPER_OOMD

if TYPE_CHECKING:
    from bmi import Task

PAPER_GRID: dict[str, tuple[str, ...]] = {"imd": PAPER_IMD, "oomd": PAPER_OOMD}
GRID_ROWS = tuple(int(rows) for rows in np.linspace(10, 500, 20).round())
GRID_DIMS = (2, 32)
GRID_REPEATS = 9

# Families that no training mixture may contain: they measure generalisation.
HELD_OUT = ("spiral", "swissroll", "bimodal")

_FORMAT = 1


class Item(NamedTuple):
    """One sample of one distribution: ``x`` (n dx) and ``y`` (n dy), float32, with I(x; y) = ``mi`` nats."""

    name: str
    x: np.ndarray
    y: np.ndarray
    mi: float
    held_out: bool = False

    @property
    def rows(self) -> int:
        """Number of rows n."""
        return self.x.shape[0]

    @property
    def dims(self) -> tuple[int, int]:
        """Dimensions (dx, dy) of the two sides."""
        return self.x.shape[1], self.y.shape[1]


def paper_grid(group: str, seed: int) -> Iterator[Item]:
    """The MIST paper's test grid: 9 distributions for each configuration and row count.

    Parameters and the dimension, the same for both sides, are drawn anew for every item. An item depends on
    the seed and on its place in the grid only.

    Args:
        group: ``imd`` (configurations trained on; 1080 items) or ``oomd`` (left out of training; 1260 items).
        seed: of the whole grid.

    Raises:
        ValueError: if the group is not known.
        ModuleNotFoundError: if BMI is missing.
    """
    if group not in PAPER_GRID:
        raise ValueError(f"expected a group of the grid, one of {', '.join(PAPER_GRID)}, got {group!r}")
    bmi.import_bmi()
    places = [
        (configuration, row, repeat)
        for configuration in range(len(PAPER_GRID[group]))
        for row in range(len(GRID_ROWS))
        for repeat in range(GRID_REPEATS)
    ]
    group_index = list(PAPER_GRID).index(group)
    return (_grid_item(group, place, np.random.default_rng([seed, group_index, *place])) for place in places)


def grid_size(group: str) -> int:
    """Number of items of `paper_grid`."""
    return len(PAPER_GRID[group]) * len(GRID_ROWS) * GRID_REPEATS


def bmi40(rows: int, seed: int) -> Iterator[Item]:
    """BMI's forty benchmark tasks; spirals, the Swiss roll and bimodal Gaussians are marked as held out.

    Args:
        rows: of each item.
        seed: of the samples; the tasks themselves are fixed.

    Raises:
        ValueError: if ``rows`` is not positive.
        ModuleNotFoundError: if BMI is missing.
    """
    if rows < 1:
        raise ValueError(f"expected at least one row, got {rows}")
    tasks = bmi.import_bmi().BENCHMARK_TASKS
    return (
        _item(identifier, task, rows, seed, rows, held_out=any(family in identifier for family in HELD_OUT))
        for identifier, task in tasks.items()
    )


def cached(path: Path, request: dict[str, Any], build: Callable[[], Iterable[Item]]) -> list[Item]:
    """The corpus in ``path`` if it answers ``request``; otherwise what ``build`` makes, then stored there.

    Raises:
        ValueError: if the file exists and cannot be read.
    """
    if path.exists():
        stored, items = load(path)
        if stored == request:
            return items
    built = list(build())
    save(path, request, built)
    return built


def save(path: Path, request: dict[str, Any], items: Sequence[Item]) -> None:
    """Writes a corpus as ``.npz``, atomically: readers see the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            np.savez(
                file,
                header=np.array(json.dumps({"format": _FORMAT, "request": request})),
                name=np.array([item.name for item in items], dtype=np.str_),
                shape=np.array([(item.rows, *item.dims) for item in items], dtype=np.int64).reshape(-1, 3),
                mi=np.array([item.mi for item in items], dtype=np.float64),
                held_out=np.array([item.held_out for item in items], dtype=bool),
                x=_flat([item.x for item in items]),
                y=_flat([item.y for item in items]),
            )
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load(path: Path) -> tuple[dict[str, Any], list[Item]]:
    """Reads what `save` wrote: the request and the items.

    Raises:
        ValueError: if the file is not a corpus of this version.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            columns = {key: stored[key] for key in stored.files}
        header = json.loads(str(columns["header"]))
    except (OSError, EOFError, BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"cannot read the cached corpus {path} ({error}): delete it") from error
    if header["format"] != _FORMAT:
        raise ValueError(f"expected format {_FORMAT} in {path}, got {header['format']}: delete it")
    shape = columns["shape"]
    xs = _pieces(columns["x"], shape[:, 0] * shape[:, 1])
    ys = _pieces(columns["y"], shape[:, 0] * shape[:, 2])
    items = [
        Item(str(name), x.reshape(n, dx), y.reshape(n, dy), float(mi), bool(held_out))
        for name, x, y, (n, dx, dy), mi, held_out in zip(
            columns["name"], xs, ys, shape, columns["mi"], columns["held_out"], strict=True
        )
    ]
    return header["request"], items


def _grid_item(group: str, place: tuple[int, int, int], rng: np.random.Generator) -> Item:
    name, rows = PAPER_GRID[group][place[0]], GRID_ROWS[place[1]]
    d = int(rng.integers(*GRID_DIMS, endpoint=True))
    task = bmi.task(name, bmi.draw_parameters(name, d, rng), d, d)
    # jax compiles for every shape it meets. Rows are independent, so drawing as many as the longest item has
    # and keeping the first ones leaves one shape for each dimension.
    return _item(name, task, rows, int(rng.integers(2**31)), GRID_ROWS[-1])


def _item(name: str, task: Task, rows: int, seed: int, drawn: int, held_out: bool = False) -> Item:
    x, y = (np.array(side, dtype=np.float32)[:rows] for side in task.sample(drawn, seed))
    return Item(name, x.copy(), y.copy(), bmi.mutual_information(task), held_out)


def _flat(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays] or [np.empty(0, dtype=np.float32)])


def _pieces(flat: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    return np.split(flat, np.cumsum(sizes))[:-1]
