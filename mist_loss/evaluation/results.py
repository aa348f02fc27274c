"""Estimates beside the truth, and the file that keeps them: a CSV that grows by whole lines and survives a kill."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mist_loss.evaluation import lines
from mist_loss.files import write_text

Key = tuple[str, str, str, str]


class Result(NamedTuple):
    """One estimate beside the truth; a line of the file. Mutual information in nats.

    ``level``: probability that the predictive distribution gives to values up to the true one, NaN without one.
    ``seconds``: wall time of the estimate. ``weights``: hash of the weights, empty for a method without.
    ``sample``: digest of the sample, see `mist_loss.evaluation.corpora.digest`.
    """

    corpus: str
    name: str
    held_out: bool
    rows: int
    dim_x: int
    dim_y: int
    mi: float
    estimator: str
    value: float
    low: float
    high: float
    level: float
    seconds: float
    weights: str
    sample: str

    @property
    def key(self) -> Key:
        """What must agree for an estimate to be used again."""
        return self.corpus, self.sample, self.estimator, self.weights


class Columns(NamedTuple):
    """The numbers of k results as arrays (k,); ``dims`` is the larger dimension."""

    rows: np.ndarray
    dims: np.ndarray
    mi: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    level: np.ndarray
    seconds: np.ndarray


def columns(results: Sequence[Result]) -> Columns:
    """The numbers of results as float64 arrays."""
    table = [(r.rows, max(r.dim_x, r.dim_y), r.mi, r.value, r.low, r.high, r.level, r.seconds) for r in results]
    return Columns(*np.array(table, dtype=np.float64).reshape(-1, len(Columns._fields)).T)


def estimators(results: Iterable[Result]) -> dict[str, list[Result]]:
    """The results of each estimator, in order of appearance."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.estimator, []).append(result)
    return groups


class Store:
    """The results in a file.

    A last line that a kill tore is dropped when the file is opened, so that what is appended starts a new line.
    One process at a time may append.

    Raises:
        ValueError: the file is not one of results.
    """

    def __init__(self, path: Path):
        self.path = path
        _drop_torn_line(path)
        self.results = {result.key: result for result in lines.read(path, Result)}

    def add(self, result: Result) -> None:
        """Append a line and hand it to the system."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        added = [result] if self.path.exists() and self.path.stat().st_size else [Result._fields, result]
        with self.path.open("ab") as file:
            file.write(lines.to_text(added).encode())
        self.results[result.key] = result

    def forget(self, stale: Callable[[Result], bool]) -> None:
        """Drop the results that are stale, from the file too."""
        kept = {key: result for key, result in self.results.items() if not stale(result)}
        if len(kept) < len(self.results):
            write_text(self.path, lines.to_text([Result._fields, *kept.values()]))
        self.results = kept


def _drop_torn_line(path: Path) -> None:
    content = path.read_bytes() if path.exists() else b""
    head = lines.to_text([Result._fields]).encode()
    ours = content.startswith(head) or head.startswith(content)  # a stranger's file stays whole
    if ours and not content.endswith(b"\n") and content:
        os.truncate(path, content.rfind(b"\n") + 1)
