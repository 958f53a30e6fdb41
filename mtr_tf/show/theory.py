# SPDX-License-Identifier: Apache-2.0
"""Plots of measures for one run or many seeds: measurements and theory together.

A panel draws into given axes. `save_run` combines several into the figures of a run;
`plot` makes a figure of a single one, for a study.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mtr_tf.measures.gradients import NORMALISATIONS
from mtr_tf.measures.records import NORMS
from mtr_tf.show import series
from mtr_tf.show import style

Record = Mapping[str, Any]
_MEASURED, _THEORY, _ALIKE = style.COLORS[2], style.COLORS[1], style.COLORS[3]
_PIXEL_KINDS = {"pixels": "random output pixels", "blocks": "output pixels of a block"}
_SHORT_KINDS = {"pixels": "random pixels", "blocks": "a block"}
_SCALINGS = {
    "raw": "gradients as they are",
    "unit": "each scaled to 1, per image",
    "dataset": "each task scaled to 1",
}
_INTERVAL = "band: 95 % interval over images"
_RANGE = "band: from the lowest to the highest seed"


def plot(panel: Callable, title: str, records: Sequence[Record], *more: Any) -> Figure:
    """A figure of one panel.

    Args:
      panel: A function such as `sizes`.
      title: Above the panel.
      records: What the panel draws.
      *more: The panel's other arguments.
    """
    figure, grid = style.multiples(1, style.SIZE)
    notes = panel(grid[0], records, *more) or []
    band = _RANGE if len(series.seeds_of(records)) > 1 else _INTERVAL
    return style.finish(figure, title, [*notes, band])


# Panels.


def sizes(axes, records: Sequence[Record]) -> None:
    """The norm of the mean gradient of k tasks over k, log-log, with its slope.

    Args:
      axes: The axes to draw into.
      records: Of one norm and normalisation.
    """
    by_size = series.chosen(records, quantity="norm_by_size")
    k, (value, predicted, factor) = series.over(
        by_size, "count", "value", "predicted", "factor"
    )
    if len(value) == 1:
        set_records = series.chosen(records, quantity="norm_of_mean")
        points = [(record["count"], record["value"]) for record in set_records]
        x, y = np.array(points, float).reshape(-1, 2).T
        axes.plot(x, y, ".", color="0.65", ms=3, label="each set of tasks")
    style.band(axes, k, value, series.ends(by_size, "count"), _MEASURED)
    measured = series.mean(value)
    alike_norms = series.mean(value[:, :1] * factor)
    axes.plot(k, measured, "o-", color=_MEASURED, label="mean, measured")
    axes.plot(
        k, series.mean(predicted), "--", color=_THEORY, label="theory: √(1'C1) / k"
    )
    label = "all tasks alike: √((1 + (k − 1) ρ) / k)"
    axes.plot(k, alike_norms, "-.", color=_ALIKE, label=label)
    label = "alike and uncorrelated: 1 / √k"
    axes.plot(k, measured[0] / np.sqrt(k), ":", color="0.35", label=label)
    slope = _draw_slope(axes, records, k, measured)
    style.log_x(axes, k)
    style.log_y(axes)
    axes.set_xlabel(f"k, tasks in the mean loss{slope}")
    axes.set_ylabel("norm of its gradient")


def _draw_slope(axes, records, k: np.ndarray, measured: np.ndarray) -> str:
    """Draws the mean slope through the middle of the points; returns it in words."""
    slopes = series.chosen(records, measure="tasks", quantity="slope")
    slope, theory = (
        series.mean(series.by_seed(slopes, name)[:, np.newaxis])[0]
        for name in ("value", "predicted")
    )
    if not np.isfinite(slope) or len(k) < 2 or not (measured > 0).all():
        return ""
    middle = np.exp(np.mean(np.log(measured)) - slope * np.mean(np.log(k)))
    dots = {"color": _MEASURED, "linestyle": (0, (1, 1)), "lw": 1}
    axes.plot(k, middle * k**slope, label="line of the slope", **dots)
    return f"\nslope {slope:.2f}, by theory {theory:.2f}".replace("-", "−")


def pixels(axes, records: Sequence[Record]) -> None:
    """The gradient norm of the mean loss over n output pixels; a line per task.

    Args:
      axes: The axes to draw into.
      records: "gradient_norm" of one measure and norm.
    """
    ticks = set()
    for place, ((task,),) in enumerate(series.distinct(records, "tasks")):
        task_records = series.chosen(records, tasks=[task])
        n, (value, predicted) = series.over(task_records, "count", "value", "predicted")
        ends = series.ends(task_records, "count")
        _plot_with_reference(axes, n, value, ends, predicted, style.look(place), task)
        ticks |= set(n)
    style.log_x(axes, ticks)
    style.log_y(axes)
    axes.set_xlabel("n, output pixels in the mean loss")
    axes.set_ylabel("norm of its gradient")


def _plot_with_reference(
    axes, x, value, ends, reference, look: Mapping[str, Any], label: str
):
    """Draws the mean over seeds with its band, and `reference` as thin dashes."""
    style.band(axes, x, value, ends, look["color"])
    axes.plot(x, series.mean(value), label=label, **look)
    axes.plot(x, series.mean(reference), color=look["color"], ls="--", lw=0.9)


def attacked_pixels(axes, records: Sequence[Record]) -> None:
    """A metric of n output pixels under an attack on them, and without one (dashes).

    Args:
      axes: The axes to draw into.
      records: "attacked_pixels" of one task and metric.
    """
    ticks = set()
    for place, (measure,) in enumerate(series.distinct(records, "measure"), 1):
        measure_records = series.chosen(records, measure=measure)
        n, (value, clean) = series.over(measure_records, "count", "value", "clean")
        ends = series.ends(measure_records, "count")
        look = style.look(place)
        _plot_with_reference(axes, n, value, ends, clean, look, _SHORT_KINDS[measure])
        ticks |= set(n)
    style.log_x(axes, ticks)
    style.log_y_if_wide(axes)
    axes.set_xlabel("n, attacked output pixels")
    first = records[0]
    axes.set_ylabel(f"{first['metric']} there\n{first['better']} is better")


def first_order(axes, records: Sequence[Record], ratio: bool = False):
    """The rise of the loss under PGD over eps, beside eps times the dual norm (dashes).

    Args:
      axes: The axes to draw into.
      records: "rise" of one norm.
      ratio: Draw the rise over its prediction instead.

    Returns:
      Lines that spell out the shortened labels.
    """
    groups = series.distinct(records, "tasks")
    short_names = style.short_names("+".join(group) for (group,) in groups)
    for place, (group,) in enumerate(groups):
        group_records = series.chosen(records, tasks=list(group))
        eps, (rise, predicted, ratios) = series.over(
            group_records, "eps", "value", "predicted", "ratio"
        )
        label, look = short_names["+".join(group)], style.look(place)
        if ratio:
            ends = series.ends(group_records, "eps", "ratio_interval")
            style.band(axes, eps, ratios, ends, look["color"])
            axes.plot(eps, series.mean(ratios), label=label, **look)
        else:
            ends = series.ends(group_records, "eps")
            _plot_with_reference(axes, eps, rise, ends, predicted, look, label)
    style.log_x(axes, sorted({record["eps"] for record in records}))
    if ratio:
        axes.axhline(1, color="0.3", ls=":", lw=1)
    else:
        style.log_y(axes)
    norm = records[0]["norm"]
    axes.set_xlabel(f"eps, {norm} ({style.unit_of(norm)})")
    over = " over\nits first-order prediction" if ratio else ""
    axes.set_ylabel(f"rise of the loss{over}")
    return style.spelt_out(short_names)


def cosines(axes, records: Sequence[Record], quantity: str) -> None:
    """A number per pair of tasks, from -1 (red) over 0 (white) to 1 (blue)."""
    tasks, values = series.matrix(records, quantity)
    matrix(axes, values, "{:.2f}".format)
    axes.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right")
    axes.set_yticks(range(len(tasks)), tasks)


def matrix(axes, values: np.ndarray, write: Callable[[float], str]) -> None:
    """A square of numbers from -1 (red) over 0 (white) to 1 (blue).

    Args:
      axes: The axes to draw into; the caller sets their ticks.
      values: `[rows, rows]`, NaN where there is none.
      write: Formats a number.
    """
    places = np.arange(len(values))
    axes.pcolormesh(places, places, values, cmap="RdBu", vmin=-1, vmax=1)
    for i, j in itertools.product(places, repeat=2):
        if np.isfinite(values[i, j]):
            color = "white" if abs(values[i, j]) > 0.6 else "black"
            words = write(values[i, j]).replace("-", "\N{MINUS SIGN}")
            axes.text(j, i, words, ha="center", va="center", color=color, size=7.5)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def cosine_plot(title: str, records: Sequence[Record], quantity: str) -> Figure:
    """A figure of one matrix, as large as its tasks need."""
    figure, grid = style.multiples(1, _matrix_size(records))
    cosines(grid[0], records, quantity)
    return style.finish(figure, title, legend=False)


def _matrix_size(records: Sequence[Record]) -> tuple[float, float]:
    pairs = series.chosen(records, quantity="cosine")
    side = max(2.8, 0.45 * len({record["tasks"][0] for record in pairs}) + 1.2)
    return side + 0.4, side


# The figures of a run.


def save_run(records: Sequence[Record], folder: pathlib.Path) -> list[pathlib.Path]:
    """Saves a plot per measure that the records cover; returns the paths.

    Removes plots of other measures that an earlier call has left.
    """
    paths = []
    for name, (draw, quantity) in _RUN_FIGURES.items():
        path = folder / f"{name}.png"
        if series.chosen(records, quantity=quantity):
            paths.append(path)
            style.save(functools.partial(draw, records), path)
        else:
            path.unlink(missing_ok=True)
    return paths


def sizes_of_run(records: Sequence[Record]) -> Figure:
    """The norms over the number of tasks, a panel per norm and scaling."""
    figure, grid = style.grid_of(len(NORMS), len(NORMALISATIONS), (3.7, 3))
    for axes, norm, scaling in _panels(grid, NORMS, NORMALISATIONS):
        task_records = series.chosen(records, measure="tasks", norm=norm)
        sizes(axes, series.chosen(task_records, normalisation=scaling))
        axes.set_title(f"{norm}, {_SCALINGS[scaling]}")
    title = "Norm of the mean gradient of k tasks"
    return style.finish(figure, title, [_INTERVAL])


def _panels(grid: np.ndarray, row_keys: Sequence, column_keys: Sequence):
    """(axes, key of its row, key of its column) of each panel."""
    pairs = itertools.product(row_keys, column_keys)
    return [(axes, *pair) for axes, pair in zip(grid.flat, pairs, strict=True)]


def cosines_of_run(records: Sequence[Record]) -> Figure:
    """Mean cosines of pairs of tasks, and means of their magnitudes."""
    figure, grid = style.grid_of(1, 2, _matrix_size(records))
    titles = {"cosine": "mean cosine", "abs_cosine": "mean |cosine|"}
    for axes, quantity in zip(grid[0], titles, strict=True):
        cosines(axes, records, quantity)
        axes.set_title(titles[quantity])
    title = "Two tasks' gradients with respect to an image"
    return style.finish(figure, title, legend=False)


def pixels_of_run(records: Sequence[Record]) -> Figure:
    """Gradient norms over the number of output pixels, a panel per norm."""
    norm_records = series.chosen(records, quantity="gradient_norm")
    kinds = [kind for kind in _PIXEL_KINDS if series.chosen(norm_records, measure=kind)]
    figure, grid = style.grid_of(len(NORMS), len(kinds), (4.8, 3.2))
    for axes, norm, kind in _panels(grid, NORMS, kinds):
        pixels(axes, series.chosen(norm_records, measure=kind, norm=norm))
        axes.set_title(f"{norm}, {_PIXEL_KINDS[kind]}")
    notes = ["dashes: theory (root mean square) for random pixels", _INTERVAL]
    title = "Gradient of the mean loss over n output pixels"
    return style.finish(figure, title, notes)


def attacks_of_run(records: Sequence[Record]) -> Figure:
    """The harm that attacks on some output pixels do to them, a panel per task."""
    pixel_records = series.chosen(records, quantity="attacked_pixels")
    figure = _by_task(attacked_pixels, pixel_records, (3.7, 2.8))
    title = f"PGD linf eps {pixel_records[0]['eps']:g} on n output pixels"
    return style.finish(figure, title, ["dashes: without an attack", _INTERVAL])


def _by_task(
    panel: Callable, records: Sequence[Record], size: tuple[float, float]
) -> Figure:
    """A panel per task for its headline metric, the first one in its records."""
    tasks = [task for ((task,),) in series.distinct(records, "tasks")]
    figure, grid = style.multiples(len(tasks), size)
    for axes, task in zip(grid, tasks, strict=True):
        task_records = series.chosen(records, tasks=[task])
        panel(axes, series.chosen(task_records, metric=task_records[0]["metric"]))
        axes.set_title(task)
    return figure


def first_order_of_run(records: Sequence[Record]) -> Figure:
    """The rise of the loss, and its ratio to the first-order prediction."""
    rises = series.chosen(records, quantity="rise")
    figure, grid = style.grid_of(1, 2, (5, 3.8))
    name_notes: list[str] = []
    for axes, ratio in zip(grid[0], (False, True), strict=True):
        name_notes = first_order(axes, rises, ratio)
    notes = ["dashes: eps times the dual norm of the gradient; right: over that"]
    title = "Rise of the mean loss under PGD, and its ratio to the first order"
    return style.finish(figure, title, [*notes, _INTERVAL, *name_notes])


def corruptions_of_run(records: Sequence[Record]) -> Figure:
    """Each task's headline metric, a row per corruption, darker where more severe."""
    corrupted_records = series.chosen(records, quantity="corrupted")
    figure = _by_task(corrupted, corrupted_records, (3.9, 3.2))
    return style.finish(figure, "Under common corruptions")


def corrupted(axes, records: Sequence[Record]) -> None:
    """A metric under common corruptions: a row of marks each, from mild to severe.

    Args:
      axes: The axes to draw into.
      records: "corrupted" of one run, task and metric.
    """
    names = [name for (name,) in series.distinct(records, "corruption")]
    severities = sorted({record["severity"] for record in records})
    for place, severity in enumerate(severities):
        severity_records = series.chosen(records, severity=severity)
        color = str(0.75 * (1 - place / max(len(severities) - 1, 1)))
        y = [names.index(record["corruption"]) for record in severity_records]
        x = series.by_seed(severity_records)
        axes.plot(x, y, "o", color=color, label=f"severity {severity}")
    if records[0]["clean"] is not None:
        axes.axvline(records[0]["clean"], color=_THEORY, ls="--", label="clean")
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.invert_yaxis()
    unit = f" [{records[0]['unit']}]" if records[0].get("unit") else ""
    axes.set_xlabel(f"{records[0]['metric']}{unit}, {records[0]['better']} is better")


@dataclasses.dataclass(frozen=True)
class Net:
    """A trained net.

    Attributes:
      variant: The kind of model.
      norm: Mean dual norm of its loss's gradient.
      lost: `[radii]`, the share of its clean value that attacks took, in percent.
    """

    variant: str
    norm: float
    lost: np.ndarray


def resistance(
    title: str, panels: Sequence[str], nets: Sequence[Net], norm: str
) -> Figure:
    """What attacks take from nets over their gradients' norms; a panel per radius.

    Args:
      title: Above the figure.
      panels: The titles of the panels.
      nets: Each becomes a mark, whose look is its variant's.
      norm: Of the radii.
    """
    figure, grid = style.grid_of(len(panels), 1, (3.9, 2.3), sharex=True)
    variants = list(dict.fromkeys(net.variant for net in nets))
    short_names = style.short_names(variants)
    for place, (axes, name) in enumerate(zip(grid[:, 0], panels, strict=True)):
        for number, variant in enumerate(variants):
            variant_nets = [net for net in nets if net.variant == variant]
            look = style.look(number) | {"linestyle": "", "label": short_names[variant]}
            lost = [net.lost[place] for net in variant_nets]
            axes.plot([net.norm for net in variant_nets], lost, **look)
        axes.set_title(name)
        axes.set_ylabel("lost [% of clean]")
    unit = f"loss over eps, {norm} ({style.unit_of(norm)})"
    grid[-1, 0].set_xlabel(f"dual norm of the gradient\n[{unit}]")
    return style.finish(figure, title, style.spelt_out(short_names))


_RUN_FIGURES = {
    "measure_corruptions": (corruptions_of_run, "corrupted"),
    "measure_tasks": (sizes_of_run, "norm_by_size"),
    "measure_cosines": (cosines_of_run, "cosine"),
    "measure_gradients": (pixels_of_run, "gradient_norm"),
    "measure_pixels": (attacks_of_run, "attacked_pixels"),
    "measure_first_order": (first_order_of_run, "rise"),
}
