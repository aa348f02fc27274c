"""Groups of numeric columns from CSV, NPY, NPZ and Parquet files, for ``mist-loss estimate``."""

import csv
from collections.abc import Callable, Mapping
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
    if path.suffix not in READERS:
        raise ValueError(f"expected a file ending in {', '.join(READERS)}, got {path.name!r}: convert it")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    columns = READERS[path.suffix](path)
    return [_group(columns, specification) for specification in groups]


def _group(columns: Columns, specification: str) -> np.ndarray:
    names = [name for item in specification.split(",") for name in _resolve(list(columns), item.strip())]
    parts = []
    for name in names:
        try:
            part = np.asarray(columns[name], dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"expected numbers in column {name!r}: {error}; remove or encode them first") from error
        if part.ndim not in (1, 2):
            raise ValueError(f"expected {name!r} of shape (n,) or (n, d), got {part.shape}: flatten each row first")
        parts.append(part[:, None] if part.ndim == 1 else part)
    if len({len(part) for part in parts}) > 1:
        lengths = ", ".join(f"{name!r}: {len(part)}" for name, part in zip(names, parts, strict=True))
        raise ValueError(f"expected columns of one length, got {lengths}: choose columns with the same rows")
    return np.concatenate(parts, axis=1)


def _resolve(names: list[str], item: str) -> list[str]:
    if item in names:
        return [item]
    first, colon, end = item.partition(":")
    if colon and all(not part or part.isdecimal() for part in (first, end)):
        chosen = names[int(first or 0) : int(end or len(names))]
        if chosen:
            return chosen
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    raise ValueError(
        f"expected a column or a range FIRST:END of {len(names)} columns, got {item!r}; there are: {shown}"
    )


def _read_csv(path: Path) -> Columns:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = [line for line in csv.reader(file) if line]
    names = [name.strip() for name in lines[0]] if lines else []
    if len(set(names)) < len(names):
        raise ValueError(f"expected different column names in {path.name}, got {', '.join(names)}: rename them")
    for number, line in enumerate(lines[1:], start=1):
        if len(line) != len(names):
            raise ValueError(f"expected {len(names)} cells in row {number} of {path.name}, got {len(line)}: mend it")
    columns = zip(*lines[1:], strict=True) if len(lines) > 1 else [()] * len(names)
    return dict(zip(names, columns, strict=True))


def _read_npy(path: Path) -> Columns:
    array = np.load(path, allow_pickle=False)
    if array.ndim != 2:
        raise ValueError(f"expected an array (n, d) in {path.name}, got {array.shape}: flatten each row first")
    return {str(i): column for i, column in enumerate(array.T)}


def _read_npz(path: Path) -> Columns:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def _read_parquet(path: Path) -> Columns:
    try:
        import pandas

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
