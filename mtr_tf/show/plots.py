# SPDX-License-Identifier: Apache-2.0
"""Pictures of a sweep for people: curves over the radius, and a gallery of examples."""

from __future__ import annotations

import itertools
import math
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from mtr_tf import files
from mtr_tf import tasks as tasks_lib
from mtr_tf.evaluation.cell_store import Result
from mtr_tf.evaluation.results import Record
from mtr_tf.show import tables

# By attack; the colour is that of the group.
_STYLES = tuple(itertools.product("os^Dv", ("-", "--", ":", "-.")))
_MOST_BANDS = 6  # More lines than that are drawn without their intervals.
_MOST_ROWS = 12  # Of the gallery.
_SHARED = 3  # Columns of the gallery that are the same for all tasks.


def save_curves(records: Sequence[Record], path: pathlib.Path) -> None:
    """Each task's headline metric against the radius; a line per attack and group."""
    tasks = list(dict.fromkeys(record["task"] for record in records))
    columns = min(3, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure = Figure((4.2 * columns, 3.4 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, task in zip(grid, tasks, strict=False):
        metric = tasks_lib.TASKS[task].metrics[0].name
        chosen = [r for r in records if r["task"] == task and r["metric"] == metric]
        _draw_curves(axes, chosen)
    for axes in grid[len(tasks) :]:
        axes.set_visible(False)
    figure.suptitle(tables.about_intervals(records), fontsize=8)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(4, len(labels))
    )
    _save(figure, path)


def _draw_curves(axes, records: Sequence[Record]) -> None:
    """One task's small multiple: lines with their intervals shaded, clean at 0."""
    first = records[0]
    attacks = list(dict.fromkeys(r["attack"] for r in records))
    groups = list(dict.fromkeys("+".join(r["attacked"]) for r in records))
    name = "tab10" if len(groups) <= 10 else "tab20"
    colors = matplotlib.colormaps[name].colors
    bands = len({(r["attack"], *r["attacked"]) for r in records}) <= _MOST_BANDS
    for attack in attacks:
        marker, dashes = _STYLES[attacks.index(attack) % len(_STYLES)]
        for number, group in enumerate(groups):
            line = [
                (r["eps"], r["attacked_value"], *r["attacked_interval"])
                for r in records
                if (r["attack"], "+".join(r["attacked"])) == (attack, group)
                and r["eps"]
            ]
            if not line:  # A combination that makes no difference to another.
                continue
            line = [(0, first["clean"], *first["clean_interval"]), *sorted(line)]
            eps, value, low, high = np.array(line, float).T  # None becomes NaN.
            color = colors[number % len(colors)]
            label = f"{attack} on {group}"
            axes.plot(eps, value, dashes, color=color, marker=marker, ms=4, label=label)
            if bands:
                axes.fill_between(eps, low, high, color=color, alpha=0.15, lw=0)
    unit = f" [{first['unit']}]" if first["unit"] else ""
    axes.set_title(f"{first['task']} ({first['better']} is better)")
    axes.set_ylabel(f"{first['metric']}{unit}")
    levels = "levels of 0-255" if first["norm"] == "linf" else "plain l2 norm"
    axes.set_xlabel(f"eps, {first['norm']} ({levels})")
    axes.grid(alpha=0.3)


def gallery_result(results: Sequence[Result]) -> Result:
    """What the gallery shows: most tasks attacked; of these the largest radius."""
    return max(results, key=lambda r: (len(r.cell.attacked), r.cell.eps))


def save_gallery(clean: Result, attacked: Result, path: pathlib.Path) -> None:
    """A row per example and task: image, target, both outputs, the perturbation."""
    tasks = list(clean.scores)
    shown = max(1, min(len(clean.pictures["image"]), _MOST_ROWS // len(tasks)))
    titles = (
        "image",
        "adversarial image",
        "perturbation\n(magnified)",
        "target",
        "output, clean",
        "output, attacked",
    )
    places = [(example, task) for example in range(shown) for task in tasks]
    height, width = clean.pictures["image"].shape[1:3]
    tile = 1.7
    size = (
        tile * len(titles) * width / height + 0.8,
        tile * len(places) + 0.9,
    )
    figure = Figure(size, layout="constrained")
    grid = figure.subplots(len(places), len(titles), squeeze=False)
    for row, (example, task) in zip(grid, places, strict=True):
        pictures = _gallery_row(clean, attacked, task)
        for number, (axes, picture) in enumerate(zip(row, pictures, strict=True)):
            axes.set_xticks([])
            axes.set_yticks([])
            if number < _SHARED and task != tasks[0]:
                axes.set_axis_off()  # As in the example's first row.
                continue
            axes.imshow(picture[example], interpolation="nearest")
        row[_SHARED].set_ylabel(task)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=10)
    cell = attacked.cell
    figure.suptitle(f"{cell.label} on {cell.group}, {cell.norm} eps {cell.eps:g}")
    _save(figure, path)


def _gallery_row(clean: Result, attacked: Result, task: str) -> list[np.ndarray]:
    """The columns of the gallery, each uint8 `[examples, H, W, 3]`."""
    return [
        clean.pictures["image"],
        attacked.pictures["adversarial"],
        attacked.pictures["perturbation"],
        clean.pictures[f"target/{task}"],
        clean.pictures[f"output/{task}"],
        attacked.pictures[f"output/{task}"],
    ]


def _save(figure: Figure, path: pathlib.Path) -> None:
    with files.whole_file(path) as beside:
        figure.savefig(beside, dpi=110)
