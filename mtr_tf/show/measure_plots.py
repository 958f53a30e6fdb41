# SPDX-License-Identifier: Apache-2.0
"""Plots of measures: what was measured beside what the theory says."""

from __future__ import annotations

import itertools
import math
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from matplotlib.ticker import LogLocator
from matplotlib.ticker import NullFormatter
from matplotlib.ticker import NullLocator

from mtr_tf import files
from mtr_tf.measures.gradients import NORMALISATIONS
from mtr_tf.measures.records import NORMS
from mtr_tf.measures.records import Record

_COLORS = matplotlib.colormaps["tab20"].colors[::2]
_HOW = {
    "raw": "gradients as they are",
    "unit": "each scaled to 1, per image",
    "dataset": "each task scaled to 1",
}


def save(
    records: Sequence[Record], tasks: Sequence[str], folder: pathlib.Path
) -> list[pathlib.Path]:
    """Saves a plot per measure that there are records of; returns the paths."""
    drawings = {
        "measure_tasks": (draw_tasks, "norm_by_size"),
        "measure_cosines": (draw_cosines, "cosine"),
        "measure_gradients": (draw_pixel_gradients, "gradient_norm"),
        "measure_pixels": (draw_pixel_attacks, "attacked_pixels"),
        "measure_first_order": (draw_first_order, "rise"),
    }
    paths = []
    for name, (draw, quantity) in drawings.items():
        if any(record["quantity"] == quantity for record in records):
            path = folder / f"{name}.png"
            with files.whole_file(path) as beside:
                draw(records, tasks).savefig(beside, dpi=110)
            paths.append(path)
    return paths


def draw_tasks(records: Sequence[Record], tasks: Sequence[str]) -> Figure:
    """The norm of the mean gradient over the number of tasks, log-log."""
    del tasks
    figure = Figure((11, 7), layout="constrained")
    grid = figure.subplots(len(NORMS), len(NORMALISATIONS), squeeze=False)
    for row, norm in zip(grid, NORMS, strict=True):
        for axes, how in zip(row, NORMALISATIONS, strict=True):
            own = [
                r
                for r in records
                if (r.get("norm"), r.get("normalisation")) == (norm, how)
                and r["measure"] == "tasks"
            ]
            _draw_sizes(axes, own)
            axes.set_title(f"{norm}, {_HOW[how]}", fontsize=10)
            axes.set_xlabel("tasks attacked together")
            axes.set_ylabel(f"{norm} norm of their mean gradient")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _draw_sizes(axes, records: Sequence[Record]) -> None:
    sets = [r for r in records if r["quantity"] == "norm_of_mean"]
    sizes = [r for r in records if r["quantity"] == "norm_by_size"]
    (slope,) = (r for r in records if r["quantity"] == "slope")
    k, value = _columns(sets, "count", "value")
    axes.plot(k, value, ".", color="0.6", ms=4, label="each set of tasks")
    k, value, theory, factor = _columns(sizes, "count", "value", "predicted", "factor")
    low, high = _ends(sizes)
    axes.fill_between(k, low, high, color=_COLORS[0], alpha=0.2, lw=0)
    axes.plot(k, value, "o-", color=_COLORS[0], ms=4, label="mean (95 % interval)")
    axes.plot(k, theory, "--", color=_COLORS[1], label="theory: sqrt(1'C1) / k")
    label = "if all tasks were alike: sqrt((1 + (k - 1) rho) / k)"
    axes.plot(k, value[0] * factor, "-.", color=_COLORS[2], lw=1, label=label)
    label = "if uncorrelated too: 1 / sqrt(k)"
    axes.plot(k, value[0] / np.sqrt(k), ":", color="0.3", label=label)
    _log_log(axes, k, any(value > 0))
    if slope["value"] is not None:
        text = f"slope {slope['value']:.2f}, theory {slope['predicted']:.2f}"
        axes.text(0.03, 0.04, text, transform=axes.transAxes, fontsize=9)


def draw_cosines(records: Sequence[Record], tasks: Sequence[str]) -> Figure:
    """Mean cosines, and mean magnitudes of cosines, of each two tasks' gradients."""
    side = max(3.4, 0.62 * len(tasks) + 1.6)
    figure = Figure((2 * side + 0.4, side), layout="constrained")
    titles = {"cosine": "mean cosine", "abs_cosine": "mean |cosine|"}
    for axes, (quantity, title) in zip(
        figure.subplots(1, 2), titles.items(), strict=True
    ):
        matrix = np.full((len(tasks), len(tasks)), np.nan)
        for record in records:
            if record["quantity"] == quantity and record["value"] is not None:
                i, j = map(list(tasks).index, record["tasks"])
                matrix[i, j] = matrix[j, i] = record["value"]
        axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        for i, j in itertools.product(range(len(tasks)), repeat=2):
            dark = abs(matrix[i, j]) > 0.6
            text = f"{matrix[i, j]:.2f}"
            color = "white" if dark else "black"
            axes.text(j, i, text, ha="center", va="center", color=color, fontsize=8)
        axes.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(len(tasks)), tasks, fontsize=8)
        axes.set_title(title, fontsize=10)
    figure.suptitle("two tasks' gradients with respect to an image", fontsize=11)
    return figure


def draw_pixel_gradients(records: Sequence[Record], tasks: Sequence[str]) -> Figure:
    """The norm of the mean loss's gradient over the number of output pixels."""
    found = [r for r in records if r["quantity"] == "gradient_norm" and r["value"]]
    kinds = [k for k in ("pixels", "blocks") if any(r["measure"] == k for r in found)]
    figure = Figure((5.2 * len(kinds) + 0.6, 7.6), layout="constrained")
    grid = figure.subplots(len(NORMS), len(kinds), squeeze=False)
    for row, norm in zip(grid, NORMS, strict=True):
        for axes, kind in zip(row, kinds, strict=True):
            for color, task in zip(itertools.cycle(_COLORS), tasks, strict=False):
                own = [
                    r
                    for r in found
                    if (r["measure"], r["norm"], *r["tasks"]) == (kind, norm, task)
                ]
                n, value, theory = _columns(own, "count", "value", "predicted")
                axes.plot(n, value, "o-", color=color, ms=4, label=task)
                low, high = _ends(own)
                axes.fill_between(n, low, high, color=color, alpha=0.15, lw=0)
                axes.plot(n, theory, "--", color=color, lw=1)
            counts = {r["count"] for r in found if r["measure"] == kind}
            _log_log(axes, sorted(counts), bool(counts))
            where = "random output pixels" if kind == "pixels" else "pixels of a block"
            dashes = "; dashes: theory (root mean square)" if kind == "pixels" else ""
            axes.set_title(f"mean loss over n {where}{dashes}", fontsize=10)
            axes.set_xlabel("n, output pixels")
            axes.set_ylabel(f"{norm} norm of the gradient")
    _legend(figure, grid[0][0])
    return figure


def draw_pixel_attacks(records: Sequence[Record], tasks: Sequence[str]) -> Figure:
    """What attacks on some output pixels do to these pixels, over their number."""
    found = [
        r
        for r in records
        if r["quantity"] == "attacked_pixels" and r["metric"] != "loss"
    ]
    columns = min(3, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure = Figure((4.2 * columns, 3.3 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, task in itertools.zip_longest(grid, tasks):
        if task is None:
            axes.set_visible(False)
            continue
        own = [r for r in found if r["tasks"] == [task]]
        for color, kind in zip(_COLORS, ("pixels", "blocks"), strict=False):
            line = [r for r in own if r["measure"] == kind]
            n, value, clean = _columns(line, "count", "value", "clean")
            if not line:
                continue
            name = "random pixels" if kind == "pixels" else "a block"
            axes.plot(n, value, "o-", color=color, ms=4, label=f"{name}, attacked")
            low, high = _ends(line)
            axes.fill_between(n, low, high, color=color, alpha=0.15, lw=0)
            axes.plot(n, clean, "--", color=color, lw=1, label=f"{name}, clean")
        axes.set_xscale("log")
        _ticks(axes, sorted({record["count"] for record in own}))
        axes.set_title(f"{task} ({own[0]['better']} is better)", fontsize=10)
        axes.set_xlabel("n, attacked output pixels")
        axes.set_ylabel(f"{own[0]['metric']} on these pixels")
        axes.grid(alpha=0.3)
    figure.suptitle(f"PGD linf eps {found[0]['eps']:g} on n output pixels", fontsize=11)
    _legend(figure, grid[0])
    return figure


def draw_first_order(records: Sequence[Record], tasks: Sequence[str]) -> Figure:
    """The rise of the loss beside eps times the dual norm, and their ratio."""
    del tasks
    found = [r for r in records if r["quantity"] == "rise"]
    groups = list(dict.fromkeys("+".join(r["tasks"]) for r in found))
    figure = Figure((11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for color, group in zip(itertools.cycle(_COLORS), groups, strict=False):
        own = [r for r in found if "+".join(r["tasks"]) == group]
        eps, rise, theory, ratio = _columns(own, "eps", "value", "predicted", "ratio")
        many = group.count("+") > 2
        label = f"mean of {group.count('+') + 1} tasks" if many else group
        left.plot(eps, rise, "o-", color=color, ms=4, label=label)
        left.plot(eps, theory, "--", color=color, lw=1)
        right.plot(eps, ratio, "o-", color=color, ms=4)
        low, high = _ends(own, "ratio_interval")
        right.fill_between(eps, low, high, color=color, alpha=0.15, lw=0)
    norm = found[0]["norm"]
    levels = "levels of 0-255" if norm == "linf" else "plain l2 norm"
    left.set_title("rise of the mean loss under PGD; dashes: eps x dual norm")
    right.set_title("their ratio (1: the first order says all)")
    right.axhline(1, color="0.3", ls=":")
    for axes in (left, right):
        axes.set_xscale("log")
        _ticks(axes, sorted({record["eps"] for record in found}))
        axes.set_xlabel(f"eps, {norm} ({levels})")
        axes.grid(alpha=0.3)
    left.set_yscale("log")
    left.set_ylabel("rise of the loss")
    _legend(figure, left)
    return figure


def _columns(records: Sequence[Record], *names: str) -> np.ndarray:
    """Values by name, `[names, records]`, NaN for what does not exist."""
    rows = [[record.get(name) for record in records] for name in names]
    return np.array(rows, float).reshape(len(names), len(records))


def _ends(records: Sequence[Record], name: str = "interval") -> np.ndarray:
    return np.array([record[name] for record in records], float).reshape(-1, 2).T


def _log_log(axes, ticks, positive: bool) -> None:
    axes.set_xscale("log")
    _ticks(axes, ticks)
    if positive:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        subs = (1, 2, 5) if high > 8 * low else (1, 2, 3, 4, 5, 6, 7, 8, 9)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def _ticks(axes, ticks) -> None:
    """Only these along x, written out."""
    hidden = (5, 7, 9, 10)  # Of numbers of tasks; they have no room.
    axes.set_xticks(ticks, ["" if tick in hidden else f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _legend(figure: Figure, axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(6, len(labels))
    )
