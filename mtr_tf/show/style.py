# SPDX-License-Identifier: Apache-2.0
"""How every figure looks: colours, titles, ticks, legends, small multiples, files."""

from __future__ import annotations

import io
import math
import pathlib
import re
import warnings
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter
from matplotlib.ticker import LogLocator
from matplotlib.ticker import NullFormatter
from matplotlib.ticker import NullLocator

from mtr_tf import files

# Okabe and Ito's colours, which the colour-blind can tell apart, without the yellow,
# which is too pale for a line.
COLORS = (
    "#000000",
    "#D55E00",
    "#0072B2",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)
_MORE_COLORS = ("#6A3D9A", "#8C564B", "#7F7F7F", "#9ACD32", "#B22222", "#F4A6C0")
_DASHES = ("-", "--", ":")
_MARKERS = "os^Dv<>PX*"
SIZE = (4.8, 3.3)  # Inches: plots must be readable on a phone.
_TITLE, _NOTE, _LABEL = 9.5, 7.5, 8  # Font sizes, in points.
_NOTEBOOK_DPI = 90  # Of figures in notebooks.
_MAX_NAME = 28  # Characters of a name; a longer one is shortened in the middle.
_LOG_FACTOR = 100  # Values that differ by this factor get a logarithmic axis.
SETTINGS = {
    "font.size": 9,
    "text.parse_math": False,  # A name may have a dollar sign.
    "svg.fonttype": "none",  # Text stays text, an SVG a quarter as large.
    "axes.titlesize": _TITLE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.4",
    "grid.color": "0.88",
    "axes.grid": True,
    "axes.axisbelow": True,
    "xtick.labelsize": _LABEL,
    "ytick.labelsize": _LABEL,
    "lines.markersize": 4,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "legend.fontsize": _LABEL,
    "svg.hashsalt": "mtr_tf",  # Equal figures give equal files.
}


class Picture(Figure):
    """A figure that notebooks show, whether or not pyplot is in use there."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with matplotlib.rc_context(SETTINGS):
            self.savefig(buffer, format="png", dpi=_NOTEBOOK_DPI)
        return buffer.getvalue()


def drawn(draw: Callable[[], Figure]) -> Figure:
    """Draws a figure in our style."""
    with matplotlib.rc_context(SETTINGS):
        return draw()


def save(draw: Callable[[], Figure], path: pathlib.Path) -> bytes:
    """Draws a figure and writes it in the format of `path`; returns it as SVG.

    Files of equal figures are equal: they have no date.
    """
    metadata = _METADATA.get(path.suffix.lower())
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # Names may be in other scripts.
        figure = draw()
        with files.whole_file(path) as temp_path:
            figure.savefig(temp_path, dpi=144, metadata=metadata)
        figure.set_layout_engine("none")  # Keeps the present layout.
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata=_METADATA[".svg"])
    return buffer.getvalue()


# Keeps matplotlib from writing the date and its version.
_METADATA: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None},
    ".svg": {"Date": None},
}


def look(place: int) -> dict:
    """The look of line number `place`: 0 is black, the first 19 all differ."""
    turn, color = divmod(max(place - 1, 0), len(COLORS) - 1)
    return {
        "linestyle": _DASHES[turn % len(_DASHES)],
        "color": COLORS[color + 1 if place else 0],
        "marker": _MARKERS[place % len(_MARKERS)],
    }


def attack_look(attack: int, group: int, single: bool = False) -> dict:
    """The look of an attack's line: dashes for the attack, colour for the task group.

    From the 14th group on, colours repeat with other markers, and with other dashes if
    there is only one attack (`single`).
    """
    colors = COLORS + _MORE_COLORS
    turn, color = divmod(group, len(colors))
    return {
        "linestyle": ("-", "--", ":", "-.")[(attack + turn * single) % 4],
        "color": colors[color],
        "marker": _MARKERS[(attack + turn) % len(_MARKERS)],
    }


def multiples(count: int, size: tuple[float, float]):
    """A figure of small multiples with few empty places; returns (figure, axes).

    Args:
      count: The number of axes.
      size: Of each of them, in inches.
    """
    columns = min(range(min(count, 2), 5), key=lambda c: (-count % c, abs(c - 3)))
    rows = -(-count // columns)
    figure, grid = grid_of(rows, columns, size)
    for axes in grid.flat[count:]:
        axes.remove()
    return figure, grid.flat[:count]


def grid_of(rows: int, columns: int, size: tuple[float, float], **settings):
    """A figure of `rows` by `columns` axes of a size; returns (figure, axes)."""
    figure_size = (columns * size[0], rows * size[1])
    figure = Picture(figure_size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.08)
    return figure, figure.subplots(rows, columns, squeeze=False, **settings)


def short_names(names: Iterable[str]) -> dict[str, str]:
    """{name: label}; labels of long names lack the middle, and all labels differ.

    The label of a long group has its first and last task: `seg+…+normal (11 tasks)`.
    """
    labels: dict[str, str] = {}
    for name in dict.fromkeys(names):
        parts = name.split("+")
        first, last = parts[0], parts[-1]
        if len(name) <= _MAX_NAME:
            text = name
        elif len(parts) > 2 and len(first + last) < _MAX_NAME:
            text = f"{first}+…+{last} ({len(parts)} tasks)"
        else:
            text = f"{name[: _MAX_NAME // 2]}…{name[1 - _MAX_NAME // 2 :]}"
        copies = sum(label.startswith(text) for label in labels.values())
        labels[name] = f"{text} #{copies + 1}" if copies and text != name else text
    return labels


def spelt_out(labels: dict[str, str]) -> list[str]:
    """A line for each name whose label is shorter."""
    return [
        f"{text}: {name.replace('+', ' + ')}"
        for name, text in labels.items()
        if text != name
    ]


def finish(
    figure: Figure, title: str, notes: Sequence[str] = (), legend: bool = True
) -> Figure:
    """Writes the title and notes above the axes and the legend below them.

    The figure grows by the room that these take. Long words of the title are shortened
    and spelt out in a note.

    Args:
      figure: The figure, with everything drawn.
      title: Takes as many lines as it needs.
      notes: Stand under the title, in smaller letters.
      legend: Whether to add a legend of all labels of the axes.
    """
    width, height = figure.get_size_inches()
    short_words = short_names(re.findall(r"[^\s,;()]+", title))
    for word, text in short_words.items():
        title = title.replace(word, text) if word != text else title
    titles = _wrap(title, width, _TITLE)
    lines = [*spelt_out(short_words), *notes]
    lines = [line for note in lines for line in _wrap(note, width, _NOTE)]
    head_height = (1.35 * (len(titles) * _TITLE + len(lines) * _NOTE) + 8) / 72
    labels = _labels(figure) if legend else {}
    columns = _legend_columns(labels, width)
    legend_height = (
        -(-len(labels) // columns) * 1.45 * _LABEL / 72 + 0.1 if labels else 0
    )
    total_height = height + head_height + legend_height
    figure.set_size_inches(width, total_height)
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - head_height / total_height))
    left, line = 0.07 / width, 1.35 / 72 / total_height
    place = {"x": left, "ha": "left", "va": "top", "linespacing": 1.2}
    top = 1 - 4 / 72 / total_height
    figure.suptitle("\n".join(titles), y=top, size=_TITLE, **place).set_in_layout(False)
    top -= len(titles) * _TITLE * line
    text = figure.text(y=top, s="\n".join(lines), size=_NOTE, color="0.35", **place)
    text.set_in_layout(False)
    if labels:
        keys = (list(labels.values()), list(labels))
        figure.legend(*keys, loc="outside lower center", ncols=columns)
    return figure


def _labels(figure: Figure) -> dict:
    """{label for the legend: the thickest line with that label}, over all axes."""
    labels = {}
    for axes in figure.axes:
        for label, line in _labelled_lines(axes):
            label = _legend_label(label)
            thickest = labels.setdefault(label, line)
            if line.get_linewidth() > thickest.get_linewidth():
                labels[label] = line
    return labels


def _labelled_lines(axes) -> list[tuple[str, Any]]:
    """(label, line) of the lines that have a label.

    Includes labels that begin with `_`, which matplotlib leaves out.
    """
    pairs = [(str(line.get_label()), line) for line in axes.lines]
    return [
        pair for pair in pairs if not re.fullmatch(r"_(nolegend_|child\d+)|", pair[0])
    ]


def _legend_label(label: str) -> str:
    """The label in a form that legends show: they hide labels that begin with `_`."""
    return f" {label}" if label.startswith("_") else label


def _legend_columns(labels: Iterable[str], width: float) -> int:
    widest = max((text_width(label, _LABEL) for label in labels), default=0)
    return max(1, int(72 * (width - 0.2) / (widest + 5 * _LABEL)))


def _wrap(text: str, width: float, size: float) -> list[str]:
    """The text in lines that fit into `width` inches; `size` is the font's."""
    lines = [""]
    for word in text.split():
        extended = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(extended, size) > 72 * (width - 0.2):
            lines.append(word)
        else:
            lines[-1] = extended
    return lines


def text_width(text: str, size: float) -> float:
    """The width of a text in one line, in points."""
    font = FontProperties(size=size)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]


def legend_room(labels: Iterable[str]) -> float:
    """The inches by which long labels of an `end_legend` widen a figure."""
    widest = max((text_width(label, _LABEL) for label in labels), default=0)
    return max(0.0, widest / 72 - 0.8)


def end_legend(axes, ends: dict[str, float]) -> None:
    """Adds a legend to the right, sorted by the last values of the lines.

    Args:
      axes: The axes, with everything drawn.
      ends: {label: y of the line's last point}.
    """
    by_label = dict(_labelled_lines(axes))
    order = sorted(by_label, key=lambda label: -ends[label])
    axes.legend(
        [by_label[label] for label in order],
        list(map(_legend_label, order)),
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        borderaxespad=0,
        handlelength=2.2,
    )


# Axes.


def band(axes, x: np.ndarray, values: np.ndarray, ends, color: str) -> None:
    """Shades from the lowest to the highest seed; for a single seed, its interval.

    Args:
      axes: The axes to draw into.
      x: `[X]`.
      values: `[seeds, X]`.
      ends: `[2, seeds, X]`, intervals over images; None if there are none.
      color: Of the line.
    """
    several = (~np.isnan(values)).sum(axis=0) > 1
    if several.any():
        low, high = np.nanmin(values[:, several], 0), np.nanmax(values[:, several], 0)
        axes.fill_between(x[several], low, high, color=color, alpha=0.15, lw=0)
    elif ends is not None and len(values) == 1 and np.isfinite(ends).any():
        axes.fill_between(x, *ends[:, 0], color=color, alpha=0.15, lw=0)


def radii(axes, eps: Sequence[float], norm: str) -> None:
    """Makes x an axis of radii, almost logarithmic if they differ much; 0: clean."""
    smallest = min((e for e in eps if e > 0), default=1)
    if max(eps) > 20 * smallest:
        axes.set_xscale("asinh", linear_width=smallest)
    x_ticks(axes, eps)
    zero = "; 0: clean" if min(eps) == 0 else ""
    axes.set_xlabel(f"eps, {norm} ({unit_of(norm)}){zero}")


def unit_of(norm: str) -> str:
    """The unit of a radius."""
    return "levels of 0-255" if norm == "linf" else "plain l2 norm"


def x_ticks(axes, ticks: Iterable[float]) -> None:
    """Sets ticks along x with their numbers, leaving out those that lack the room."""
    *ticks, last = sorted(set(ticks))
    axes.autoscale_view()  # The limits cover everything drawn.
    pixels = axes.figure.dpi / 72
    gap = 0.6 * _LABEL * pixels

    def ends(tick: float) -> tuple[float, float]:
        middle = axes.transData.transform((tick, 1))[0]
        half = text_width(f"{tick:g}", _LABEL) * pixels / 2
        return middle - half, middle + half

    visible_ticks, next_free = [], -math.inf
    for tick in ticks:
        low, high = ends(tick)
        if low >= next_free and high + gap <= ends(last)[0]:
            visible_ticks.append(tick)
            next_free = high + gap
    visible_ticks.append(last)
    axes.set_xticks(visible_ticks, [f"{tick:g}" for tick in visible_ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def log_x(axes, ticks: Iterable[float]) -> None:
    """Makes x logarithmic, with these ticks."""
    axes.set_xscale("log")
    x_ticks(axes, ticks)


def log_y(axes) -> None:
    """Makes y logarithmic if anything positive is drawn, its ticks in plain numbers."""
    if not (_line_values(axes) > 0).any():
        return
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1, 2, 5) if high > 8 * low else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    axes.yaxis.set_major_locator(LogLocator(subs=subs if high < 1e4 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def log_y_if_wide(axes) -> None:
    """Makes y logarithmic if all values are positive and some far above others."""
    values = _line_values(axes)
    if len(values) and values.min() > 0 and values.max() > _LOG_FACTOR * values.min():
        log_y(axes)


def _line_values(axes) -> np.ndarray:
    """All finite y of the lines, except lines across the whole axes (`axhline`)."""
    lines = [x for x in axes.lines if x.get_transform() == axes.transData]
    values = [np.asarray(line.get_ydata(), float) for line in lines]
    values = np.concatenate([np.zeros(0), *values])
    return values[np.isfinite(values)]
