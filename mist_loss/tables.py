"""Groups of numeric columns from CSV, NPY, NPZ and Parquet files, for ``mist-loss estimate``.

Files come from strangers: nothing here unpickles, and whatever a parser says about a broken file becomes a ValueError.
"""

import csv
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

Columns = Mapping[str, ArrayLike]  # (n,) or (n, d) each, in the order of the file


def read_columns(path: Path, *groups: str) -> list[np.ndarray]:
    """Read groups of columns, each given as names or ranges of positions ("a,b", "0:8"), separated by commas.

    Args:
        path: .csv (comma-separated, first line a header), .npy (n, d), .npz (arrays (n,) or (n, d)) or .parquet.
        groups: one specification for each group. Columns of an .npy are named by their positions.

    Returns:
        One (n, d) float64 array for each group.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown kind of file or column, a cell that is no number, columns of different lengths.
        ModuleNotFoundError: Parquet without pandas and pyarrow, the extra ``tables``.
    """
    columns = load(path)
    return [select(columns, specification)[1] for specification in groups]


def load(path: Path) -> Columns:
    """All columns of a file, of whatever type they are.

    Raises:
        FileNotFoundError, ValueError, ModuleNotFoundError: as ``read_columns``.
    """
    if path.suffix.lower() not in READERS:
        raise ValueError(
            f"expected a file ending in {', '.join(READERS)}, got {path.name!r}: convert it, "
            "a tensor with np.save('data.npy', tensor.numpy())"
        )
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    columns = READERS[path.suffix.lower()](path)
    if not columns:
        raise ValueError(f"expected columns in {path.name}, got none: it is empty")
    return columns


def select(columns: Columns, specification: str) -> tuple[list[str], np.ndarray]:
    """Some columns side by side, with a name for each; column i of an array (n, d) is called NAME[i].

    Args:
        columns: what ``load`` returned.
        specification: names or ranges of positions, separated by commas; ":" stands for all.

    Returns:
        d names and an (n, d) float64 array.

    Raises:
        ValueError: an unknown column, a cell that is no number, columns of different lengths.
    """
    chosen = [name for item in specification.split(",") for name in _resolve(list(columns), item.strip())]
    parts = [_numbers(name, columns[name]) for name in chosen]
    if len({len(part) for part in parts}) > 1:
        lengths = ", ".join(f"{name!r}: {len(part)}" for name, part in zip(chosen, parts, strict=True))
        raise ValueError(f"expected columns of one length, got {lengths}: choose columns with the same rows")
    names = []
    for name, part in zip(chosen, parts, strict=True):
        names += [name] if part.shape[1] == 1 else [f"{name}[{i}]" for i in range(part.shape[1])]
    return names, np.concatenate(parts, axis=1)


def _numbers(name: str, column: ArrayLike) -> np.ndarray:
    """A column as (n, d) float64."""
    try:
        # a column of dates with a time zone has a type of its own, and becomes an array of objects
        kinds = {np.asarray(column).dtype.kind, getattr(getattr(column, "dtype", None), "kind", "")}
        for kind, what in (("c", "complex numbers"), ("m", "time spans"), ("M", "dates")):
            if kind in kinds:
                raise TypeError(what)
        if kinds & {"U", "O"}:
            _check_text(np.asarray(column))
        part = np.asarray(column, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"expected numbers in column {name!r}: {error}; remove or encode them first") from error
    if part.ndim not in (1, 2):
        raise ValueError(f"expected {name!r} of shape (n,) or (n, d), got {part.shape}: flatten each row first")
    return part[:, None] if part.ndim == 1 else part


def _check_text(cells: np.ndarray) -> None:
    """Refuse what Python reads as a number and nobody means so, and say which row is empty."""
    texts = [(row, cell) for row, cell in enumerate(cells.flat, 1) if isinstance(cell, str | bytes)]
    if any(isinstance(cell, bytes) for _, cell in texts):
        raise TypeError("bytes")
    if any("_" in cell for _, cell in texts):
        raise ValueError("digits with underscores")
    if empty := [row for row, cell in texts if not cell.strip()]:
        raise ValueError(f"a value is missing in row {empty[0]} and {len(empty) - 1} other(s)")


def _resolve(names: list[str], item: str) -> list[str]:
    if item in names:
        return [item]
    first, colon, end = item.partition(":")
    # nobody has columns by the billion, and int() refuses thousands of digits
    if colon and all(not part or (part.isascii() and part.isdecimal() and len(part) < 10) for part in (first, end)):
        chosen = names[int(first or 0) : int(end or len(names))]
        if chosen:
            return chosen
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    raise ValueError(
        f"expected a column or a range FIRST:END of {len(names)} columns, got {item!r}; there are: {shown}"
    )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever a parser raises on a broken file into one kind of error."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        kind = path.suffix[1:].upper()
        raise ValueError(f"{path.name} is not a readable {kind} file ({error}): check or export it again") from error


def _read_csv(path: Path) -> Columns:
    with _readable(path), path.open(newline="", encoding="utf-8-sig") as file:
        lines = [line for line in csv.reader(file) if line]
    names = [name.strip() for name in lines[0]] if lines else []
    if len(names) == 1 and any(mark in names[0] for mark in ";\t"):
        raise ValueError(
            f"expected commas between the cells of {path.name}, got {lines[0][0]!r}: export it with commas"
        )
    if all(map(_is_number, names)) and not _are_positions(names):
        raise ValueError(
            f"expected the names of the columns in the first line of {path.name}, got numbers ({', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''}): add a line of names"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"expected different column names in {path.name}, got {', '.join(names)}: rename them")
    for number, line in enumerate(lines[1:], start=1):
        if len(line) != len(names):
            raise ValueError(f"expected {len(names)} cells in row {number} of {path.name}, got {len(line)}: mend it")
    columns = zip(*lines[1:], strict=True) if len(lines) > 1 else [()] * len(names)
    return dict(zip(names, columns, strict=True))


def _are_positions(names: list[str]) -> bool:
    """Whether columns are counted from zero or one, as pandas does where they have no names."""
    return any(names == [str(first + i) for i in range(len(names))] for first in (0, 1))


def _is_number(name: str) -> bool:
    try:
        return "_" not in name and math.isfinite(float(name))
    except ValueError:
        return False


def _read_npy(path: Path) -> Columns:
    with _readable(path):
        # mapped, a header that claims more than the file holds is refused before memory is asked for
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.ndim != 2:
        shape = array.shape if isinstance(array, np.ndarray) else "an archive"
        raise ValueError(f"expected an array (n, d) in {path.name}, got {shape}: flatten each row first")
    return {str(i): column for i, column in enumerate(array.T)}


class _Archive(Mapping[str, np.ndarray]):
    """The arrays of an NPZ file, each read when it is asked for: what nobody chooses may be large, or no numbers."""

    def __init__(self, path: Path, names: list[str]):
        self.path, self.names = path, names

    def __getitem__(self, name: str) -> np.ndarray:
        with _readable(self.path), np.load(self.path, allow_pickle=False) as archive:
            return archive[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _read_npz(path: Path) -> Columns:
    with _readable(path), np.load(path, allow_pickle=False) as archive:
        return _Archive(path, archive.files)


def _read_parquet(path: Path) -> Columns:
    try:
        import pandas

        with _readable(path):
            table = pandas.read_parquet(path)
    except ImportError as error:
        hint = f"Parquet needs pandas and pyarrow ({error}): pip install 'mist-loss[tables]'"
        raise ModuleNotFoundError(hint) from error
    return {str(name): table[name] for name in table.columns}


READERS: dict[str, Callable[[Path], Columns]] = {
    ".csv": _read_csv,
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".parquet": _read_parquet,
}
