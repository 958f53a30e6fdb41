# SPDX-License-Identifier: Apache-2.0
"""Plots of what was measured of the theory, over seeds, beside its predictions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from matplotlib.ticker import LogLocator
from matplotlib.ticker import NullFormatter
from matplotlib.ticker import NullLocator

from mtr_tf.show import text
from mtr_tf.study.report import draw
from mtr_tf.study.report import theory
from mtr_tf.study.report.theory import Record

_MEASURED, _THEORY, _ALIKE = draw.COLORS[2], draw.COLORS[1], draw.COLORS[3]


def sizes(records: Sequence[Record], title: str) -> Figure:
    """The norm of the mean gradient of k tasks over k, log-log, with its slope.

    Args:
      records: Of one variant, norm and normalisation, of all seeds.
      title: Above the plot.
    """
    figure, axes = draw.new(title)
    by_size = theory.chosen(records, quantity="norm_by_size")
    k, (value, predicted, factor) = theory.over(
        by_size, "count", "value", "predicted", "factor"
    )
    draw.band(axes, k, value, _MEASURED)
    measured, one = draw.mean(value), value[:, :1]
    slopes = theory.chosen(records, measure="tasks", quantity="slope")
    slope = draw.mean(theory.by_seed(slopes)[:, np.newaxis])[0]
    lines = [
        ("measured", measured, {"color": _MEASURED, "marker": "o", "linestyle": "-"}),
        ("theory", draw.mean(predicted), {"color": _THEORY, "linestyle": "--"}),
        ("alike", draw.mean(one * factor), {"color": _ALIKE, "linestyle": "-."}),
        ("1 / √k", measured[0] / np.sqrt(k), {"color": "0.35", "linestyle": ":"}),
    ]
    if np.isfinite(slope) and len(k) > 1:
        fit = _power(k, measured, slope)
        name = f"fit, slope {text.number(slope)}"
        lines.insert(1, (name, fit, {"color": _MEASURED, "linestyle": (0, (1, 1))}))
    for _, y, look in lines:
        axes.plot(k, y, **look)
    _log_log(axes, k)
    axes.set_xlabel("k, tasks in the mean loss")
    axes.set_ylabel("norm of its gradient")
    _label(axes, k, lines)
    return figure


def _power(x: np.ndarray, y: np.ndarray, slope: float) -> np.ndarray:
    """The line of a log-log slope through the middle of the points."""
    middle = np.exp(np.mean(np.log(y)) - slope * np.mean(np.log(x)))
    return middle * x**slope


def pixels(records: Sequence[Record], title: str) -> Figure:
    """The gradient norm of the mean loss over n output pixels; a line per task.

    Args:
      records: "gradient_norm" of one variant, measure and norm, of all seeds.
      title: Above the plot.
    """
    figure, axes = draw.new(title)
    ends, ticks = [], set()
    for place, ((task,),) in enumerate(theory.distinct(records, "tasks")):
        own = theory.chosen(records, tasks=[task])
        n, (value, predicted) = theory.over(own, "count", "value", "predicted")
        look = draw.style(place)
        draw.band(axes, n, value, look["color"])
        line = draw.mean(value)
        axes.plot(n, line, **look)
        axes.plot(n, draw.mean(predicted), color=look["color"], ls="--", lw=1)
        ends.append((task, n[-1], line[-1], look))
        ticks |= set(n)
    _log_log(axes, sorted(ticks))
    axes.set_xlabel("n, output pixels in the mean loss")
    axes.set_ylabel("norm of its gradient")
    draw.label_ends(axes, ends)
    return figure


def attacked_pixels(records: Sequence[Record], title: str) -> Figure:
    """A metric of n output pixels under an attack on them, and without one.

    Args:
      records: "attacked_pixels" of one variant, task and metric, of all seeds.
      title: Above the plot.
    """
    figure, axes = draw.new(title)
    names = {"pixels": "random pixels", "blocks": "a block"}
    ends, ticks = [], set()
    for place, (measure,) in enumerate(theory.distinct(records, "measure"), 1):
        own = theory.chosen(records, measure=measure)
        n, (value, clean) = theory.over(own, "count", "value", "clean")
        look = draw.style(place)
        draw.band(axes, n, value, look["color"])
        line, before = draw.mean(value), draw.mean(clean)
        axes.plot(n, line, **look)
        thin = {"color": look["color"], "linestyle": "--", "lw": 1}
        axes.plot(n, before, **thin)
        ends.append((names[measure], n[-1], line[-1], look))
        ends.append((f"{names[measure]}, clean", n[-1], before[-1], thin))
        ticks |= set(n)
    axes.set_xscale("log")
    _ticks(axes, sorted(ticks))
    axes.set_xlabel("n, attacked output pixels")
    first = records[0]
    axes.set_ylabel(f"{first['metric']} there, {first['better']} is better")
    draw.label_ends(axes, ends)
    return figure


def first_order(records: Sequence[Record], title: str, ratio: bool) -> Figure:
    """The rise of the loss under PGD over eps, beside eps times the dual norm.

    Args:
      records: "rise" of one variant and norm, of all seeds.
      title: Above the plot.
      ratio: Draw the rise over its prediction instead.
    """
    figure, axes = draw.new(title)
    ends = []
    for place, (group,) in enumerate(theory.distinct(records, "tasks")):
        own = theory.chosen(records, tasks=list(group))
        eps, values = theory.over(own, "eps", "value", "predicted", "ratio")
        rise, predicted, relative = values
        look = draw.style(place)
        shown = relative if ratio else rise
        draw.band(axes, eps, shown, look["color"])
        line = draw.mean(shown)
        axes.plot(eps, line, **look)
        if not ratio:
            axes.plot(eps, draw.mean(predicted), color=look["color"], ls="--", lw=1)
        name = "+".join(group) if len(group) < 4 else f"mean of {len(group)} tasks"
        ends.append((name, eps[-1], line[-1], look))
    if ratio:
        axes.set_xscale("log")
        axes.axhline(1, color="0.3", ls=":", lw=1)
        axes.set_ylabel("rise of the loss / prediction")
        _ticks(axes, eps)
    else:
        _log_log(axes, eps)
        axes.set_ylabel("rise of the mean loss")
    norm = records[0]["norm"]
    levels = "levels of 0-255" if norm == "linf" else "plain l2 norm"
    axes.set_xlabel(f"eps, {norm} ({levels})")
    draw.label_ends(axes, ends)
    return figure


def matrix(tasks: Sequence[str], values: np.ndarray, title: str) -> Figure:
    """A number per pair of tasks, from -1 (red) over 0 (white) to 1 (blue)."""
    side = max(3.0, 0.46 * len(tasks) + 1.2)
    figure, axes = draw.new(title, (min(side + 0.6, 7.5), min(side, 7)))
    places = np.arange(len(tasks))
    axes.pcolormesh(places, places, values, cmap="RdBu", vmin=-1, vmax=1)
    for i, j in itertools.product(places, repeat=2):
        if np.isfinite(values[i, j]):
            color = "white" if abs(values[i, j]) > 0.6 else "black"
            words = f"{values[i, j]:.2f}".replace("-", "\N{MINUS SIGN}")
            axes.text(j, i, words, ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(places, tasks, rotation=45, ha="right")
    axes.set_yticks(places, tasks)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def _label(axes, x: np.ndarray, lines) -> None:
    ends = [(name, x[-1], y[-1], look) for name, y, look in lines]
    draw.label_ends(axes, ends)


def _log_log(axes, ticks: Sequence[float]) -> None:
    axes.set_xscale("log")
    _ticks(axes, ticks)
    if not any((np.asarray(line.get_ydata()) > 0).any() for line in axes.lines):
        return  # Nothing to show on a logarithmic axis.
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1, 2, 5) if high > 8 * low else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    axes.yaxis.set_major_locator(LogLocator(subs=subs if high < 1e4 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _ticks(axes, ticks: Sequence[float]) -> None:
    """These along x, written out where there is room."""
    apart = np.log(max(ticks) / min(ticks)) / 12 if len(ticks) > 1 else 0
    kept: list[float] = []
    for tick in ticks:
        if not kept or np.log(tick / kept[-1]) >= apart:
            kept.append(tick)
    axes.set_xticks(kept, [f"{tick:g}" for tick in kept])
    axes.xaxis.set_minor_locator(NullLocator())
