"""Results as figures: pure functions of the results of one suite. No window is needed, and no global state is touched.

Needs matplotlib.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np

from mist_loss.estimate import LEVEL
from mist_loss.evaluation import metrics, tables
from mist_loss.evaluation.results import Columns, Result, columns, estimators
from mist_loss.files import replacing

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter
    from PIL import Image  # comes with matplotlib
except ImportError as error:
    raise ModuleNotFoundError(f"figures need matplotlib ({error}): pip install matplotlib") from error

_NOMINAL = np.linspace(0.05, 0.95, 19)
_COLOURS = 64  # of a saved figure
_MOST_POINTS = 20  # on a line; more are joined by powers of two


def draw(suite: str, results: Iterable[Result]) -> dict[str, Figure]:
    """Name to figure, of those that the results have something for.

    Errors are mean absolute errors in nats, over the estimates that did not fail.

    Args:
        suite: ``paper``, ``bmi``, ``scaling``, ``classes``, ``everyday`` or ``fresh``.
        results: of the suite; their order decides the colours of the estimators and the order of the legend.
    """
    kept = [result for result in results if math.isfinite(result.value)]
    by_rows, by_dims = _PANELS[suite]
    figures = {
        "error-by-rows": _error_by("rows", "rows n", by_rows(kept)),
        "error-by-dims": _error_by("dims", "dimensions d of a side", by_dims(kept)),
        "calibration": _calibration(kept),
        "time": _time(kept),
    }
    return {name: figure for name, figure in figures.items() if figure}


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, whole, without a date or version in it, of a few colours, which makes it a third of the size."""
    drawn, content = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110, metadata={"Software": None})
    Image.open(drawn).convert("RGB").quantize(_COLOURS).save(content, format="png", optimize=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getvalue())


def _by_corpus(results: Sequence[Result]) -> dict[str, list[Result]]:
    corpora = dict.fromkeys(result.corpus for result in results)
    return {corpus: [result for result in results if result.corpus == corpus] for corpus in corpora}


def _only(corpus: str) -> Callable[[Sequence[Result]], dict[str, list[Result]]]:
    return lambda results: {corpus: [result for result in results if result.corpus == corpus]}


def _together(results: Sequence[Result]) -> dict[str, list[Result]]:
    return {"all": list(results)}


def _none(results: Sequence[Result]) -> dict[str, list[Result]]:
    return {}


_Panels = Callable[[Sequence[Result]], dict[str, list[Result]]]

# suite -> the panels of error by rows, and by dimensions; where a suite does not vary one alone, none
_PANELS: dict[str, tuple[_Panels, _Panels]] = {
    "paper": (_by_corpus, _by_corpus),
    "bmi": (_together, _none),
    "scaling": (_only("scaling-rows"), _only("scaling-dims")),
    "classes": (_none, _none),
    "everyday": (_together, _none),
    "fresh": (_by_corpus, _by_corpus),
}


def _error_by(name: str, label: str, panels: dict[str, list[Result]]) -> Figure | None:
    panels = {title: part for title, part in panels.items() if len(np.unique(getattr(columns(part), name))) > 1}
    if not panels:
        return None
    figure = Figure(figsize=(5.2 * len(panels), 4), layout="constrained")
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, part) in zip(row, panels.items(), strict=True):
        for (estimator, own), style in zip(estimators(part).items(), _styles(), strict=False):
            axes.plot(*_curve(getattr(columns(own), name), columns(own)), label=estimator, **style)
        _finish(axes, label, title)
    return figure


def _curve(at: np.ndarray, of: Columns) -> tuple[np.ndarray, np.ndarray]:
    """Mean absolute error at each value of a variable, or each power of two where the values are many."""
    error = np.abs(of.value - of.mi)
    bins = at if len(np.unique(at)) <= _MOST_POINTS else np.floor(np.log2(at))
    groups = [bins == b for b in np.unique(bins)]
    return np.array([at[g].mean() for g in groups]), np.array([error[g].mean() for g in groups])


def _calibration(results: Sequence[Result]) -> Figure | None:
    """Share of the truths in the central intervals of each nominal level; one point for a method with one level."""
    if not any(map(tables.has_intervals, estimators(results).values())):
        return None
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    for (estimator, own), style in zip(estimators(results).items(), _styles(), strict=False):
        c = columns(own)
        if np.isfinite(c.level).any():
            shares = [metrics.coverage_of(float(nominal), c.level, c.mi) for nominal in _NOMINAL]
            axes.plot(_NOMINAL, shares, label=estimator, **style)
        elif tables.has_intervals(own):
            style = style | {"linestyle": "none"}
            axes.plot([LEVEL], [metrics.coverage(c.low, c.high, c.mi)], label=estimator, **style)
    axes.set(xlabel="nominal level of the central interval", ylabel="coverage", xlim=(0, 1), ylim=(0, 1))
    axes.legend(fontsize="small")
    return figure


def _time(results: Sequence[Result]) -> Figure | None:
    """Median time of an estimate, in times the fastest estimator's, against the error."""
    own = {name: columns(part) for name, part in estimators(results).items()}
    if len(own) < 2:
        return None
    figure = Figure(figsize=(5.2, 4), layout="constrained")
    axes = figure.subplots()
    fastest = min(float(np.median(c.seconds)) for c in own.values())
    for (name, c), style in zip(own.items(), _styles(), strict=False):
        style = style | {"linestyle": "none", "markersize": 8}
        axes.plot([np.median(c.seconds) / fastest], [metrics.mae(c.value, c.mi)], label=name, **style)
    _finish(axes, "median time of an estimate, in times the fastest", "")
    return figure


def _styles() -> Iterable[dict]:
    """Colours and markers, in an order that tells ten estimators apart without colour."""
    return (
        {"color": f"C{i}", "marker": marker, "markersize": 4, "linewidth": 1.5}
        for i, marker in zip(cycle(range(10)), cycle("os^Dv<>Ph*p"), strict=False)
    )


def _finish(axes: Axes, label: str, title: str) -> None:
    axes.set(xlabel=label, ylabel="mean absolute error (nats)", title=title, xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, which="both", linewidth=0.5)
    axes.legend(fontsize="small")
