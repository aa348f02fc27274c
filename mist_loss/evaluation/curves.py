"""The objective suite as figures: truth and estimate along each training. No window is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mist_loss.evaluation.objective import Row, trainings_of

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise ModuleNotFoundError(f"figures need matplotlib ({error}): pip install matplotlib") from error

NAMES = {"maximize": "ascent", "minimize": "descent"}
COLUMNS = 4


def draw(rows: Sequence[Row]) -> dict[str, Figure]:
    """Name to figure: ``ascent`` and ``descent``, of those that the rows have something for."""
    parts = {name: [row for row in rows if row.direction == direction] for direction, name in NAMES.items()}
    return {name: _panels(part) for name, part in parts.items() if part}


def _panels(rows: Sequence[Row]) -> Figure:
    """A panel for each scenario: truth (where bounded, from below) solid, estimate dashed with its interval."""
    trainings = trainings_of(rows)
    problems = list(dict.fromkeys(own[0].problem for own in trainings))
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(own[0].loss for own in trainings))}
    width = min(COLUMNS, len(problems))
    height = math.ceil(len(problems) / width)
    figure = Figure(figsize=(2.7 * width, 2.2 * height + 0.5), layout="constrained")
    panels = figure.subplots(height, width, squeeze=False).ravel()
    for axes, problem in zip(panels, problems, strict=False):
        for own in trainings:
            if own[0].problem == problem:
                _curve(axes, own, colours[own[0].loss])
    for axes in panels[len(problems) :]:
        axes.remove()
    figure.supxlabel("step", fontsize="small")
    figure.supylabel("nats: truth solid, estimate dashed, best dotted", fontsize="small")
    handles = [panels[0].plot([], [], color=colour, label=name)[0] for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize="small")
    return figure


def _curve(axes: Axes, own: Sequence[Row], colour: str) -> None:
    first, step = own[0], [row.step for row in own]
    if math.isfinite(first.best):
        axes.plot(step, [row.truth_low for row in own], color=colour, linewidth=1.2)
    axes.plot(step, [row.estimate for row in own], color=colour, linewidth=1, linestyle="--")
    axes.fill_between(step, [r.low for r in own], [r.high for r in own], color=colour, alpha=0.2, linewidth=0)
    bound = first.best if math.isfinite(first.best) else first.truth_high
    axes.axhline(bound, color="0.4", linewidth=0.8, linestyle=":")
    axes.set_title(f"{first.scenario}, {first.rows} x {first.dims}", fontsize="x-small")
    axes.tick_params(labelsize="x-small")
