# SPDX-License-Identifier: Apache-2.0
"""How plots look: colours, labels at the ends of lines, files. And the curves."""

from __future__ import annotations

import dataclasses
import io
import itertools
import pathlib
import warnings
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from mtr_tf import files
from mtr_tf.study.report.curves import Curve

# Okabe and Ito's colours, which the colour-blind can tell apart; its yellow left out,
# too pale for a line.
COLORS = (
    "#000000",
    "#D55E00",
    "#0072B2",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)
_STYLES = tuple(itertools.product(("-", "--", ":"), COLORS))
_MARKERS = "os^Dv<>PX*"
SIZE = (4.8, 3.3)  # Inches: a plot is to be read on a phone.
_APART = 0.062  # Least distance of labels, as a share of the axes' height.
_SETTINGS = {
    "font.size": 9,
    "svg.fonttype": "none",  # Text stays text, an SVG a quarter as large.
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.4",
    "grid.color": "0.88",
    "axes.grid": True,
    "axes.axisbelow": True,
    "lines.markersize": 4,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "svg.hashsalt": "mtr_tf",  # The same figure, the same file.
}


@dataclasses.dataclass(frozen=True)
class Plot:
    """One plot of the report.

    Attributes:
      id: Its name, for files and links.
      title: A line above it.
      caption: What is seen in it.
      alt: The same for who does not see it.
      draw: Makes the figure.
      first: Whether it is shown at once; else one click away.
      notes: Warnings that belong to it.
    """

    id: str
    title: str
    caption: str
    alt: str
    draw: Callable[[], Figure]
    first: bool = True
    notes: tuple[str, ...] = ()


def save(plot: Plot, folder: pathlib.Path) -> bytes:
    """Writes FOLDER/ID.png; returns the same plot as SVG."""
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # Of names in other scripts.
        figure = plot.draw()
        with files.whole_file(folder / f"{plot.id}.png") as beside:
            figure.savefig(beside, dpi=144, metadata={"Software": None})
        figure.set_layout_engine("none")  # It stays as it is now laid out.
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def new(title: str, size: tuple[float, float] = SIZE):
    """A figure of one plot; returns (figure, axes)."""
    figure = Figure(size, layout="constrained")
    axes = figure.subplots()
    figure.suptitle(title, fontsize=9.5, x=0.02, ha="left")
    return figure, axes


def style(place: int) -> dict:
    """The look of the line of a number; the first 21 are all different."""
    dashes, color = _STYLES[place % len(_STYLES)]
    marker = _MARKERS[place % len(_MARKERS)]
    return {"linestyle": dashes, "color": color, "marker": marker}


def band(axes, x: np.ndarray, values: np.ndarray, color: str) -> None:
    """From the least to the largest of `[seeds, X]`; nothing where there is one."""
    several = (~np.isnan(values)).sum(axis=0) > 1
    if several.any():
        low, high = np.nanmin(values[:, several], 0), np.nanmax(values[:, several], 0)
        axes.fill_between(x[several], low, high, color=color, alpha=0.12, lw=0)


def mean(values: np.ndarray) -> np.ndarray:
    """Over seeds, without NaN; NaN where there is none."""
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def label_ends(axes, lines: Sequence[tuple[str, float, float, Mapping]]) -> None:
    """Writes each line's name right of the axes, near its end, none over another.

    Args:
      axes: After all is drawn, so that their limits are known.
      lines: (name, x and y of the line's last point, its look) of each.
    """
    lines = [line for line in lines if np.isfinite(line[2])]
    axes.set_xlim(axes.get_xlim())  # No more scaling from here on.
    axes.set_ylim(axes.get_ylim())
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [to_axes.transform((x, y)) for _, x, y, _ in lines]
    order = sorted(range(len(lines)), key=lambda i: ends[i][1])
    places = spread([ends[i][1] for i in order], _APART)
    for i, place in zip(order, places, strict=True):
        name, _, _, look = lines[i]
        x, y = ends[i]
        outside = {"transform": axes.transAxes, "clip_on": False}
        thin = {"color": look["color"], "lw": 0.7, "alpha": 0.8}
        axes.plot([x, 1.0, 1.02], [y, place, place], **thin, **outside)
        sample = {**look, "markevery": [1], "lw": 1.2}
        axes.plot([1.02, 1.05, 1.08], [place] * 3, **sample, **outside)
        axes.text(1.1, place, name, va="center", transform=axes.transAxes)


def spread(wanted: Sequence[float], apart: float) -> list[float]:
    """Growing numbers moved as little as needed to lie `apart` and within [0, 1].

    The least squares of the moves: isotonic regression of `wanted - i * apart`, by
    pooling adjacent violators (Barlow et al. 1972, "Statistical Inference under Order
    Restrictions"). Where so many have no room, they reach beyond 1.
    """
    highest = max(0.0, 1 - (len(wanted) - 1) * apart)
    pools: list[list[float]] = []  # [mean, how many]
    for place, value in enumerate(wanted):
        pools.append([value - place * apart, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (above, many), (below, few) = pools.pop(), pools.pop()
            pools.append([(above * many + below * few) / (many + few), many + few])
    pools = [[min(max(value, 0.0), highest), count] for value, count in pools]
    flat = [value for value, count in pools for _ in range(int(count))]
    return [value + place * apart for place, value in enumerate(flat)]


def curve(found: Curve, variants: Sequence[str]) -> Figure:
    """A metric over the radius: a line per variant, the mean over seeds."""
    taller = max(1.0, _APART * len(found.values))  # All names beside the axes.
    figure, axes = new(found.title, (SIZE[0], SIZE[1] * taller))
    lines = []
    for variant, values in found.values.items():
        look = style(list(variants).index(variant))
        band(axes, found.eps, values, look["color"])
        line = mean(values)
        known = ~np.isnan(line)
        if known.any():
            axes.plot(found.eps[known], line[known], **look)
            end = (found.eps[known][-1], line[known][-1])
            lines.append((variant, *end, look))
    if found.reference:
        axes.axhline(0, color="0.3", lw=0.8)
    unit = f" [{found.facts['unit']}]" if found.facts["unit"] else ""
    what = "difference" if found.reference else found.metric
    axes.set_ylabel(f"{what}{unit}, {found.facts['better']} is better")
    norm = found.facts["norm"]
    levels = "levels of 0-255" if norm == "linf" else "plain l2 norm"
    axes.set_xlabel(f"eps, {norm} ({levels}); 0: clean")
    _ticks(axes, found.eps)
    label_ends(axes, lines)
    return figure


def _ticks(axes, eps: np.ndarray) -> None:
    """These radii along x, but none too near to the one before."""
    kept: list[float] = []
    for tick in eps:
        if not kept or tick - kept[-1] >= eps[-1] / 16:
            kept.append(tick)
    axes.set_xticks(kept, [f"{tick:g}" for tick in kept])
