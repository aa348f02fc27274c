"""Results as Markdown: pure functions of the results of one suite, in the order in which they should appear.

An estimate that failed is NaN: errors leave it out and say how many there were; for coverage it counts as a miss.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mist_loss.estimate import LEVEL
from mist_loss.evaluation import metrics
from mist_loss.evaluation.results import Result, columns, estimators

TARGETS = (0.1, 0.2, 0.5)  # nats of mean absolute error, for the number of rows needed
ENOUGH = 200  # sets from which on the coverage of a bucket is worth a number

# as mist_loss.evaluation.embeddings.class_pairs names its items
_CLASSES = re.compile(r"-k(?P<sources>\d+)-flip(?P<flip>[0-9.]+)")


def report(suite: str, results: Sequence[Result]) -> str:
    """All tables of a suite under their headings."""
    parts = [*SUITES[suite], ("Coverage", coverage), ("Width of the intervals", width), ("Time", time)]
    tables = [(heading, table(results)) for heading, table in parts]
    return "\n".join(f"## {heading}\n\n{text}" for heading, text in tables if text)


def paper(results: Sequence[Result]) -> str:
    """MSE and coverage by bucket of rows for each group of the grid, predict-the-mean beside it."""
    lines = [["group", "estimator", *(f"MSE, {name} rows" for name in metrics.BUCKETS), *_cover(metrics.BUCKETS)]]
    for group, of_group in _by(results, lambda r: r.corpus).items():
        for estimator, own in estimators(of_group).items():
            buckets = _buckets(own).values()
            lines.append([group, estimator, *map(_mse, buckets), *map(_coverage, buckets)])
        lines.append([group, "predict the mean", *_constant(own), *("" for _ in metrics.BUCKETS)])
    return _markdown(lines)


def bmi(results: Sequence[Result]) -> str:
    """MAE and coverage at each row count over BMI's tasks: all, without the held-out families, these alone."""
    subsets = {
        "all tasks": list(results),
        "without held-out families": [r for r in results if not r.held_out],
        "held-out families": [r for r in results if r.held_out],
    }
    counts = _by(results, lambda r: f"n = {r.rows}")
    lines = [["tasks", "number", "estimator", *(f"MAE, {name}" for name in counts), *_cover(counts)]]
    for subset, chosen in subsets.items():
        number = str(len({r.name for r in chosen}))
        for estimator, own in estimators(chosen).items():
            parts = _by(own, lambda r: f"n = {r.rows}")
            at = [parts.get(count, []) for count in counts]
            lines.append([subset, number, estimator, *map(_mae, at), *map(_coverage, at)])
    return _markdown(lines)


def by_rows(results: Sequence[Result]) -> str:
    """MAE at each row count of the scaling suite."""
    return _crossed([r for r in results if r.corpus == "scaling-rows"], lambda r: f"n = {r.rows}", "MAE")


def by_dims(results: Sequence[Result]) -> str:
    """MAE at each dimension of the scaling suite."""
    return _crossed([r for r in results if r.corpus == "scaling-dims"], lambda r: f"d = {r.dim_x}", "MAE")


def rows_needed(results: Sequence[Result]) -> str:
    """Rows from which on each estimator's MAE stays at or below a target, log-linear between the row counts."""
    lines = [["estimator", *(f"rows for {target:g} nats" for target in TARGETS)]]
    for estimator, own in estimators(r for r in results if r.corpus == "scaling-rows").items():
        parts = sorted(_by(own, lambda r: r.rows).items())
        rows = np.array([n for n, _ in parts])
        error = np.array([_error(metrics.mae, part)[0] for _, part in parts])
        lines.append([estimator, *(_rows(metrics.rows_needed(rows, error, target), rows) for target in TARGETS)])
    return _markdown(lines)


def by_sources(results: Sequence[Result]) -> str:
    """MAE on pairs of images of the same class by number of sources, for each encoder and all of them."""
    return _classes(results, lambda r: f"k = {_class_item(r)['sources']}")


def by_flips(results: Sequence[Result]) -> str:
    """MAE on pairs of images of the same class by flip rate, for each encoder and all of them."""
    return _classes(results, lambda r: f"flip {_class_item(r)['flip']}")


def by_case(results: Sequence[Result]) -> str:
    """Each case of the everyday suite: its truth, the mean estimate at each row count, and coverage.

    Lines of everything together, of the cases held out and of the others give the MAE in place of a mean.
    """
    counts = list(_by_rows(results, lambda r: f"n = {r.rows}"))
    own = estimators(results)
    heads = [f"{name}, {count}" for name in own for count in counts]
    intervals = [name for name, part in own.items() if has_intervals(part)]
    lines = [["case", "truth", *heads, *_cover(intervals)]]
    groups = {
        "MAE, all": list(results),
        "MAE, held out": [r for r in results if r.held_out],
        "MAE, others": [r for r in results if not r.held_out],
    }
    for name, chosen in (groups | _by(results, lambda r: r.name)).items():
        single = name not in groups
        cell = _mean if single else _mae
        parts = {key: _by(part, lambda r: f"n = {r.rows}") for key, part in estimators(chosen).items()}
        values = [cell(parts.get(key, {}).get(count, [])) for key in own for count in counts]
        covered = [_coverage(estimators(chosen).get(key, [])) for key in intervals]
        lines.append([name, f"{chosen[0].mi:.3g}" if single else "", *values, *covered])
    return _markdown(lines)


def coverage(results: Sequence[Result]) -> str:
    """Coverage and mean width of the intervals of each estimator, by family and row count.

    Families are what the names of items start with. Everything together always has a line, a part of it from
    `ENOUGH` sets on.
    """
    own = {name: part for name, part in estimators(results).items() if has_intervals(part)}
    lines = [["family", "rows", "sets", *(f"{what}, {name}" for name in own for what in ("coverage", "width"))]]
    label = row_label(results)
    for family in ("all", *_by(results, _family)):
        for rows in ("all", *_by_rows(results, label)):
            chosen = {
                name: [r for r in part if family in ("all", _family(r)) and rows in ("all", label(r))]
                for name, part in own.items()
            }
            sets = min(map(len, chosen.values()), default=0)
            if sets >= ENOUGH or (sets and family == rows == "all"):
                cells = (cell(part) for part in chosen.values() for cell in (_coverage, _width))
                lines.append([family, rows, str(sets), *cells])
    return _markdown(lines)


def width(results: Sequence[Result]) -> str:
    """Mean width of each estimator's intervals, and what it would be at the coverage of the first one's.

    Every interval is scaled about its centre, by one factor for all, until as many contain the truth.
    """
    own = {name: part for name, part in estimators(results).items() if has_intervals(part)}
    if len(own) < 2:
        return ""
    first = next(iter(own))
    reference = columns(own[first])
    share = metrics.coverage(reference.low, reference.high, reference.mi)
    lines = [["estimator", "coverage", "mean width", "factor", f"mean width at the coverage of {first} ({share:.1%})"]]
    for name, part in own.items():
        c = columns([r for r in part if math.isfinite(r.low + r.high)])
        mean = float(np.mean(c.high - c.low))
        # the failed ones are misses that no factor mends
        wanted = share * len(part) / len(c.mi)
        factor = metrics.scale_to_cover(c.low, c.high, c.mi, wanted) if wanted <= 1 else math.inf
        lines.append([name, _coverage(part), _number(mean), _number(factor), _number(factor * mean)])
    return _markdown(lines)


def time(results: Sequence[Result]) -> str:
    """Median wall time of an estimate, in times that of the first estimator, by row count."""
    label = row_label(results)
    groups = list(_by_rows(results, label))
    lines = [["estimator", "all", *groups]]
    own = estimators(results)
    first = next(iter(own.values()), [])
    reference = _by(first, label)
    for name, part in own.items():
        parts = _by(part, label)
        lines.append([name, _ratio(part, first), *(_ratio(parts.get(g, []), reference.get(g, [])) for g in groups)])
    return _markdown(lines)


SUITES: dict[str, list[tuple[str, Callable[[Sequence[Result]], str]]]] = {
    "paper": [("Error", paper)],
    "bmi": [("Error", bmi)],
    "scaling": [("Error by rows", by_rows), ("Error by dimensions", by_dims), ("Rows needed", rows_needed)],
    "everyday": [("Case by case", by_case)],
    "fresh": [("Error", paper)],
    "classes": [("Error by sources", by_sources), ("Error by flip rate", by_flips)],
}


def has_intervals(results: Sequence[Result]) -> bool:
    """Whether any of the estimates has an interval."""
    return any(math.isfinite(r.low + r.high) for r in results)


def row_label(results: Iterable[Result]) -> Callable[[Result], str]:
    """How to name the row count of a result: by itself where there are few of them, by bucket where there are many."""
    if len({r.rows for r in results}) <= 8:
        return lambda r: f"n = {r.rows}"
    names = list(metrics.BUCKETS)
    return lambda r: f"{names[int(metrics.bucket(np.array(r.rows)))]} rows"


def _by(results: Iterable[Result], label: Callable[[Result], Any]) -> dict[Any, list[Result]]:
    groups: dict[Any, list[Result]] = {}
    for result in results:
        groups.setdefault(label(result), []).append(result)
    return groups


def _by_rows(results: Iterable[Result], label: Callable[[Result], str]) -> dict[str, list[Result]]:
    return _by(sorted(results, key=lambda r: r.rows), label)


def _buckets(results: Iterable[Result]) -> dict[str, list[Result]]:
    names = list(metrics.BUCKETS)
    groups: dict[str, list[Result]] = {name: [] for name in names}
    return groups | _by(results, lambda r: names[int(metrics.bucket(np.array(r.rows)))])


def _family(result: Result) -> str:
    if result.corpus.startswith("fresh-"):
        return result.name
    return result.name.partition("-")[0] if result.name.startswith("multi_") else result.corpus


def _class_item(result: Result) -> re.Match[str]:
    match = _CLASSES.search(result.name)
    if match is None:
        raise ValueError(f"expected an item named ...-k2-flip0.1..., got {result.name!r}: delete the cached corpora")
    return match


def _classes(results: Sequence[Result], label: Callable[[Result], str]) -> str:
    heads = list(_by(results, label))
    lines = [["embeddings", "estimator", "all", *heads]]
    corpora = _by(results, lambda r: r.corpus.removeprefix("classes-"))
    for corpus, of_corpus in (corpora if len(corpora) == 1 else corpora | {"all": list(results)}).items():
        for estimator, own in estimators(of_corpus).items():
            parts = _by(own, label)
            lines.append([corpus, estimator, _mae(own), *(_mae(parts.get(head, [])) for head in heads)])
    return _markdown(lines)


def _crossed(results: Sequence[Result], label: Callable[[Result], str], metric: str) -> str:
    """An estimator a line, its MAE at each label a column."""
    heads = list(_by(results, label))
    lines = [["estimator", *(f"{metric}, {head}" for head in heads)]]
    for estimator, own in estimators(results).items():
        parts = _by(own, label)
        lines.append([estimator, *(_mae(parts.get(head, [])) for head in heads)])
    return _markdown(lines)


def _error(metric: Callable[[np.ndarray, np.ndarray], float], results: Sequence[Result]) -> tuple[float, int]:
    """A metric over the estimates that did not fail, and how many did."""
    c = columns([r for r in results if math.isfinite(r.value)])
    return (metric(c.value, c.mi) if len(c.mi) else math.nan), len(results) - len(c.mi)


def _error_cell(metric: Callable[[np.ndarray, np.ndarray], float], results: Sequence[Result]) -> str:
    value, failed = _error(metric, results)
    return _number(value) + (f" ({failed} failed)" if failed else "")


def _mae(results: Sequence[Result]) -> str:
    return _error_cell(metrics.mae, results)


def _mean(results: Sequence[Result]) -> str:
    found = [r.value for r in results if math.isfinite(r.value)]
    failed = len(results) - len(found)
    return (_number(float(np.mean(found))) if found else "") + (f" ({failed} failed)" if failed else "")


def _mse(results: Sequence[Result]) -> str:
    return _error_cell(metrics.mse, results)


def _constant(results: Sequence[Result]) -> list[str]:
    c = columns(results)
    return [_number(v) for v in metrics.by_bucket(metrics.mse, c.rows, metrics.predict_the_mean(c.mi), c.mi).values()]


def _coverage(results: Sequence[Result]) -> str:
    if not has_intervals(results):
        return ""
    c = columns(results)
    return f"{metrics.coverage(c.low, c.high, c.mi):.1%}"


def _width(results: Sequence[Result]) -> str:
    c = columns([r for r in results if math.isfinite(r.low + r.high)])
    return _number(float(np.mean(c.high - c.low))) if len(c.mi) else ""


def _ratio(results: Sequence[Result], reference: Sequence[Result]) -> str:
    if not results or not reference:
        return ""
    return _number(float(np.median(columns(results).seconds) / np.median(columns(reference).seconds)))


def _rows(needed: float, rows: np.ndarray) -> str:
    if math.isinf(needed):
        return f"more than {rows[-1]}"
    return f"at most {rows[0]}" if needed <= rows[0] else f"{needed:.0f}"


def _cover(names: Iterable[str]) -> list[str]:
    return [f"coverage of {LEVEL:.0%}, {name}" for name in names]


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = lines
    if not body:
        return ""
    return "".join("| " + " | ".join(line) + " |\n" for line in [head, ["---"] * len(head), *body])


def _number(value: float) -> str:
    """Three significant digits; nothing for NaN."""
    if not math.isfinite(value):
        return "" if math.isnan(value) else "infinite"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
