"""What the objective suite is measured against, as Markdown: pure functions of checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mist_loss.evaluation.objective import Row, trainings_of

ROWS = 256  # of the trainings that the bars were set for
REACHED = 0.97  # share of the best
NATS, SHARE = 0.25, 0.1  # gap at the end: the larger of nats and a share of the truth; twice that on the way
COVERED = 0.8  # of the checkpoints
LEFT, LEFT_HIDDEN = 0.01, 0.02  # nats, of a minimised truth; of one that correlation does not see
COSINE = 0.95
ROUNDING = 0.005  # nats by which a truth may lie below that of InfoNCE and count as no worse

Training = Sequence[Row]


class Bar(NamedTuple):
    """A number of a training that has to be ``at_least`` the limit, or at most it.

    value: of a training and that of InfoNCE on the same problem, if there is one; NaN where the bar does not apply.
    """

    words: str
    value: Callable[[Training, Training | None], float]
    limit: Callable[[Training], float]
    at_least: bool

    def holds(self, value: float, own: Training) -> bool:
        """Whether a value of a training is on the right side."""
        return value >= self.limit(own) if self.at_least else value <= self.limit(own)


def reached(own: Training) -> float:
    """Share of the best that is certainly reached at the end of an ascent."""
    return own[-1].truth_low / own[-1].best if own[-1].direction == "maximize" else math.nan


def left(own: Training) -> float:
    """Truth in nats at the end of a descent."""
    return own[-1].truth_high if own[-1].direction == "minimize" else math.nan


def lead(own: Training, infonce: Training | None) -> float:
    """Nats by which the truth at the end exceeds what InfoNCE reached."""
    return own[-1].truth_low - infonce[-1].truth_low if infonce and math.isfinite(own[-1].best) else math.nan


def excess(row: Row) -> float:
    """Gap of a checkpoint, in times of what is allowed at the end."""
    return abs(row.gap) / max(NATS, SHARE * row.truth_high)


def worst(own: Training) -> Row:
    """The checkpoint whose gap exceeds what is allowed the most."""
    return max(own, key=excess)


def mean(own: Training, column: str) -> float:
    """Mean of a column over the checkpoints that have it."""
    finite = [value for value in (getattr(row, column) for row in own) if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


BARS = (
    Bar(f"truth reached, of the best: {REACHED:.0%}", lambda own, _: reached(own), lambda _: REACHED, True),
    Bar("truth reached, above InfoNCE's: 0 nats", lead, lambda _: -ROUNDING, True),
    Bar(
        f"truth left: {LEFT} nats, {LEFT_HIDDEN} for hidden dependence",
        lambda own, _: left(own),
        lambda own: LEFT_HIDDEN if own[0].kind == "hidden" else LEFT,
        False,
    ),
    Bar(f"gap at the end, of {NATS} nats or {SHARE:.0%}: 1", lambda own, _: excess(own[-1]), lambda _: 1, False),
    Bar("gap on the way, likewise: 2", lambda own, _: excess(worst(own)), lambda _: 2, False),
    Bar(
        f"interval contains the truth: {COVERED:.0%} of the checkpoints",
        lambda own, _: mean(own, "covered"),
        lambda _: COVERED,
        True,
    ),
    Bar(f"cosine with the true gradient: {COSINE}", lambda own, _: mean(own, "cosine"), lambda _: COSINE, True),
)


def report(rows: Sequence[Row]) -> str:
    """The bars, then every training."""
    return f"## Bars\n\n{against_bars(rows)}\n## Trainings\n\n{summary(rows)}"


def against_bars(rows: Sequence[Row]) -> str:
    """For each loss and bar: in how many trainings it holds, the mean, and the worst number with its scenario."""
    trainings = trainings_of(rows)
    infonce = {own[0].problem: own for own in trainings if own[0].loss == "infonce"}
    lines = [["loss", "bar", f"holds at {ROWS} rows", "holds at other rows", "mean", "worst", "where"]]
    for loss in dict.fromkeys(row.loss for row in rows):
        for bar in BARS:
            other = None if loss == "infonce" else infonce
            numbers = [
                (value, bar.holds(value, own), own[0])
                for own in trainings
                if own[0].loss == loss and math.isfinite(value := bar.value(own, (other or {}).get(own[0].problem)))
            ]
            if numbers:
                value, _, place = (min if bar.at_least else max)(numbers, key=lambda number: number[0])
                usual = [held for _, held, row in numbers if row.rows == ROWS]
                unusual = [held for _, held, row in numbers if row.rows != ROWS]
                average = _number(float(np.mean([number for number, _, _ in numbers])))
                lines.append([loss, bar.words, _of(usual), _of(unusual), average, _number(value), place.scenario])
    return _markdown(lines)


def summary(rows: Sequence[Row]) -> str:
    """A line for each training. The truth is a range where it is only bounded; gaps are estimate minus truth."""
    head = ["scenario", "rows x dims", "steps", "loss", "truth at the start", "at the end", "best", "of the best"]
    head += ["estimate", "gap", "gap in %", "worst gap on the way", "interval contains it", "gradient cosine"]
    lines = [[*head, "of one batch", "re-paired", "time of a step / fastest"]]
    trainings = trainings_of(rows)
    for own in trainings:
        first, last = own[0], own[-1]
        share = abs(last.gap) / last.truth_high if last.truth_high else math.nan
        fastest = min(_seconds(other) for other in trainings if other[0].problem == first.problem)
        lines.append(
            [
                *(first.scenario, f"{first.rows} x {first.dims}", str(first.steps), first.loss),
                *(_truth(first), _truth(last), _number(last.best), _percent(reached(own))),
                *(_number(last.estimate), _number(last.gap, "+"), _percent(share)),
                *(_number(worst(own).gap, "+"), _percent(mean(own, "covered")), _number(mean(own, "cosine"))),
                *(_number(mean(own, "batch_cosine")), _number(last.repaired), f"{_seconds(own) / fastest:.1f}"),
            ]
        )
    return _markdown(lines)


def _seconds(own: Training) -> float:
    return float(np.nanmedian([row.seconds for row in own]))


def _truth(row: Row) -> str:
    if row.truth_low == row.truth_high:
        return _number(row.truth_high)
    return f"{_number(row.truth_low)} to {_number(row.truth_high)}"


def _of(held: Sequence[bool]) -> str:
    return f"{sum(held)} of {len(held)}" if held else ""


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = lines
    return "".join("| " + " | ".join(line) + " |\n" for line in [head, ["---"] * len(head), *body])


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}" if math.isfinite(value) else ""


def _percent(value: float) -> str:
    return f"{value:.0%}" if math.isfinite(value) and value < 10 else ""
