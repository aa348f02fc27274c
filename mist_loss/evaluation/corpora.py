"""Fixed test corpora with known MI: the grid of the MIST paper, BMI's forty tasks, growing problems, fresh sets.

Samples come from BMI's own samplers (see `mist_loss.meta.bmi`), so a corpus shares no code with what trains
the estimator; all but `fresh`, which is drawn from a training mixture to check the intervals. Building one needs
``pip install "mist-loss[bmi]"``; a cached one is read without it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from mist_loss.files import replacing
from mist_loss.meta import bmi
from mist_loss.meta.mixtures import MIXTURES
from mist_loss.meta.paper import PAPER_IMD, PAPER_OOMD
from mist_loss.seeding import seeded

if TYPE_CHECKING:
    from bmi import Task

PAPER_GRID: dict[str, tuple[str, ...]] = {"imd": PAPER_IMD, "oomd": PAPER_OOMD}
GRID_ROWS = tuple(int(rows) for rows in np.linspace(10, 500, 20).round())
GRID_DIMS = (2, 32)
GRID_REPEATS = 9

# Families that no training mixture may contain: they measure generalisation.
HELD_OUT = ("spiral", "swissroll", "bimodal")

# Error against n at a dimension, and against d at a row count: a repeat is one problem at every point of a curve.
SCALING_BASES = (
    "multi_normal-sparse",
    "multi_normal-dense",
    "multi_normal-2pair",
    "multi_normal-lvm",
    "multi_student-sparse",
    "multi_additive_noise",
)
SCALING_ROWS, SCALING_ROWS_DIM = (10, 32, 100, 316, 1000, 4096), 8
SCALING_DIMS, SCALING_DIMS_ROWS = (1, 2, 4, 8, 16, 32, 64), 500

_FORMAT = 1
_GOLDEN = (5**0.5 - 1) / 2


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


class Corpus(NamedTuple):
    """A corpus that can be built, whole or in part.

    ``build`` makes the items at the given places, in that order. ``request`` is what determines the items and
    identifies a cached file named ``file``. Items come in blocks of ``block`` that are kept or left out together.
    """

    file: str
    request: dict[str, Any]
    size: int
    build: Callable[[Sequence[int]], Iterable[Item]]
    block: int = 1


def thin(size: int, limit: int | None, block: int = 1) -> list[int]:
    """The places of at most ``limit`` of ``size`` items, evenly spread; those of a smaller limit are among them.

    Multiples of the golden ratio choose the blocks: no step of theirs is in time with the cycles of a grid.

    Raises:
        ValueError: the limit is less than a block.
    """
    if limit is None or limit >= size:
        return list(range(size))
    if limit < block:
        raise ValueError(f"expected a limit of at least {block} items, which belong together, got {limit}")
    order = np.argsort(np.arange(size // block) * _GOLDEN % 1)
    return [block * int(b) + i for b in np.sort(order[: limit // block]) for i in range(block)]


def items(corpus: Corpus, folder: Path, limit: int | None = None) -> list[Item]:
    """The items of a corpus, or ``limit`` of them, from the files in a folder; what is not there is built and kept.

    Raises:
        ValueError: a file cannot be read, or the limit is too small.
        ModuleNotFoundError: something must be built and BMI is missing.
    """
    places = thin(corpus.size, limit, corpus.block)
    whole = folder / f"{corpus.file}.npz"
    if len(places) == corpus.size:
        return cached(whole, corpus.request, lambda: corpus.build(places))
    if whole.exists():
        stored, found = load(whole)
        if stored == corpus.request:
            return [found[place] for place in places]
    part = folder / f"{corpus.file}-limit{limit}.npz"
    return cached(part, corpus.request | {"limit": limit}, lambda: corpus.build(places))


def digest(item: Item) -> str:
    """Eight hexadecimal digits that change with the sample or its MI."""
    check = zlib.crc32(repr((item.name, item.x.shape, item.y.shape, item.mi)).encode())
    for side in (item.x, item.y):
        check = zlib.crc32(np.ascontiguousarray(side, dtype="<f4").tobytes(), check)
    return f"{check:08x}"


def paper_grid(group: str, seed: int, places: Sequence[int] | None = None) -> Iterator[Item]:
    """The MIST paper's test grid: 9 distributions for each configuration and row count.

    Parameters and the dimension, the same for both sides, are drawn anew for every item. An item depends on
    the seed and on its place in the grid only.

    Args:
        group: ``imd`` (configurations trained on; 1080 items) or ``oomd`` (left out of training; 1260 items).
        seed: of the whole grid.
        places: of the items wanted, all by default.

    Raises:
        ValueError: if the group is not known.
        ModuleNotFoundError: if BMI is missing.
    """
    if group not in PAPER_GRID:
        raise ValueError(f"expected a group of the grid, one of {', '.join(PAPER_GRID)}, got {group!r}")
    bmi.import_bmi()
    group_index = list(PAPER_GRID).index(group)
    shape = (len(PAPER_GRID[group]), len(GRID_ROWS), GRID_REPEATS)
    wanted = range(grid_size(group)) if places is None else places
    cells = [tuple(map(int, np.unravel_index(place, shape))) for place in wanted]
    return (_grid_item(group, cell, np.random.default_rng([seed, group_index, *cell])) for cell in cells)


def grid_size(group: str) -> int:
    """Number of items of `paper_grid`."""
    return len(PAPER_GRID[group]) * len(GRID_ROWS) * GRID_REPEATS


def bmi40(rows: int, seed: int, places: Sequence[int] | None = None) -> Iterator[Item]:
    """BMI's forty benchmark tasks; spirals, the Swiss roll and bimodal Gaussians are marked as held out.

    Args:
        rows: of each item.
        seed: of the samples; the tasks themselves are fixed.
        places: of the tasks wanted, all by default.

    Raises:
        ValueError: if ``rows`` is not positive.
        ModuleNotFoundError: if BMI is missing.
    """
    if rows < 1:
        raise ValueError(f"expected at least one row, got {rows}")
    tasks = list(bmi.import_bmi().BENCHMARK_TASKS.items())
    return (
        _item(identifier, task, rows, seed, rows, held_out=any(family in identifier for family in HELD_OUT))
        for identifier, task in (tasks if places is None else [tasks[place] for place in places])
    )


def scaling_rows(seed: int, places: Sequence[int]) -> Iterator[Item]:
    """Problems of `SCALING_ROWS_DIM` dimensions a side at each of `SCALING_ROWS`: fewer rows are the first of more.

    Args:
        seed: of the corpus.
        places: ``repeat * len(SCALING_ROWS) + point``. A repeat is one distribution; its base and map go round all of
            them, its parameters come from the ranges of the MIST paper.

    Raises:
        ModuleNotFoundError: if BMI is missing.
    """
    bmi.import_bmi()
    for place in places:
        repeat, point = divmod(place, len(SCALING_ROWS))
        rng = np.random.default_rng([seed, 0, repeat])
        yield _scaling_item(repeat, SCALING_ROWS_DIM, SCALING_ROWS[point], SCALING_ROWS[-1], rng)


def scaling_dims(seed: int, places: Sequence[int]) -> Iterator[Item]:
    """Problems with `SCALING_DIMS_ROWS` rows at each of `SCALING_DIMS`, the same random numbers at each.

    Args:
        seed: of the corpus.
        places: ``repeat * len(SCALING_DIMS) + point``, as for `scaling_rows`. Two pairs need two dimensions: with
            one, a sparse structure stands in.

    Raises:
        ModuleNotFoundError: if BMI is missing.
    """
    bmi.import_bmi()
    for place in places:
        repeat, point = divmod(place, len(SCALING_DIMS))
        rng = np.random.default_rng([seed, 1, repeat])
        yield _scaling_item(repeat, SCALING_DIMS[point], SCALING_DIMS_ROWS, SCALING_DIMS_ROWS, rng)


def fresh(mixture: str, seed: int, places: Sequence[int]) -> Iterator[Item]:
    """Sets of a training mixture that no run trains on, each a draw of its own, named by family.

    Args:
        mixture: a key of ``mist_loss.meta.mixtures.MIXTURES``.
        seed: of the corpus.
        places: of the items; an item depends on the seed and its place only.
    """
    source = MIXTURES[mixture]
    for place in places:
        # a hash, so that no run's numbers come again: the stream counts up from its own
        with seeded(zlib.crc32(f"fresh {mixture} {seed} {place}".encode()), torch.device("cpu")):
            (family,) = source.pick(1)
            x, y, mi = source.families[family][1](1, *source.shape(), torch.device("cpu"))
        yield Item(family, x[0].numpy().copy(), y[0].numpy().copy(), float(mi[0]))


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
    with replacing(path) as temporary, temporary.open("wb") as file:
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


def load(path: Path) -> tuple[dict[str, Any], list[Item]]:
    """Reads what `save` wrote: the request and the items.

    Raises:
        ValueError: if the file is not a corpus of this version.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            columns = {key: stored[key] for key in stored.files}
        header = json.loads(str(columns["header"]))
        if header["format"] != _FORMAT:
            raise ValueError(f"expected format {_FORMAT}, got {header['format']}")
        return header["request"], _unpacked(columns)
    except Exception as error:  # whatever comes of an altered file
        raise ValueError(f"cannot read the cached corpus {path} ({error}): delete it") from error


def _unpacked(columns: dict[str, np.ndarray]) -> list[Item]:
    shape = columns["shape"]
    xs = _pieces(columns["x"], shape[:, 0] * shape[:, 1])
    ys = _pieces(columns["y"], shape[:, 0] * shape[:, 2])
    return [
        Item(str(name), x.reshape(n, dx), y.reshape(n, dy), float(mi), bool(held_out))
        for name, x, y, (n, dx, dy), mi, held_out in zip(
            columns["name"], xs, ys, shape, columns["mi"], columns["held_out"], strict=True
        )
    ]


def _scaling_item(repeat: int, d: int, rows: int, drawn: int, rng: np.random.Generator) -> Item:
    base = SCALING_BASES[repeat % len(SCALING_BASES)]
    if d == 1:
        base = base.replace("2pair", "sparse")
    name = f"{base}-{bmi.MAPS[repeat % len(bmi.MAPS)]}"  # five maps and six bases meet in every combination
    task = bmi.task(name, bmi.draw_parameters(name, d, rng), d, d)
    return _item(name, task, rows, int(rng.integers(2**31)), drawn)


def _grid_item(group: str, place: tuple[int, ...], rng: np.random.Generator) -> Item:
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
